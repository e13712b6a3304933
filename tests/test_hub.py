"""The Hub, over real HTTP against a stand-in on loopback: pushes, what strangers open, failures, secrets."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from st_prompteol import TEMPLATES, PromptEOL
from st_prompteol.cli import app
from st_prompteol.hub import push
from st_prompteol.hub.upload import check_no_secrets

from . import ROOT
from .helpers.corpora import read, sentences, write_parquet
from .helpers.hub import Hub, hub_environment
from .helpers.models import build_causal_lm, publish_adapter
from .helpers.oracles import peft_oracle
from .helpers.quantized import save_bitsandbytes, save_compressed
from .helpers.sentences import SENTENCES
from .helpers.senteval import archive, build_senteval

TOKENS = {"hf_AliceSecretWrite": "alice"}
READ_TOKENS = {"hf_AliceSecretRead": "alice"}
WRITE, READ, WRONG = "hf_AliceSecretWrite", "hf_AliceSecretRead", "hf_NobodyKnowsThis"

# Code is sent to processes that live as long as the tests, as importing everything takes seconds; for the same reason
# all pushes of one of them share a clean process. That one never waits, and reads Xet.
LOOP = """
import contextlib, functools, io, json, logging, os, re, sys, tempfile, time, traceback
from huggingface_hub import ModelCard, constants
without_us, quick = sys.argv[1:]
if without_us:
    sys.modules["st_prompteol"] = None
else:
    from st_prompteol import Demonstration, PromptEOL
    from st_prompteol.evaluation import Run, run_tasks
    from st_prompteol.hub import CardOptions, build_model_card, check, push, push_to_hub, upload
    class Kept(check.CleanProcess):
        def __exit__(self, *error):
            pass
    @functools.cache
    def kept():
        os.environ["PYTHONPATH"] += os.pathsep + quick
        os.environ.pop("HF_HUB_DISABLE_XET")
        tempdir, tempfile.tempdir = tempfile.tempdir, None
        try:
            return Kept()
        finally:
            tempfile.tempdir = tempdir
    push.CleanProcess = kept
from sentence_transformers import SentenceTransformer
def embed(model):
    return model.encode(SENTENCES).tolist()
def failure(act):
    try:
        act()
        return "nothing was wrong"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
for line in sys.stdin:
    request = json.loads(line)
    SENTENCES, ARGUMENTS, RESULT = request["sentences"], request["arguments"], {}
    result, printed, names = RESULT, io.StringIO(), {**globals()}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(request["code"], names)
    except Exception:
        result = {"traceback": traceback.format_exc()}
    print("ANSWER" + json.dumps({"result": result, "printed": printed.getvalue()}), flush=True)
