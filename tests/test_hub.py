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
import torch
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

from st_prompteol import TEMPLATES, PromptEOL
from st_prompteol.cli import app
from st_prompteol.hub import push
from st_prompteol.hub.facts import CardOptions
from st_prompteol.hub.upload import check_no_secrets, select_files

from .conftest import SENTENCES, build_senteval
from .hubserver import Hub
from .test_adapters import peft_oracle, publish_adapter

ROOT = Path(__file__).resolve().parents[1]
TOKENS = {"hf_AliceSecretWrite": "alice"}
READ_TOKENS = {"hf_AliceSecretRead": "alice"}
WRITE, READ, WRONG = "hf_AliceSecretWrite", "hf_AliceSecretRead", "hf_NobodyKnowsThis"

# Code is sent to processes that live as long as the tests: importing everything takes seconds.
LOOP = """
import contextlib, io, json, logging, os, sys, time, traceback
if sys.argv[1] == "without us":
    sys.modules["st_prompteol"] = None
from sentence_transformers import SentenceTransformer
for line in sys.stdin:
    request = json.loads(line)
    result, printed = {}, io.StringIO()
    names = {**globals(), "RESULT": result, "SENTENCES": request["sentences"], "ARGUMENTS": request["arguments"]}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(request["code"], names)
    except Exception:
        result = {"traceback": traceback.format_exc()}
    print("ANSWER" + json.dumps({"result": result, "printed": printed.getvalue()}), flush=True)
"""


class Client:
    """Processes whose Hub is the stand-in: the client library reads its environment once, when it is imported."""

    def __init__(self, hub: Any, folder: Path, inside: Sequence[str] = (), **environment: str) -> None:
        self.hub, self.folder, self.inside, self.environment = hub, folder, inside, environment
        self.output = ""
        self._processes: dict[tuple[Any, ...], subprocess.Popen[str]] = {}

    def run(
        self,
        code: str,
        *arguments: str,
        home: str = "home",
        xet: bool = False,
        offline: bool = False,
        without_us: bool = False,
    ) -> dict[str, Any]:
        key = (home, xet, offline, without_us)
        if key not in self._processes:
            self._processes[key] = self._start(*key)
        process = self._processes[key]
        assert process.stdin is not None
        assert process.stdout is not None
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

    def _start(self, home: str, xet: bool, offline: bool, without_us: bool) -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = {
            **kept,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / home),
            "HF_TOKEN": WRITE,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
            **({"HF_HUB_OFFLINE": "1"} if offline else {}),
            **self.environment,
        }
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        with (self.folder / "errors").open("a", encoding="utf-8") as errors:
            return subprocess.Popen(
                [*self.inside, sys.executable, "-c", LOOP, "without us" if without_us else "with us"],
                env=environment,
                cwd=work,
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
def hub(causal_lms: dict[str, str]) -> Iterator[Any]:
    server = Hub(tokens=TOKENS, read_tokens=READ_TOKENS, orgs={"alice": ("lab",)})
    server.seed("model", "tiny/llama", causal_lms["llama"])
    server.trouble = Trouble(server)
    with server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("client"))
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
from st_prompteol import Demonstration, PromptEOL, push_to_hub
model = PromptEOL("tiny/llama", demonstrations=[Demonstration("It rains.", "Weather")], layer=-2)
RESULT["full"] = model.encode(SENTENCES).tolist()
report = push_to_hub(model, "alice/full", license="mit")
RESULT["full_commit"], RESULT["files"] = report.commit, report.files
model = PromptEOL("bob/adapter")
RESULT["adapter"] = model.encode(SENTENCES).tolist()
report = push_to_hub(model, "alice/adapter", private=True, tag="v1", merge_to="lab/merged")
RESULT["adapter_commit"], RESULT["merged_commit"] = report.commit, report.merged.commit
"""
OPEN_ALL = """
for name in ("alice/full", "alice/adapter", "lab/merged"):
    RESULT[name] = SentenceTransformer(name, device="cpu").encode(SENTENCES).tolist()
"""


def test_a_stranger_opens_what_was_pushed_from_a_cold_cache_and_then_offline(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/adapter", binary=True)
    pushed = client.run(
        PUSH_BOTH
        + """
