"""The Hub, over real HTTP against a stand-in on loopback: pushes, what strangers open, failures, secrets."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from st_prompteol import TEMPLATES, PromptEOL
from st_prompteol.cli import app
from st_prompteol.hub.folder import check_no_secrets, copy_companions

from . import ROOT
from .helpers.corpora import read, sentences, write_parquet
from .helpers.hub import Hub, hub_environment
from .helpers.models import build_causal_lm, publish_adapter
from .helpers.oracles import peft_oracle
from .helpers.processes import Program
from .helpers.quantized import save_bitsandbytes, save_compressed
from .helpers.sentences import SENTENCES
from .helpers.senteval import archive, build_senteval

TOKENS = {"hf_AliceSecretWrite": "alice"}
READ_TOKENS = {"hf_AliceSecretRead": "alice"}
WRITE, READ, WRONG = "hf_AliceSecretWrite", "hf_AliceSecretRead", "hf_NobodyKnowsThis"


class Client:
    """Processes whose Hub is the stand-in, which live as long as the tests, as importing everything takes seconds.

    One has this package and a cache of its own, the other, a stranger's, has neither.
    """

    def __init__(self, hub: Any, folder: Path, inside: Sequence[str] = ()) -> None:
        self.hub, self.folder, self.inside = hub, folder, inside
        self._programs: dict[str, Program] = {}
        (folder / "work").mkdir()

    def call(self, function: str, *arguments: Any, program: str = "hub_client", **options: Any) -> Any:
        if program not in self._programs:
            self._programs[program] = self._start(program)
        called = self._programs[program]
        result = called.call(function, *arguments, **options)
        assert not any(secret in called.answer for secret in (WRITE, READ, WRONG))
        return result

    def ask_stranger(self, function: str, *arguments: Any, **options: Any) -> Any:
        return self.call(function, *arguments, program="stranger", **options)

    @property
    def output(self) -> str:
        """What the last call has printed."""
        return self._programs["hub_client"].printed

    def _start(self, name: str) -> Program:
        environment = {**hub_environment(self.hub.url, self.folder / name), "HF_TOKEN": WRITE, "PYTHONPATH": str(ROOT)}
        if name == "stranger":
            del environment["HF_HUB_DISABLE_XET"]
        with (self.folder / "errors").open("a", encoding="utf-8") as errors:
            return Program(name, inside=self.inside, env=environment, cwd=self.folder / "work", stderr=errors)

    def close(self) -> None:
        for program in self._programs.values():
            program.process.kill()
            program.process.communicate()
        for errors in self.folder.glob("errors"):
            assert not any(secret in errors.read_text(encoding="utf-8") for secret in (WRITE, READ, WRONG))


class Trouble:
    """Makes a server fail at its n-th request, once or for good, before or after it has done its work.

    The process that drives it speaks to `/_trouble/<n>/<once|lasting>/<a status|before|after>`, which also puts the
    repository back into its old state.
    """

    def __init__(self, hub: Any) -> None:
        trouble = self
        self.repo_id, self.old, self.blobs = "", Path(), {}
        self.count, self.at, self.lasting, self.how = 0, 0, False, ""

        class Handler(hub.httpd.RequestHandlerClass):  # type: ignore[misc]
            def handle_any(self) -> None:
                if self.path.startswith("/_trouble/"):
                    _, _, at, lasting, trouble.how = self.path.split("/")
                    trouble.count, trouble.at, trouble.lasting = 0, int(at), lasting == "lasting"
                    if at != "0":
                        hub.blobs = dict(trouble.blobs)
                        hub.seed("model", trouble.repo_id, trouble.old)
                    self.body_ = None
                    self.send(200, {"count": trouble.count})
                    return
                trouble.count += 1
                fails = trouble.at and (
                    trouble.count >= trouble.at if trouble.lasting else trouble.count == trouble.at
                )
                if not fails:
                    super().handle_any()
                elif trouble.how.isdigit():
                    self.body_ = None
                    self.send(int(trouble.how), {"error": "trouble"})
                else:
                    if trouble.how == "after":  # the work is done, the answer is lost
                        self.send = lambda *arguments, **options: self.body()  # type: ignore[method-assign]
                        super().handle_any()
                    self.close_connection = True
                    self.connection.close()

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        hub.httpd.RequestHandlerClass = Handler  # before the first connection, whose handler lives as long


@pytest.fixture(scope="module")
def hub(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    xet = str(tmp_path_factory.mktemp("xet"))
    server = Hub(tokens=TOKENS, read_tokens=READ_TOKENS, orgs={"alice": ("lab",)}, xet_cas=xet)
    server.seed("model", "tiny/llama", causal_lms["llama"])
    server.trouble = Trouble(server)
    with server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client, which sees a disk of 4 MB where file systems may be mounted."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "small").mkdir()
    mount = shlex.join(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder / "small")])
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    may_mount = subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    client = Client(hub, folder, inside if may_mount else ())
    yield client
    client.close()


def head(hub: Any, repo_id: str, branch: str = "main") -> dict[str, Any]:
    repo = hub.repos["model", repo_id]
    files: dict[str, Any] = repo.commits[repo.branches[branch]]["files"]
    return files


def text_of(hub: Any, repo_id: str, name: str) -> str:
    return str(hub.read(head(hub, repo_id)[name]).decode())


def close(one: Any, other: Any) -> bool:
    one, other = np.array(one), np.array(other)
    return bool(one.shape == other.shape and np.abs(one - other).max() <= 1e-5 * np.abs(other).max())


def seed_adapter(
    hub: Any, folder: Path, causal_lms: dict[str, str], repo_id: str, base: str = "tiny/llama", **options: Any
) -> None:
    """An adapter as people publish them: without tokenizer, its base named by its repository."""
    publish_adapter(causal_lms["llama"], folder, **options)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    hub.seed("model", repo_id, folder)


@pytest.mark.slow
def test_a_stranger_opens_what_was_pushed_from_a_cold_cache_and_then_offline(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/adapter", binary=True)
    pushed = client.call("push_both")
    texts = [TEMPLATES["prompteol"].render(sentence) for sentence in SENTENCES]
    assert close(pushed["adapter"], peft_oracle(causal_lms["llama"], str(tmp_path / "published"), texts))
    assert close(pushed["again"], pushed["adapter"])
    assert close(pushed["cached"], pushed["adapter"])
    assert (pushed["blocks of alice/full"], pushed["blocks of alice/adapter"]) == (2, 3)
    assert hub.repos["model", "alice/adapter"].private
    assert hub.repos["model", "alice/adapter"].tags == {"v1": pushed["adapter_commit"]}
    assert hub.repos["model", "alice/full"].branches == {"main": pushed["full_commit"]}
    assert len(hub.repos["model", "alice/full"].commits) == 2  # the Hub's own first one, and ours
    assert set(pushed["files"]) == set(head(hub, "alice/full")) - {".gitattributes"}
    assert pushed["full_commit"] in pushed["url"]
    config = json.loads(text_of(hub, "alice/adapter", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "tiny/llama"
    assert config["revision"] == hub.repos["model", "tiny/llama"].branches["main"]

    names = ["alice/full", "alice/adapter", "lab/merged"]
    cold = client.ask_stranger("encode_all", names, SENTENCES)
    requests = len(hub.log)
    warm = client.ask_stranger("encode_all", names, SENTENCES, offline=True)
    assert len(hub.log) == requests
    for opened in (cold, warm):
        assert close(opened["alice/full"], pushed["full"])
        assert close(opened["alice/adapter"], pushed["adapter"])
        assert close(opened["lab/merged"], pushed["adapter"])

    for name in names:
        for file in head(hub, name).values():
            assert not any(token.encode() in hub.read(file) for token in (WRITE, READ))


# A call -> how it fails
REFUSED = {
    'model.push_to_hub("alice/x", token=False)': "PermissionError: 'alice/x' cannot be pushed to without a token:",
    f'model.push_to_hub("alice/x", token={WRONG!r})': "PermissionError: 'alice/x' was not pushed to: the Hub does not"
    " know the token (401)",
    f'model.push_to_hub("alice/x", token={READ!r})': "PermissionError: 'alice/x' cannot be pushed to with a token"
    " that may only read",
    'push_to_hub(model, "alice/other")': "FileExistsError: 'alice/other' already holds a model that is not",
    'model.push_to_hub("alice/public", private=True)': "FileExistsError: 'alice/public' exists and is public",
    'model.push_to_hub("alice/public", exist_ok=False)': "FileExistsError: 'alice/public' exists: choose another name",
    'model.push_to_hub("alice/public", tag="v1")': "FileExistsError: 'alice/public' has a tag 'v1'",
    'model.push_to_hub("alice/nothing", create_pr=True)': "FileNotFoundError: 'alice/nothing' does not exist, so it",
    'model.push_to_hub("alice/public", create_pr=True, tag="v2")': "ValueError: A pull request goes to main",
    'push_to_hub(model, "alice/a b")': "ValueError: 'alice/a b' cannot be the name of a repository",
    'model.push_to_hub("alice//x", dry_run=True, token=False)': "ValueError: 'alice//x' cannot be the name of a",
    'model.push_to_hub("alice/x", merge_to="alice/y")': "ValueError: 'tiny/llama' has no adapter to merge",
    'adapter.push_to_hub("alice/x", merge_to="alice/x")': "ValueError: 'alice/x' cannot hold both",
    'adapter.push_to_hub("alice/x", merge_to="alice/other")': "FileExistsError: 'alice/other' already holds",
    'push_to_hub(local, "alice/x")': "ValueError: The adapter",
    'push_to_hub(local, "alice/x", CardOptions("bob/gated"))': "PermissionError: 'bob/gated' is gated: ask for access",
    'model.push_to_hub("alice/x", card=CardOptions(results_dir="none"), dry_run=True)': "FileNotFoundError: 'none' is",
    'CardOptions(license="mine: <b>")': "ValueError: 'mine: <b>' does not identify a license",
    'CardOptions(language="English")': "ValueError: 'English' is not the code of a language",
    'CardOptions(datasets=["a\\nb"])': "ValueError: 'a\\nb' cannot be the name of a repository",
    'PromptEOL("bob/private")': "FileNotFoundError: 'bob/private' is neither a folder nor a repository",
    'PromptEOL("bob/gated")': "PermissionError: 'bob/gated' is gated: ask for access on its page",
    'PromptEOL("bob/gated", token=False)': "PermissionError: 'bob/gated' is gated: ask for access on its page",
    'PromptEOL("alice/on-gated")': "FileNotFoundError: The adapter 'alice/on-gated' was trained on 'bob/gated', which"
    " cannot be opened: put the base model there, log in if it is gated",
    f'PromptEOL("tiny/llama", token={WRONG!r}, revision="main")': "PermissionError: 'tiny/llama'",
}
# What is noticed only after a clean process was started
REFUSED_LATER = {
    'push_to_hub(model, "bob/x")': "PermissionError: 'bob/x' was not pushed to: the token may not write there (403)",
}


@pytest.mark.slow
def test_what_must_not_be_pushed_is_refused_in_one_sentence_and_mostly_at_once(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    local = publish_adapter(causal_lms["llama"], tmp_path / "local")
    seed_adapter(hub, tmp_path / "refused", causal_lms, "bob/refused")
    hub.seed("model", "alice/other", causal_lms["opt"])
    hub.create("model", "alice/public").tags["v1"] = "0" * 40
    hub.create("model", "bob/private", private=True)
    hub.seed("model", "bob/gated", causal_lms["llama"]).gated = {"bob"}
    seed_adapter(hub, tmp_path / "on-gated", causal_lms, "alice/on-gated", base="bob/gated")
    for calls, started in ((REFUSED, 0), (REFUSED_LATER, len(REFUSED_LATER))):
        result = client.call("fail", local, list(calls))
        assert result["started"] == started
        for call, answer in zip(calls, result["answers"], strict=True):
            assert answer.startswith(calls[call]), (call, answer)
            assert "\n" not in answer
    assert ("model", "alice/x") not in hub.repos
    assert ("model", "bob/x") not in hub.repos
    assert set(head(hub, "alice/public")) == {".gitattributes"}


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_and_can_be_repeated(
    hub: Any, client: Client, causal_lms: dict[str, str]
) -> None:
    if not client.inside:
        pytest.skip("needs to mount a small file system")
    result = client.call("meet_a_full_disk", causal_lms["llama"], str(client.folder / "small"))
    assert result["push"] == (
        "OSError: 'alice/full-disk' was not pushed to, because the disk is full: free space, or set TMPDIR to a "
        "folder on another disk, then push again."
    )
    assert result["staged"] == ["ballast"]
    assert set(result["again"]) == set(head(hub, "alice/full-disk")) - {".gitattributes"}
    assert result["open"] == (
        "OSError: 'tiny/llama' could not be opened, because the disk is full: free space, or set HF_HOME to a folder "
        "on another disk, then do it again."
    )
    assert result["cached"] == []
    assert close(result["embeddings"], PromptEOL(causal_lms["llama"]).encode(SENTENCES))


@pytest.mark.parametrize(
    ("what", "requests"),
    [
        ("commit", 6),  # look, preupload, LFS batch, upload, verify, commit
        # whoami, look, upload, commit, and those that open it from the Hub
        pytest.param("full model", 16, marks=pytest.mark.slow),
        pytest.param("adapter", 16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_server_that_fails_at_any_request_leaves_the_old_state_or_the_new_one(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path, what: str, requests: int
) -> None:
    old = Path(publish_adapter(causal_lms["opt"], tmp_path / "old"))
    (old / "README.md").unlink()
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/whole")
    hub.trouble.repo_id, hub.trouble.old, hub.trouble.blobs = "alice/model", old, dict(hub.blobs)
    source = {"commit": causal_lms["gpt2"], "full model": causal_lms["qwen2"], "adapter": "bob/whole"}[what]
    hows = ["503", "500", "before", "after"] if what == "commit" else ["500", "before"]
    result = client.call("meet_trouble", source, what != "commit", hows)
    assert result["problems"] == []
    assert result["requests"] >= requests
    least = 1 if what == "commit" else 2 * 6
    assert min(result["old"], result["new"]) >= least


@pytest.mark.slow
def test_branches_pull_requests_and_another_model_in_the_place(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/another")
    hub.seed("model", "alice/old", tmp_path / "published")
    result = client.call("push_beside_another")
    assert "adapter_model.safetensors" in head(hub, "alice/old")  # main is as it was
    assert "model.safetensors" not in head(hub, "alice/old")
    dev = head(hub, "alice/old", "dev")
    assert "model.safetensors" in dev
    assert "adapter_config.json" not in dev
    assert dev["README.md"] == head(hub, "alice/old")["README.md"]
    assert result["branch"] == hub.repos["model", "alice/old"].branches["dev"]
    assert hub.repos["model", "alice/old"].prs == {"refs/pr/1": result["pr_commit"]}
    assert result["pr"].endswith("/discussions/1")
    assert close(result["opened"], result["model"])


@pytest.mark.slow
def test_results_of_a_model_from_the_hub_are_found_by_its_commit(hub: Any, client: Client, tmp_path: Path) -> None:
    result = client.call("card_of_results", str(build_senteval(tmp_path / "senteval")))
    assert "| alice/model | this model |" in result["card"]
    commit = hub.repos["model", "tiny/llama"].branches["main"]
    assert result["folder"].startswith(f"results/tiny__llama/{commit[:18]}/PromptEOL-")


@pytest.mark.slow
def test_a_quantized_model_is_published_as_such_and_opens(
    hub: Any, client: Client, causal_lms: dict[str, str]
) -> None:
    pytest.importorskip("bitsandbytes")
    commit = client.call("push_quantized", causal_lms["opt-64"])
    assert hub.repos["model", "alice/nf4"].branches["main"] == commit
    assert "base_model_relation: quantized" in text_of(hub, "alice/nf4", "README.md")
    assert json.loads(text_of(hub, "alice/nf4", "config.json"))["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.parametrize(("save", "kind"), [(save_bitsandbytes, "nf4"), (save_compressed, "W4A16")])
@pytest.mark.slow
def test_an_adapter_on_a_base_that_comes_quantized(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path, save: Any, kind: str
) -> None:
    save(Path(causal_lms["llama-64"]), tmp_path, kind)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(causal_lms["llama-64"]) / file, tmp_path)
    hub.seed("model", f"tiny/{kind}", tmp_path)
    problem = client.call("push_adapter_on", kind)
    if kind == "nf4":
        card = text_of(hub, "alice/on-nf4", "README.md")
        assert "base_model_relation: adapter" in card
        assert "base_model: tiny/nf4" in card
    else:
        assert "compressed-tensors pack-quantized, opened as floats): call merge_adapter() and push" in problem


@pytest.mark.slow
def test_an_adapter_stays_with_the_base_it_was_made_on_when_that_moves(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    hub.seed("model", "tiny/moving", causal_lms["llama"])
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/bare", base="tiny/moving", binary=True)
    before = client.call("open_and_save", "bob/bare", str(tmp_path / "saved"))
    assert "has moved" not in client.output
    hub.seed("model", "alice/pinned", tmp_path / "saved")
    moved = build_causal_lm(tmp_path / "moved", "llama", seed=7)
    repo = hub.repos["model", "tiny/moving"]
    old = repo.branches["main"]
    hub.seed("model", "tiny/moved", moved)
    newer = hub.repos["model", "tiny/moved"]
    repo.branches["main"] = repo.commit(newer.commits[newer.branches["main"]]["files"], "moved", old)

    after = client.call("open_and_save", "alice/pinned", str(tmp_path / "again"))
    assert close(after, before)
    assert f"'tiny/moving' has moved to {repo.branches['main'][:12]} since the adapter 'alice/pinned'" in client.output
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text(encoding="utf-8"))
    assert again["revision"] == old
    bare = client.call("open_and_save", "bob/bare", str(tmp_path / "bare"))  # nothing recorded: the newest
    assert not close(bare, before)


@pytest.mark.slow
def test_xet_and_a_private_repository_without_its_token(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/for-xet", binary=True)
    pushed = client.call("push_by_xet", {"tiny/llama": "alice/xet", "bob/for-xet": "alice/xet-adapter"})
    assert head(hub, "alice/xet")["model.safetensors"]["xet"]
    assert head(hub, "alice/xet-adapter")["adapter_model.safetensors"]["xet"]
    opened = client.ask_stranger("encode_all", ["alice/xet", "alice/xet-adapter"], SENTENCES)
    assert close(opened["alice/xet"], pushed["alice/xet"])
    assert close(opened["alice/xet-adapter"], pushed["alice/xet-adapter"])
    assert not client.ask_stranger("opens", "alice/xet", token=False, cache_folder=str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_dataset_is_encoded(hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    texts = sentences(30)
    write_parquet(tmp_path / "data/train.parquet", list(texts), row_group_size=10)
    hub.seed("dataset", "bob/corpus", tmp_path / "data")
    client.call("encode_dataset", causal_lms["opt"], "hf://datasets/bob/corpus", str(tmp_path / "out"))
    assert read(tmp_path / "out")["text"].to_pylist() == texts


@pytest.mark.slow
def test_senteval_s_archive_is_fetched_once(hub: Any, client: Client, tmp_path: Path) -> None:
    archive(tmp_path / "senteval.tar", downstream__STS__x="1", downstream__MR__y="2")
    hub.seed("dataset", "princeton-nlp/datasets-for-simcse", tmp_path)
    first, second = client.call("fetch_senteval")
    assert first == second
    assert sorted(os.listdir(first)) == ["MR", "STS"]
    downloads = [line for line in map(str, hub.log) if "senteval.tar" in line and "GET" in line]
    assert len(downloads) <= 2  # one, and the content delivery network's


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["README.md", "curves.png", "1_Pooling/config.json"])
def test_tokens_are_found_in_any_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shaped = "hf_" + "a1" * 15  # put together here, or scanners would find it
    for secret, kind in ((shaped, "a Hugging Face token"), ("hf_own", "your token")):
        (tmp_path / name).write_bytes(f"use {secret} for it".encode(encoding))
        with pytest.raises(ValueError, match=f"'{name}' would make {kind} public") as caught:
            check_no_secrets(tmp_path, "hf_own")
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["sk-learn-is-a-python-library-that-many-people-like-to-use", "half_" + "a1" * 15, "-----BEGIN PRIVATE KEY-----"],
)
def test_other_texts_are_not_taken_for_tokens(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    check_no_secrets(tmp_path, "hf_own")


@pytest.mark.parametrize("name", ["NOTICE.txt", "LICENSE", "curves.png"])
def test_no_link_leads_a_push_out_of_the_folder(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("for nobody", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"'{name}' in .* is a link to .*secret', and nothing from outside"):
        copy_companions(str(tmp_path / "model"), tmp_path)


@pytest.mark.slow
def test_a_dry_run_needs_no_connection_and_leaves_out_what_no_save_writes(
    client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path))
    stays = ["optimizer.pt", "checkpoint-5/model.safetensors", ".env", ".git/config", "1_Pooling/.DS_Store", "token"]
    for name in (*stays, "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    result = client.call("dry_runs", str(tmp_path))
    code, out, error = result["--dry-run"]
    assert code == 0, error
    *listed, last = out.splitlines()
    names = {line.split()[1] for line in listed}
    assert {"model.safetensors", "modules.json", "1_Pooling/config.json", "LICENSE", "README.md"} <= names
    assert not names & set(stays)
    assert last.startswith(f"{len(names)} files, ")
    assert last.endswith(" would go to alice/dry")
    assert "Only what is here was checked, and not what 'alice/dry' holds" in error
    code, _, error = result["--branch=b"]
    assert (code, "HF_HUB_OFFLINE is set" in error) == (2, True)


def test_several_adapters_over_one_base_are_listed(causal_lms: dict[str, str], tmp_path: Path) -> None:
    one = publish_adapter(causal_lms["llama"], tmp_path / "one", seed=1)
    two = publish_adapter(causal_lms["llama"], tmp_path / "two", seed=2)
    options = [argument for name, path in (("one", one), ("two", two)) for argument in ("--adapter", f"{name}={path}")]
    shown = CliRunner().invoke(app, ["info", causal_lms["llama"], "--device", "cpu", *options])
    assert "one, two (active)" in shown.output


@pytest.mark.slow
@pytest.mark.shared
def test_a_fine_tuned_model_with_its_results_is_published_and_run_by_mteb(shared: Path, tmp_path: Path) -> None:
    server = Hub(tokens=TOKENS)
    server.seed_root(shared / "hub", json.loads((shared / "hub/revisions.json").read_text(encoding="utf-8")))
    with server:
        client = Client(server, tmp_path)
        folders = (str(tmp_path / name) for name in ("results", "saved", "run"))
        result = client.call("tune_and_publish", str(shared / "senteval"), *folders)
        metadata = result["metadata"]
        assert (metadata["base_model"], metadata["base_model_relation"]) == ("tinyllamas/stories260k", "adapter")
        assert (metadata["library_name"], metadata["license"]) == ("sentence-transformers", "mit")
        assert len(metadata["model-index"][0]["results"]) == 2
        assert "generated_from_trainer" in metadata["tags"]
        for part in ("| alice/tuned | this model |", "PromptEOL, no training", "### Training Logs"):
            assert part in result["card"]
        assert str(tmp_path) not in result["card"]
        assert ".eval_results/datasets-for-simcse.yaml" in result["files"]

        score, embeddings = client.ask_stranger("mteb_score", "alice/tuned", "STS12", SENTENCES)
        client.close()
    assert close(embeddings, result["embeddings"])
    assert 0 < score < 1