"""


class Client:
    """Processes whose Hub is the stand-in: the client library reads its environment once, when it is imported.

    One has this package and a cache of its own, the other, a stranger's, has neither.
    """

    def __init__(self, hub: Any, folder: Path, inside: Sequence[str] = ()) -> None:
        self.hub, self.folder, self.inside = hub, folder, inside
        self.output = ""
        self._processes: dict[bool, subprocess.Popen[str]] = {}
        (folder / "work").mkdir()
        (folder / "quick").mkdir()
        (folder / "quick" / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")

    def run(self, code: str, *arguments: str, without_us: bool = False) -> dict[str, Any]:
        if without_us not in self._processes:
            self._processes[without_us] = self._start(without_us)
        process = self._processes[without_us]
        request = {"code": textwrap.dedent(code), "arguments": arguments, "sentences": SENTENCES}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("ANSWER"):
                answer = json.loads(line.removeprefix("ANSWER"))
                self.output = answer["printed"]
                assert not any(secret in line for secret in (WRITE, READ, WRONG))
                assert "traceback" not in answer["result"], answer["result"]["traceback"]
                result: dict[str, Any] = answer["result"]
                return result
        raise RuntimeError((self.folder / "errors").read_text(encoding="utf-8")[-3000:])

    def _start(self, without_us: bool) -> subprocess.Popen[str]:
        home = self.folder / ("stranger" if without_us else "home")
        environment = {**hub_environment(self.hub.url, home), "HF_TOKEN": WRITE, "PYTHONPATH": str(ROOT)}
        if without_us:
            del environment["HF_HUB_DISABLE_XET"]
        command = [sys.executable, "-c", LOOP, "without us" if without_us else "", str(self.folder / "quick")]
        with (self.folder / "errors").open("a", encoding="utf-8") as errors:
            return subprocess.Popen(
                [*self.inside, *command],
                env=environment,
                cwd=self.folder / "work",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()
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


PUSH_BOTH = """
model = PromptEOL("tiny/llama", demonstrations=[Demonstration("It rains.", "Weather")], layer=-2)
report = model.push_to_hub("full", card=CardOptions(license="mit"))
RESULT.update(full=embed(model), full_commit=report.commit, files=report.files, url=str(report))
model = PromptEOL("bob/adapter")
report = push_to_hub(model, "alice/adapter", private=True, tag="v1", merge_to="lab/merged")
RESULT.update(adapter=embed(model), adapter_commit=report.commit)
RESULT["again"] = embed(PromptEOL("alice/adapter", revision="v1"))
RESULT["cached"] = embed(PromptEOL("alice/adapter", local_files_only=True, revision="v1"))
for name in ("alice/full", "alice/adapter"):
    card = ModelCard.load(name)
    card.validate()
    blocks = re.findall(r"^```python\\n(.*?)^```", card.text, flags=re.M | re.S)
    RESULT[f"blocks of {name}"] = len(blocks)
    for block in blocks:
        exec(block, {})
"""
OPEN_ALL = """
for name in ("alice/full", "alice/adapter", "lab/merged"):
    RESULT[name] = embed(SentenceTransformer(name, device="cpu"))
"""


@pytest.mark.slow
def test_a_stranger_opens_what_was_pushed_from_a_cold_cache_and_then_offline(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/adapter", binary=True)
    pushed = client.run(PUSH_BOTH)
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

    cold = client.run(OPEN_ALL, without_us=True)
    requests = len(hub.log)
    warm = client.run(
        f"constants.HF_HUB_OFFLINE = True\n{OPEN_ALL}\nconstants.HF_HUB_OFFLINE = False", without_us=True
    )
    assert len(hub.log) == requests
    for opened in (cold, warm):
        assert close(opened["alice/full"], pushed["full"])
        assert close(opened["alice/adapter"], pushed["adapter"])
        assert close(opened["lab/merged"], pushed["adapter"])

    for name in ("alice/full", "alice/adapter", "lab/merged"):
        for file in head(hub, name).values():
            assert not any(token.encode() in hub.read(file) for token in (WRITE, READ))


# A call -> how it fails
REFUSED = {
    'push_to_hub(model, "alice/x", token=False)': "PermissionError: 'alice/x' cannot be pushed to without a token:",
    f'push_to_hub(model, "alice/x", token={WRONG!r})': "PermissionError: 'alice/x' was not pushed to: the Hub does not"
    " know the token (401)",
    f'push_to_hub(model, "alice/x", token={READ!r})': "PermissionError: 'alice/x' cannot be pushed to with a token"
    " that may only read",
    'push_to_hub(model, "alice/other")': "FileExistsError: 'alice/other' already holds a model that is not",
    'push_to_hub(model, "alice/public", private=True)': "FileExistsError: 'alice/public' exists and is public",
    'model.push_to_hub("alice/public", exist_ok=False)': "FileExistsError: 'alice/public' exists: choose another name",
    'push_to_hub(model, "alice/public", tag="v1")': "FileExistsError: 'alice/public' has a tag 'v1'",
    'push_to_hub(model, "alice/nothing", create_pr=True)': "FileNotFoundError: 'alice/nothing' does not exist, so it",
    'push_to_hub(model, "alice/public", create_pr=True, tag="v2")': "ValueError: A pull request goes to main",
    'push_to_hub(model, "alice/a b")': "ValueError: 'alice/a b' cannot be the name of a repository",
    'push_to_hub(model, "alice//x", dry_run=True, token=False)': "ValueError: 'alice//x' cannot be the name of a",
    'push_to_hub(model, "alice/x", merge_to="alice/y")': "ValueError: 'tiny/llama' has no adapter to merge",
    'push_to_hub(adapter, "alice/x", merge_to="alice/x")': "ValueError: 'alice/x' cannot hold both",
    'push_to_hub(adapter, "alice/x", merge_to="alice/other")': "FileExistsError: 'alice/other' already holds",
    'push_to_hub(LOCAL, "alice/x")': "ValueError: The adapter",
    'push_to_hub(LOCAL, "alice/x", CardOptions("bob/gated"))': "PermissionError: 'bob/gated' is gated: ask for access",
    'push_to_hub(model, "alice/x", CardOptions(results_dir="none"), dry_run=True)': "FileNotFoundError: 'none' is not",
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
FAIL = """
model, adapter, LOCAL = PromptEOL("tiny/llama"), PromptEOL("bob/refused"), ARGUMENTS[0]
started, push.CleanProcess = [], lambda: started.append(1) or kept()
try:
    RESULT["answers"] = [failure(lambda: eval(call, globals())) for call in ARGUMENTS[1:]]