opened = PromptEOL("alice/adapter", revision="v1")
RESULT["again"] = opened.encode(SENTENCES).tolist()
RESULT["cached"] = PromptEOL("alice/adapter", local_files_only=True, revision="v1").encode(SENTENCES).tolist()
# the card's own code
import re
from huggingface_hub import ModelCard
for name in ("alice/full", "alice/adapter"):
    card = ModelCard.load(name)
    card.validate()
    blocks = re.findall(r"^```python\\n(.*?)^```", card.text, flags=re.M | re.S)
    RESULT[f"blocks of {name}"] = len(blocks)
    for block in blocks:
        exec(block, {})
"""
    )
    assert close(pushed["again"], pushed["adapter"])
    assert close(pushed["cached"], pushed["adapter"])
    assert (pushed["blocks of alice/full"], pushed["blocks of alice/adapter"]) == (1, 2)
    assert hub.repos["model", "alice/adapter"].private
    assert hub.repos["model", "alice/adapter"].tags == {"v1": pushed["adapter_commit"]}
    assert hub.repos["model", "alice/full"].branches == {"main": pushed["full_commit"]}
    assert len(hub.repos["model", "alice/full"].commits) == 2  # the Hub's own first one, and ours
    assert set(pushed["files"]) == set(head(hub, "alice/full")) - {".gitattributes"}
    config = json.loads(text_of(hub, "alice/adapter", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "tiny/llama"
    assert config["revision"] == hub.repos["model", "tiny/llama"].branches["main"]

    cold = client.run(OPEN_ALL, home="stranger", without_us=True)
    warm = client.run(OPEN_ALL, home="stranger", offline=True, without_us=True)
    for opened in (cold, warm):
        assert close(opened["alice/full"], pushed["full"])
        assert close(opened["alice/adapter"], pushed["adapter"])
        assert close(opened["lab/merged"], pushed["adapter"])

    for repo in hub.repos.values():
        for file in repo.commits[repo.branches["main"]]["files"].values():
            assert not any(token.encode() in hub.read(file) for token in (WRITE, READ))


def failure(code: str, call: str) -> str:
    """Code that runs a call and keeps how it failed."""
    return f"""
try:
    {code}
    RESULT[{call!r}] = "nothing was wrong"
except Exception as error:
    RESULT[{call!r}] = f"{{type(error).__name__}}: {{error}}"