finally:
    push.CleanProcess = kept
RESULT["started"] = len(started)
"""


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
        result = client.run(FAIL, local, *calls)
        assert result["started"] == started
        for call, answer in zip(calls, result["answers"], strict=True):
            assert answer.startswith(calls[call]), (call, answer)
            assert "\n" not in answer
    assert ("model", "alice/x") not in hub.repos
    assert ("model", "bob/x") not in hub.repos
    assert set(head(hub, "alice/public")) == {".gitattributes"}


FULL_DISK = """
from pathlib import Path
staging, cache = Path(ARGUMENTS[1], "tmp"), Path(ARGUMENTS[1], "cache")
staging.mkdir()
cache.mkdir()
def fill(folder, size):  # all but so many bytes
    (folder / "ballast").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - size))
def cached():
    return PromptEOL("tiny/llama", device="cpu", cache_folder=str(cache))
model = PromptEOL(ARGUMENTS[0], device="cpu")
tempfile.tempdir = str(staging)
try:
    fill(staging, 30_000)
    RESULT["push"] = failure(lambda: push_to_hub(model, "alice/full-disk"))
    RESULT["staged"] = sorted(path.name for path in staging.rglob("*"))
    (staging / "ballast").unlink()
    RESULT["again"] = sorted(push_to_hub(model, "alice/full-disk").files)
finally:
    tempfile.tempdir = None
fill(cache, 50_000)
RESULT["open"] = failure(cached)
RESULT["cached"] = [str(path) for path in cache.rglob("*") if path.suffix in (".safetensors", ".incomplete")]
(cache / "ballast").unlink()
RESULT["embeddings"] = embed(cached())
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_and_can_be_repeated(
    hub: Any, client: Client, causal_lms: dict[str, str]
) -> None:
    if not client.inside:
        pytest.skip("needs to mount a small file system")
    result = client.run(FULL_DISK, causal_lms["llama"], str(client.folder / "small"))
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


IN_TROUBLE = """
import shutil, urllib.request
from pathlib import Path
from huggingface_hub import HfApi
from st_prompteol.failures import explain_push
api, repo_id = HfApi(), "alice/model"
what, source, *hows = ARGUMENTS
model = None if what == "commit" else PromptEOL(source, device="cpu")
def act():
    if model is None:
        with explain_push(repo_id):
            upload.commit_folder(api, Path(source), repo_id, message="new")
        return sorted(upload.files_of(Path(source)))
    for folder in (constants.HF_HUB_CACHE, kept()._folder.name):  # what was read from the Hub is read again
        shutil.rmtree(Path(folder, "models--alice--model"), ignore_errors=True)
    return sorted(push_to_hub(model, repo_id, force=True).files)
def trouble(at, lasting, how):
    urllib.request.urlopen(f"{api.endpoint}/_trouble/{at}/{lasting}/{how}").read()
def state():
    trouble(0, "once", "none")
    info = api.model_info(repo_id)
    return sorted(sibling.rfilename for sibling in info.siblings), len(api.list_repo_commits(repo_id))
def attempt(how, lasting, at):
    trouble(at, lasting, how)
    failed = None
    try:
        act()
    except Exception as error:
        failed = error
    now = state()
    problems = []
    if now != after and (now != before or failed is None):
        problems.append("half")
    if failed and (lasting == "once" or not isinstance(failed, ConnectionError) or "\\n" in str(failed)):
        problems.append("failed")
    if failed and model and (now == after) != ("but the check from the Hub failed" in str(failed)):
        problems.append("untrue")
    RESULT["new" if now == after else "old"] += 1
    if act() != new or state() != after:
        problems.append("not repeatable")
    if problems:
        RESULT["problems"].append([*problems, how, lasting, at, f"{type(failed).__name__}: {failed}", now])
    return failed
sleep, time.sleep = time.sleep, lambda seconds: None  # upstream's waits between its own tries, and ours
try:
    trouble(99, "once", "503")
    before = state()
    new = act()
    after = (new, before[1] + 1)
    RESULT.update(problems=[], old=0, new=0, requests=0)
    for how in hows:
        RESULT["requests"] = 1
        while attempt(how, "lasting", RESULT["requests"]):
            RESULT["requests"] += 1
        for at in range(1, RESULT["requests"] + 1 if model is None else 1):
            attempt(how, "once", at)
finally:
    time.sleep = sleep
"""


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
    result = client.run(IN_TROUBLE, what, source, *hows)
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
    result = client.run(
        """
        model = PromptEOL("tiny/llama")
        RESULT["branch"] = model.push_to_hub("alice/old", force=True, revision="dev", replace_model_card=False).commit
        report = model.push_to_hub("alice/old", force=True, create_pr=True)
        RESULT["pr"], RESULT["pr_commit"] = report.url, report.commit
        RESULT["model"], RESULT["opened"] = embed(model), embed(PromptEOL("alice/old", revision="refs/pr/1"))
        """
    )
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
    result = client.run(
        """
        model = PromptEOL("tiny/llama", device="cpu")
        run = Run.of(model, "tiny/llama", "PromptEOL")
        run_tasks(model, run, ARGUMENTS[0], ["STSBenchmark"], results_dir="of-hub")
        RESULT["folder"] = str(run.folder("results"))
        RESULT["card"] = build_model_card(model, "alice/model", CardOptions(results_dir="of-hub")).text
        """,
        str(build_senteval(tmp_path / "senteval")),
    )
    assert "| alice/model | this model |" in result["card"]
    commit = hub.repos["model", "tiny/llama"].branches["main"]
    assert result["folder"].startswith(f"results/tiny__llama/{commit[:18]}/PromptEOL-")


@pytest.mark.slow
def test_a_quantized_model_is_published_as_such_and_opens(
    hub: Any, client: Client, causal_lms: dict[str, str]
) -> None:
    pytest.importorskip("bitsandbytes")
    result = client.run(
        """
        model = PromptEOL(ARGUMENTS[0], quantization="nf4", device="cpu")
        RESULT["commit"] = push_to_hub(model, "alice/nf4", CardOptions("tiny/llama")).commit
        """,
        causal_lms["opt-64"],
    )
    assert hub.repos["model", "alice/nf4"].branches["main"] == result["commit"]
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
    result = client.run(
        """
        from st_prompteol import PromptEOL, lora_config
        from st_prompteol.hub import push_to_hub
        kind = ARGUMENTS[0]
        model = PromptEOL(f"tiny/{kind}", device="cpu")
        model.add_adapter(lora_config(r=4, init_lora_weights=False))
        try:
            push_to_hub(model, f"alice/on-{kind}")
        except ValueError as error:
            RESULT["error"] = str(error)
        """,
        kind,
    )
    if kind == "nf4":
        card = text_of(hub, "alice/on-nf4", "README.md")
        assert "base_model_relation: adapter" in card
        assert "base_model: tiny/nf4" in card
    else:
        assert "compressed-tensors pack-quantized, opened as floats): call merge_adapter() and push" in result["error"]