"""


def test_what_must_not_be_pushed_is_refused_in_one_sentence(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    local = publish_adapter(causal_lms["llama"], tmp_path / "local")
    hub.seed("model", "alice/other", causal_lms["opt"])
    hub.create("model", "alice/public").tags["v1"] = "0" * 40
    hub.create("model", "bob/private", private=True)
    hub.seed("model", "bob/gated", causal_lms["llama"]).gated = {"bob"}
    seed_adapter(hub, tmp_path / "on-gated", causal_lms, "alice/on-gated", base="bob/gated")
    calls = {
        "no token": 'push_to_hub(model, "alice/x", token=False)',
        "wrong token": f'push_to_hub(model, "alice/x", token={WRONG!r})',
        "read token": f'push_to_hub(model, "alice/x", token={READ!r})',
        "foreign namespace": 'push_to_hub(model, "bob/x")',
        "foreign kind": 'push_to_hub(model, "alice/other")',
        "public": 'push_to_hub(model, "alice/public", private=True)',
        "exists": 'model.push_to_hub("alice/public")',
        "tag": 'push_to_hub(model, "alice/public", tag="v1")',
        "pull request to nothing": 'push_to_hub(model, "alice/nothing", create_pr=True)',
        "pull request with tag": 'push_to_hub(model, "alice/public", create_pr=True, tag="v2")',
        "name": 'push_to_hub(model, "alice/a b")',
        "nothing to merge": 'push_to_hub(model, "alice/x", merge_to="alice/y")',
        "base in a folder": f'push_to_hub({local!r}, "alice/x")',
        "licence": 'push_to_hub(model, "alice/x", license="mine: <b>", dry_run=True)',
        "language": 'push_to_hub(model, "alice/x", language="English", dry_run=True)',
        "dataset": 'push_to_hub(model, "alice/x", datasets=["a\\nb"], dry_run=True)',
        "results": f'push_to_hub(model, "alice/x", results_dir={str(tmp_path / "none")!r}, dry_run=True)',
        "opening a private one": 'PromptEOL("bob/private")',
        "opening a gated one": 'PromptEOL("bob/gated")',
        "opening a gated one without a token": 'PromptEOL("bob/gated", token=False)',
        "opening an adapter of a gated one": 'PromptEOL("alice/on-gated")',
        "pushing an adapter of a gated one": f'push_to_hub({local!r}, "alice/x", base_model="bob/gated")',
        "opening with a wrong token": f'PromptEOL("tiny/llama", token={WRONG!r}, revision="main")',
    }
    code = "from st_prompteol import PromptEOL, push_to_hub\nmodel = PromptEOL('tiny/llama')\n"
    answers = client.run(code + "".join(failure(call, name) for name, call in calls.items()))
    for name, sentence in {
        "no token": "PermissionError: 'alice/x' cannot be pushed to without a token: log in",
        "wrong token": "PermissionError: 'alice/x' was not pushed to: the Hub does not know the token (401)",
        "read token": "PermissionError: 'alice/x' cannot be pushed to with a token that may only read",
        "foreign namespace": "PermissionError: 'bob/x' was not pushed to: the token may not write there (403)",
        "foreign kind": "FileExistsError: 'alice/other' already holds a model that is not a PromptEOL",
        "public": "FileExistsError: 'alice/public' exists and is public",
        "exists": "FileExistsError: 'alice/public' exists: choose another name",
        "tag": "FileExistsError: 'alice/public' has a tag 'v1'",
        "pull request to nothing": "FileNotFoundError: 'alice/nothing' does not exist, so it takes no pull request",
        "pull request with tag": "ValueError: A pull request goes to main",
        "name": "ValueError: 'alice/a b' cannot be the name of a repository",
        "nothing to merge": "ValueError: 'tiny/llama' has no adapter to merge",
        "base in a folder": "ValueError: The adapter",
        "licence": "ValueError: 'mine: <b>' is no identifier of a licence",
        "language": "ValueError: 'English' is no code of a language",
        "dataset": "ValueError: 'a\\nb' cannot be the name of a repository",
        "results": "FileNotFoundError: ",
        "opening a private one": "FileNotFoundError: 'bob/private' is neither a folder nor a repository",
        "opening a gated one": "PermissionError: 'bob/gated' is gated: ask for access on its page",
        "opening a gated one without a token": "PermissionError: 'bob/gated' is gated: ask for access on its page",
        "opening an adapter of a gated one": "FileNotFoundError: The adapter 'alice/on-gated' was trained on "
        "'bob/gated', which cannot be opened: put the base model there, log in if it is gated",
        "pushing an adapter of a gated one": "PermissionError: 'bob/gated' is gated: ask for access on its page",
        "opening with a wrong token": "PermissionError: 'tiny/llama'",
    }.items():
        assert answers[name].startswith(sentence), (name, answers[name])
        assert "\n" not in answers[name]
    assert ("model", "alice/x") not in hub.repos
    assert ("model", "bob/x") not in hub.repos
    assert set(head(hub, "alice/public")) == {".gitattributes"}


FULL_DISK = """
import tempfile
from pathlib import Path
from st_prompteol import PromptEOL, push_to_hub
home, staging = Path(os.environ["HF_HOME"]), Path(os.environ["TMPDIR"])
def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
def fill(folder, size):  # all but so many bytes
    (folder / "ballast").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - size))
model = PromptEOL(ARGUMENTS[0], device="cpu")
fill(staging, 30_000)
try:
    push_to_hub(model, "alice/full-disk")
except Exception as error:
    RESULT["push"] = f"{type(error).__name__}: {error}"
RESULT["staged"] = left(staging)
(staging / "ballast").unlink()
RESULT["again"] = sorted(push_to_hub(model, "alice/full-disk").files)
home.mkdir(exist_ok=True)
fill(home, 50_000)
try:
    PromptEOL("tiny/llama", device="cpu")
except Exception as error:
    RESULT["open"] = f"{type(error).__name__}: {error}"