@pytest.mark.slow
def test_an_adapter_stays_with_the_base_it_was_made_on_when_that_moves(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    hub.seed("model", "tiny/moving", causal_lms["llama"])
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/bare", base="tiny/moving", binary=True)
    code = """
        logging.getLogger().handlers = [logging.StreamHandler(sys.stdout)]
        model = PromptEOL(ARGUMENTS[0])
        RESULT["embeddings"] = embed(model)
        model.save(ARGUMENTS[1], create_model_card=False)
        logging.getLogger().handlers = []
        """
    before = client.run(code, "bob/bare", str(tmp_path / "saved"))
    assert "has moved" not in client.output
    hub.seed("model", "alice/pinned", tmp_path / "saved")
    moved = build_causal_lm(tmp_path / "moved", "llama", seed=7)
    repo = hub.repos["model", "tiny/moving"]
    old = repo.branches["main"]
    hub.seed("model", "tiny/moved", moved)
    newer = hub.repos["model", "tiny/moved"]
    repo.branches["main"] = repo.commit(newer.commits[newer.branches["main"]]["files"], "moved", old)

    after = client.run(code, "alice/pinned", str(tmp_path / "again"))
    assert close(after["embeddings"], before["embeddings"])
    assert f"'tiny/moving' has moved to {repo.branches['main'][:12]} since the adapter 'alice/pinned'" in client.output
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text(encoding="utf-8"))
    assert again["revision"] == old
    bare = client.run(code, "bob/bare", str(tmp_path / "bare"))  # nothing recorded: the newest
    assert not close(bare["embeddings"], before["embeddings"])


@pytest.mark.slow
def test_xet_and_a_private_repository_without_its_token(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/for-xet", binary=True)
    pushed = client.run(
        """
        constants.HF_HUB_DISABLE_XET = False
        try:
            for source, name in (("tiny/llama", "alice/xet"), ("bob/for-xet", "alice/xet-adapter")):
                model = PromptEOL(source)
                model.push_to_hub(name, private=True)
                RESULT[name] = embed(model)
        finally:
            constants.HF_HUB_DISABLE_XET = True
        """
    )
    assert head(hub, "alice/xet")["model.safetensors"]["xet"]
    assert head(hub, "alice/xet-adapter")["adapter_model.safetensors"]["xet"]
    opened = client.run(
        """
        for name in ("alice/xet", "alice/xet-adapter"):
            RESULT[name] = embed(SentenceTransformer(name, device="cpu"))
        RESULT["without"] = failure(lambda: SentenceTransformer("alice/xet", token=False, cache_folder=ARGUMENTS[0]))
        """,
        str(tmp_path / "cache"),
        without_us=True,
    )
    assert close(opened["alice/xet"], pushed["alice/xet"])
    assert close(opened["alice/xet-adapter"], pushed["alice/xet-adapter"])
    assert opened["without"] != "nothing was wrong"


@pytest.mark.slow
def test_a_dataset_is_encoded(hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    texts = sentences(30)
    write_parquet(tmp_path / "data/train.parquet", list(texts), row_group_size=10)
    hub.seed("dataset", "bob/corpus", tmp_path / "data")
    client.run(
        """
        from st_prompteol.corpus import encode_corpus
        encode_corpus(ARGUMENTS[0], "hf://datasets/bob/corpus", ARGUMENTS[1], column="text")
        """,
        causal_lms["opt"],
        str(tmp_path / "out"),
    )
    assert read(tmp_path / "out")["text"].to_pylist() == texts


@pytest.mark.slow
def test_senteval_s_archive_is_fetched_once(hub: Any, client: Client, tmp_path: Path) -> None:
    archive(tmp_path / "senteval.tar", downstream__STS__x="1", downstream__MR__y="2")
    hub.seed("dataset", "princeton-nlp/datasets-for-simcse", tmp_path)
    found = client.run(
        """
        from st_prompteol.evaluation import senteval_folder
        RESULT["folders"] = [str(senteval_folder()), str(senteval_folder())]
        """
    )
    first, second = found["folders"]
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
def test_no_link_leads_a_push_out_of_the_folder(causal_lms: dict[str, str], tmp_path: Path, name: str) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("for nobody", encoding="utf-8")
    PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path / "model"))
    (tmp_path / "model" / name).symlink_to(secret)
    model = PromptEOL(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=f"'{name}' in .* is a link to .*secret', and nothing from outside"):
        push._Push(model, "alice/x", source=str(tmp_path / "model")).write_folder(tmp_path / "folder", None, None)