RESULT["cached"] = [str(path) for path in home.rglob("*") if path.suffix in (".safetensors", ".incomplete")]
(home / "ballast").unlink()
RESULT["embeddings"] = PromptEOL("tiny/llama", device="cpu").encode(SENTENCES).tolist()
"""


def test_a_full_disk_leaves_nothing_half_and_can_be_repeated(
    hub: Any, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)]
    inside = ["unshare", "--mount", "sh", "-c", f'{shlex.join(mount)} && mkdir {small}/tmp && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs to mount a small file system")
    client = Client(hub, tmp_path, inside=inside, TMPDIR=str(small / "tmp"))
    result = client.run(FULL_DISK, causal_lms["llama"], home="small/home")
    client.close()
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


COMMIT_IN_TROUBLE = """
import urllib.request
from pathlib import Path
import huggingface_hub
from st_prompteol.failures import explain_push
from st_prompteol.hub import upload
sleep, time.sleep = time.sleep, lambda seconds: None  # upstream's waits between its own tries, and ours
folder, repo_id = Path(ARGUMENTS[0]), "alice/model"
api = huggingface_hub.HfApi()
files, _ = upload.select_files(folder)
def commit():
    with explain_push(repo_id):
        upload.commit_folder(
            api, folder, files, repo_id, branch=None, create_pr=False, message="new", keep_card=False
        )
def trouble(at, lasting, how):
    urllib.request.urlopen(f"{api.endpoint}/_trouble/{at}/{lasting}/{how}").read()
def state():
    trouble(0, "once", "503")
    info = api.model_info(repo_id)
    return sorted(sibling.rfilename for sibling in info.siblings), len(api.list_repo_commits(repo_id))
trouble(99, "once", "503")
old, commits = state()
new = sorted(path.as_posix() for path in files)
RESULT.update(problems=[], old=0, new=0, requests=0)
for how in ("503", "500", "before", "after"):
    for lasting in ("lasting", "once"):
        for at in range(1, 30 if lasting == "lasting" else RESULT["requests"] + 1):
            trouble(at, lasting, how)
            failed = None
            try:
                commit()
            except Exception as error:
                failed = error
            now, count = state()
            where = [how, lasting, at, f"{type(failed).__name__}: {failed}", now]
            if now not in (old, new) or count > commits + 1 or (failed is None and now != new):
                RESULT["problems"].append(["half", *where])
            if failed is not None and (not isinstance(failed, ConnectionError) or lasting == "once"):
                RESULT["problems"].append(["failed", *where])
            RESULT["old" if now == old else "new"] += 1
            commit()
            if state() != (new, commits + 1):
                RESULT["problems"].append(["not repeatable", *where])
            if lasting == "lasting":
                if failed is None:
                    break
                RESULT["requests"] = max(RESULT["requests"], at)