@pytest.mark.slow
def test_a_dry_run_needs_no_connection_and_leaves_out_what_no_save_writes(
    client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path))
    stays = ["optimizer.pt", "checkpoint-5/model.safetensors", ".env", ".git/config", "1_Pooling/.DS_Store", "token"]
    for name in (*stays, "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    result = client.run(
        """
        from typer.testing import CliRunner
        from st_prompteol.cli import app
        constants.HF_HUB_OFFLINE = True
        try:
            for option in ("--dry-run", "--branch=b"):
                done = CliRunner().invoke(app, ["push", ARGUMENTS[0], "alice/dry", option])
                RESULT[option] = [done.exit_code, done.stdout, done.stderr]
        finally:
            constants.HF_HUB_OFFLINE = False
        """,
        str(tmp_path),
    )
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
        result = client.run(
            """
            from datasets import load_dataset
            from huggingface_hub import hf_hub_download, metadata_load
            from peft import LoraConfig
            from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
            from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
            data_dir, results_dir, saved, output_dir = ARGUMENTS
            def evaluate(name, method):
                model = PromptEOL(name, device="cpu")
                tasks = ["STSBenchmark", "SICKRelatedness"]
                run_tasks(model, Run.of(model, name, method), data_dir, tasks, results_dir=results_dir)
                return model
            model = evaluate("tinyllamas/stories260k", "PromptEOL")
            model[0].model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
            triplets = load_dataset("nli/snli-triplets", split="train[:512]")
            options = SentenceTransformerTrainingArguments(
                output_dir=output_dir, max_steps=8, per_device_train_batch_size=64, learning_rate=3e-3,
                logging_steps=2, report_to="none", use_cpu=True, save_strategy="no", seed=1,
            )
            loss = MultipleNegativesRankingLoss(model)
            SentenceTransformerTrainer(model, options, train_dataset=triplets, loss=loss).train()
            model.eval().save(saved)
            RESULT["embeddings"] = embed(evaluate(saved, "PromptEOL + adapter"))
            options = CardOptions(license="mit", language="en", results_dir=results_dir)
            RESULT["files"] = list(push_to_hub(saved, "alice/tuned", options).files)
            card = ModelCard.load("alice/tuned")
            card.validate()
            RESULT["card"] = str(card)
            RESULT["metadata"] = metadata_load(hf_hub_download("alice/tuned", "README.md"))
            for block in re.findall(r"^```python\\n(.*?)^```", card.text, flags=re.M | re.S):
                exec(block, {})
            """,
            str(shared / "senteval"),
            *(str(tmp_path / name) for name in ("results", "saved", "run")),
        )
        metadata = result["metadata"]
        assert (metadata["base_model"], metadata["base_model_relation"]) == ("tinyllamas/stories260k", "adapter")
        assert (metadata["library_name"], metadata["license"]) == ("sentence-transformers", "mit")
        assert len(metadata["model-index"][0]["results"]) == 2
        assert "generated_from_trainer" in metadata["tags"]
        for part in ("| alice/tuned | this model |", "PromptEOL, no training", "### Training Logs"):
            assert part in result["card"]
        assert str(tmp_path) not in result["card"]
        assert ".eval_results/datasets-for-simcse.yaml" in result["files"]

        scored = client.run(
            """
            import mteb
            model = mteb.get_model("alice/tuned", device="cpu")
            results = mteb.evaluate(model, [mteb.get_task("STS12")], cache=None)
            RESULT["score"], RESULT["embeddings"] = results.task_results[0].get_score(), embed(model.model)
            """,
            without_us=True,
        )
        client.close()
    assert close(scored["embeddings"], result["embeddings"])
    assert 0 < scored["score"] < 1