time.sleep = sleep
"""


def test_a_server_that_fails_at_any_request_leaves_the_old_state_or_the_new_one(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    old = Path(publish_adapter(causal_lms["opt"], tmp_path / "old"))
    (old / "README.md").unlink()
    hub.trouble.repo_id, hub.trouble.old, hub.trouble.blobs = "alice/model", old, dict(hub.blobs)
    result = client.run(COMMIT_IN_TROUBLE, causal_lms["gpt2"])
    assert result["problems"] == []
    assert result["requests"] >= 6  # look, preupload, LFS batch, upload, verify, commit
    assert result["old"] > 0
    assert result["new"] > 0


def test_branches_pull_requests_dry_runs_and_another_model_in_the_place(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/another")
    hub.seed("model", "alice/old", tmp_path / "published")
    result = client.run(
        """
        from st_prompteol import PromptEOL, push_to_hub
        model = PromptEOL("tiny/llama")
        RESULT["dry"] = push_to_hub(model, "alice/new", dry_run=True).files
        RESULT["branch"] = push_to_hub(model, "alice/old", force=True, branch="dev").commit
        report = push_to_hub(model, "alice/old", force=True, create_pr=True)
        RESULT["pr"], RESULT["pr_commit"] = report.url, report.commit
        RESULT["model"] = model.encode(SENTENCES).tolist()
        RESULT["opened"] = PromptEOL("alice/old", revision="refs/pr/1").encode(SENTENCES).tolist()
        """
    )
    assert ("model", "alice/new") not in hub.repos
    assert "model.safetensors" in result["dry"]
    assert "adapter_model.safetensors" in head(hub, "alice/old")  # main is as it was
    assert "model.safetensors" not in head(hub, "alice/old")
    dev = head(hub, "alice/old", "dev")
    assert "model.safetensors" in dev
    assert "adapter_config.json" not in dev
    assert result["branch"] == hub.repos["model", "alice/old"].branches["dev"]
    assert hub.repos["model", "alice/old"].prs == {"refs/pr/1": result["pr_commit"]}
    assert result["pr"].endswith("/discussions/1")
    assert close(result["opened"], result["model"])


def test_results_of_a_model_from_the_hub_are_found_by_its_commit(hub: Any, client: Client, tmp_path: Path) -> None:
    result = client.run(
        """
        from st_prompteol import PromptEOL, build_model_card
        from st_prompteol.evaluation.results import Run
        from st_prompteol.evaluation.runner import run_tasks
        model = PromptEOL("tiny/llama", device="cpu")
        run = Run.of(model, "tiny/llama", "PromptEOL")
        run_tasks(model, run, ARGUMENTS[0], ["STSBenchmark"], results_dir="of-hub")
        RESULT["card"] = build_model_card(model, "alice/model", results_dir="of-hub").text
        """,
        str(build_senteval(tmp_path / "senteval")),
    )
    assert "| alice/model | this model |" in result["card"]


def test_a_quantised_model_is_published_as_such_and_opens(
    hub: Any, client: Client, causal_lms: dict[str, str]
) -> None:
    pytest.importorskip("bitsandbytes")
    result = client.run(
        """
        from st_prompteol import PromptEOL, push_to_hub
        model = PromptEOL(ARGUMENTS[0], quantization="nf4", device="cpu")
        RESULT["commit"] = push_to_hub(model, "alice/nf4", base_model="tiny/llama").commit
        """,
        causal_lms["opt-64"],
    )
    assert hub.repos["model", "alice/nf4"].branches["main"] == result["commit"]
    assert "base_model_relation: quantized" in text_of(hub, "alice/nf4", "README.md")
    assert json.loads(text_of(hub, "alice/nf4", "config.json"))["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


def test_an_adapter_stays_with_the_base_it_was_made_on_when_that_moves(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    from .conftest import build_causal_lm

    hub.seed("model", "tiny/moving", causal_lms["llama"])
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/bare", base="tiny/moving", binary=True)
    code = """
        from st_prompteol import PromptEOL
        logging.getLogger().handlers = [logging.StreamHandler(sys.stdout)]
        model = PromptEOL(ARGUMENTS[0])
        RESULT["embeddings"] = model.encode(SENTENCES).tolist()
        model.save(ARGUMENTS[1], create_model_card=False)
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


def test_xet_and_a_private_repository_without_its_token(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "xet"
    store.mkdir()
    other = Hub(tokens=TOKENS, xet_cas=str(store))
    other.seed("model", "tiny/llama", causal_lms["llama"])
    seed_adapter(other, tmp_path / "published", causal_lms, "bob/adapter", binary=True)
    with other:
        through_xet = Client(other, tmp_path)
        pushed = through_xet.run(
            """
            from st_prompteol import PromptEOL, push_to_hub
            model = PromptEOL("tiny/llama")
            push_to_hub(model, "alice/xet", private=True)
            RESULT["embeddings"] = model.encode(SENTENCES).tolist()
            model = PromptEOL("bob/adapter")
            push_to_hub(model, "alice/xet-adapter")
            RESULT["adapter"] = model.encode(SENTENCES).tolist()
            """,
            xet=True,
        )
        assert head(other, "alice/xet")["model.safetensors"]["xet"]
        assert head(other, "alice/xet-adapter")["adapter_model.safetensors"]["xet"]
        opened = through_xet.run(
            """
            RESULT["embeddings"] = SentenceTransformer("alice/xet", device="cpu").encode(SENTENCES).tolist()
            RESULT["adapter"] = SentenceTransformer("alice/xet-adapter", device="cpu").encode(SENTENCES).tolist()
            try:
                SentenceTransformer("alice/xet", token=False, cache_folder=ARGUMENTS[0])
            except Exception as error:
                RESULT["without"] = str(error)
            """,
            str(tmp_path / "cache"),
            home="stranger",
            xet=True,
            without_us=True,
        )
        through_xet.close()
    assert close(opened["embeddings"], pushed["embeddings"])
    assert close(opened["adapter"], pushed["adapter"])
    assert "without" in opened


@pytest.mark.slow
@pytest.mark.shared
def test_an_adapter_of_the_size_of_opt_125m_opens_from_a_bin_file_without_tokenizer(
    shared: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = OPTForCausalLM(OPTConfig())  # the defaults are those of facebook/opt-125m
    config = base.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (768, 12, 50272)
    base.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared / "tokenizers/opt" / name, tmp_path / "base" / name)
    server = Hub(tokens=TOKENS)
    server.seed("model", "facebook/opt-125m", tmp_path / "base")
    publish_adapter(str(tmp_path / "base"), tmp_path / "adapter", binary=True, target_modules=["q_proj", "v_proj"])
    adapter_config = tmp_path / "adapter/adapter_config.json"
    text = adapter_config.read_text(encoding="utf-8").replace(str(tmp_path / "base"), "facebook/opt-125m")
    adapter_config.write_text(text, encoding="utf-8")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.bin", "README.md",
    }  # fmt: skip
    server.seed("model", "user/adapter", tmp_path / "adapter")
    with server:
        client = Client(server, tmp_path)
        opened = client.run(
            """
            from st_prompteol import PromptEOL
            RESULT["embeddings"] = PromptEOL("user/adapter", device="cpu").encode(SENTENCES).tolist()
            """
        )
        client.close()
    rendered = [TEMPLATES["prompteol"].render(sentence) for sentence in SENTENCES]
    expected = peft_oracle(str(tmp_path / "base"), str(tmp_path / "adapter"), rendered)
    assert close(opened["embeddings"], expected)
    assert not close(PromptEOL(str(tmp_path / "base")).encode(SENTENCES), expected)  # the adapter does something


@pytest.mark.slow
@pytest.mark.shared
def test_a_fine_tuned_model_with_its_results_is_published_and_run_by_mteb(shared: Path, tmp_path: Path) -> None:
    server = Hub(tokens=TOKENS)
    server.seed_root(shared / "hub", json.loads((shared / "hub/revisions.json").read_text(encoding="utf-8")))
    with server:
        client = Client(server, tmp_path)
        result = client.run(
            """
            import re
            from datasets import load_dataset
            from peft import LoraConfig
            from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
            from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
            from huggingface_hub import ModelCard, metadata_load
            from st_prompteol import PromptEOL, push_to_hub
            from st_prompteol.evaluation.results import Run
            from st_prompteol.evaluation.runner import run_tasks
            data_dir, results_dir, saved = ARGUMENTS[0], ARGUMENTS[1], ARGUMENTS[2]
            base, tasks = "tinyllamas/stories260k", ["STSBenchmark", "SICKRelatedness"]
            model = PromptEOL(base, device="cpu")
            run_tasks(model, Run.of(model, base, "PromptEOL"), data_dir, tasks, results_dir=results_dir)
            model[0].model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
            triplets = load_dataset("nli/snli-triplets", split="train[:512]")
            options = SentenceTransformerTrainingArguments(
                output_dir=ARGUMENTS[3], max_steps=8, per_device_train_batch_size=64, learning_rate=3e-3,
                logging_steps=2, report_to="none", use_cpu=True, save_strategy="no", seed=1,
            )
            SentenceTransformerTrainer(
                model, options, train_dataset=triplets, loss=MultipleNegativesRankingLoss(model)
            ).train()
            model.eval()
            model.save(saved)
            model = PromptEOL(saved, device="cpu")
            run_tasks(model, Run.of(model, saved, "PromptEOL + adapter"), data_dir, tasks, results_dir=results_dir)
            report = push_to_hub(saved, "alice/tuned", results_dir=results_dir, license="mit", language="en")
            RESULT["files"] = list(report.files)
            RESULT["embeddings"] = model.encode(SENTENCES).tolist()
            card = ModelCard.load("alice/tuned")
            card.validate()
            RESULT["card"] = str(card)
            from huggingface_hub import hf_hub_download
            RESULT["metadata"] = metadata_load(hf_hub_download("alice/tuned", "README.md"))
            for block in re.findall(r"^```python\\n(.*?)^```", card.text, flags=re.M | re.S):
                exec(block, {})
            """,
            str(shared / "senteval"),
            str(tmp_path / "results"),
            str(tmp_path / "saved"),
            str(tmp_path / "run"),
        )
        (tmp_path / "card.md").write_text(result["card"], encoding="utf-8")
        metadata = result["metadata"]
        assert metadata["base_model"] == "tinyllamas/stories260k"
        assert metadata["base_model_relation"] == "adapter"
        assert metadata["library_name"] == "sentence-transformers"
        assert metadata["license"] == "mit"
        assert len(metadata["model-index"][0]["results"]) == 2
        assert "generated_from_trainer" in metadata["tags"]
        assert "| alice/tuned | this model |" in result["card"]
        assert "PromptEOL, no training" in result["card"]
        assert "### Training Logs" in result["card"]
        assert str(tmp_path) not in result["card"]
        assert ".eval_results/datasets-for-simcse.yaml" in result["files"]

        scored = client.run(
            """
            import mteb
            model = mteb.get_model("alice/tuned", device="cpu")
            results = mteb.evaluate(model, [mteb.get_task("STS12")], cache=None)
            RESULT["score"] = results.task_results[0].get_score()
            RESULT["embeddings"] = model.model.encode(SENTENCES).tolist()
            """,
            home="stranger",
            without_us=True,
        )
        client.close()
    assert close(scored["embeddings"], result["embeddings"])
    assert 0 < scored["score"] < 1


def test_what_only_its_owner_should_have_stays(tmp_path: Path) -> None:
    goes = [
        "model.safetensors",
        "1_Pooling/config.json",
        "README.md",
        ".eval_results/x.yaml",
        "special_tokens_map.json",
    ]
    stays = ["optimizer.pt", "checkpoint-5/model.safetensors", ".env", ".env.local", "prod.env", ".cache/x", "id_rsa"]
    stays += ["token", "hf_token.txt", "client_secret.json", "rng_state_0.pth", "training_args.bin", "results/a.json"]
    stays += ["1_Pooling/.DS_Store", "__pycache__/a.pyc", ".git/config", "scheduler.pt", "run.log", "wandb/x"]
    for name in (*goes, *stays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    kept, left_out = select_files(tmp_path)
    assert sorted(path.as_posix() for path in kept) == sorted(goes)
    assert sorted(path.as_posix() for path in left_out) == sorted([*stays, "link.json"])

    check_no_secrets(tmp_path, kept, "hf_own")
    (tmp_path / "README.md").write_text("use hf_own", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'README.md' would make your token public") as caught:
        check_no_secrets(tmp_path, kept, "hf_own")
    assert "hf_own" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["README.md", "curves.png", "LICENSE"])
def test_tokens_are_found_in_any_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    shaped = "hf_" + "a1" * 15  # put together here, or scanners would find it
    for secret, kind in ((shaped, "a Hugging Face token"), ("hf_own", "your token")):
        (tmp_path / name).write_bytes(f"use {secret} for it".encode(encoding))
        with pytest.raises(ValueError, match=f"'{name}' would make {kind} public") as caught:
            check_no_secrets(tmp_path, [Path(name)], "hf_own")
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["sk-learn-is-a-python-library-that-many-people-like-to-use", "half_" + "a1" * 15, "-----BEGIN PRIVATE KEY-----"],
)
def test_what_is_no_token_goes(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    check_no_secrets(tmp_path, [Path("README.md")], "hf_own")


@pytest.mark.parametrize("name", ["NOTICE.txt", "LICENSE", "curves.png"])
def test_no_link_leads_a_push_out_of_the_folder(causal_lms: dict[str, str], tmp_path: Path, name: str) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("for nobody", encoding="utf-8")
    PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path / "model"))
    (tmp_path / "model" / name).symlink_to(secret)
    model = PromptEOL(str(tmp_path / "model"))
    contents = push._Contents(model, str(tmp_path / "model"), str(tmp_path / "model"), CardOptions(), None, None, None)
    with pytest.raises(ValueError, match=f"'{name}' in .* is a link to .*secret', and nothing from outside"):
        push._write_folder(contents, push._Target("alice/x", dry_run=True), tmp_path / "folder")


def test_a_dry_run_needs_no_connection(causal_lms: dict[str, str], tmp_path: Path) -> None:
    PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path / "model"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["HF_TOKEN"] = WRITE
    command = [
        sys.executable,
        "-c",
        "from st_prompteol.cli import app; app()",
        "push",
        str(tmp_path / "model"),
        "alice/x",
    ]
    done = subprocess.run([*command, "--dry-run"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "files, " in done.stdout
    assert "would go to alice/x" in done.stdout
    assert "Only what is here was checked, and not what 'alice/x' holds" in done.stderr
    done = subprocess.run([*command, "--branch", "b"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "HF_HUB_OFFLINE is set" in done.stderr) == (2, True)


def test_several_adapters_over_one_base_are_listed(causal_lms: dict[str, str], tmp_path: Path) -> None:
    one = publish_adapter(causal_lms["llama"], tmp_path / "one", seed=1)
    two = publish_adapter(causal_lms["llama"], tmp_path / "two", seed=2)
    options = [argument for name, path in (("one", one), ("two", two)) for argument in ("--adapter", f"{name}={path}")]
    shown = CliRunner().invoke(app, ["info", causal_lms["llama"], "--device", "cpu", *options])
    assert "one, two (active)" in shown.output
    wrong = CliRunner().invoke(app, ["info", causal_lms["llama"], "--device", "cpu", "--adapter", "one"])
    assert wrong.exit_code == 2


WHOLE_PUSH_IN_TROUBLE = """
import shutil, urllib.request
from pathlib import Path
from huggingface_hub import HfApi, constants
from st_prompteol import PromptEOL, push_to_hub
from st_prompteol.hub import check, push
class Kept(check.CleanProcess):
    def __exit__(self, *error):
        pass
# the waits between tries, here and in the clean process, which all pushes share as it takes seconds to start
sleep, time.sleep = time.sleep, lambda seconds: None
path, os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"], ARGUMENTS[1] + os.pathsep + os.environ["PYTHONPATH"]
clean = Kept()
os.environ["PYTHONPATH"] = path
kept_class, push.CleanProcess = push.CleanProcess, lambda: clean
api, repo_id = HfApi(), "alice/model"
def trouble(at, how):
    return json.load(urllib.request.urlopen(f"{api.endpoint}/_trouble/{at}/lasting/{how}"))["count"]
def state():
    info = api.model_info(repo_id)
    return sorted(sibling.rfilename for sibling in info.siblings), len(api.list_repo_commits(repo_id))
def attempt():
    for folder in (constants.HF_HUB_CACHE, clean._folder.name):  # what was read from the Hub is read again
        shutil.rmtree(Path(folder, "models--alice--model"), ignore_errors=True)
    return push_to_hub(model, repo_id, force=True)
model = PromptEOL(ARGUMENTS[0], device="cpu")
old = None
RESULT.update(problems=[], requests=[], old=0, new=0)
try:
    for how in ("500", "before"):
        at = 0
        while True:
            at += 1
            trouble(at, how)
            failed = None
            try:
                report = attempt()
            except Exception as error:
                failed = error
            trouble(0, how)
            now, commits = state()
            if at == 1:
                old = now
            if failed is None:
                RESULT["requests"].append(at - 1)
                break
            where = [how, at, f"{type(failed).__name__}: {failed}", now]
            if not isinstance(failed, ConnectionError) or "\\n" in str(failed):
                RESULT["problems"].append(["failed", *where])
            is_old, is_new = (now, commits) == (old, 2), "modules.json" in now and commits == 3
            if is_old == is_new or is_new != ("but the check from the Hub failed" in str(failed)):
                RESULT["problems"].append(["half", *where])
            RESULT["old"] += is_old
            RESULT["new"] += is_new
            if sorted(attempt().files) != state()[0]:
                RESULT["problems"].append(["not repeatable", *where, state()])
finally:
    time.sleep, push.CleanProcess = sleep, kept_class
    check.CleanProcess.__exit__(clean, None, None, None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full model", "adapter"])
def test_a_whole_push_that_fails_at_any_request_leaves_the_old_state_or_the_new_one(
    hub: Any, client: Client, causal_lms: dict[str, str], tmp_path: Path, kind: str
) -> None:
    old = Path(publish_adapter(causal_lms["opt"], tmp_path / "old"))
    seed_adapter(hub, tmp_path / "published", causal_lms, "bob/whole")
    hub.trouble.repo_id, hub.trouble.old, hub.trouble.blobs = "alice/model", old, dict(hub.blobs)
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n", encoding="utf-8")
    source = causal_lms["qwen2"] if kind == "full model" else "bob/whole"
    result = client.run(WHOLE_PUSH_IN_TROUBLE, source, str(tmp_path))
    assert result["problems"] == []
    assert min(result["requests"]) > 15  # whoami, look, upload, commit, and those that open it from the Hub
    assert result["old"] >= 2 * 6
    assert result["new"] >= 2 * 6
