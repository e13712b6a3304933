"""One commit: which files of a folder go, what must not, the state they replace, and trying again."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from st_prompteol.failures import may_pass, retry_after, was_turned_away
from st_prompteol.hub.facts import TAG
from st_prompteol.model import SAVED_NAMES

T = TypeVar("T")

# Seconds before each further try of a request that may pass
RETRY_WAITS = (1.0, 4.0, 16.0)
# What a folder of a model may hold and nobody else should get: names of files and folders at any depth
LEFT_OUT = (
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "training_args.bin", "global_step*",
    "checkpoint-*", "runs", "wandb", "mlruns", "results", "logs", "events.out.tfevents.*", "*.log", "*.tmp", "*.lock",
    ".cache", "__pycache__", "*.pyc", ".git", ".hg", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints", ".venv",
    "*.damaged", "*.swp", "*~",
    ".env*", "*.env", ".netrc", "_netrc", ".npmrc", ".pypirc", ".ssh", ".aws", "id_rsa*", "id_ed25519*", "*.pem",
    "*.key", "*.p12", "*.pfx", "*.keystore", "token", "*token.txt", "stored_tokens", "*secret*", "*credential*",
    "*password*", ".bash_history", ".python_history",
)  # fmt: skip
_HIDDEN_KEPT = (".eval_results", ".gitattributes")
_HF_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class State:
    """A repository as it is.

    Args:
        commit: The commit that its branch is at.
        files: Its files.
        tags: The tags of its card.
        private: Whether it is private.
    """

    commit: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    private: bool


def select_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files of a folder that go to the Hub, and those that stay, relative to the folder."""
    kept: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            relative = path.relative_to(folder)
            (left_out if path.is_symlink() or _stays(relative) else kept).append(relative)
    return kept, left_out


def _stays(path: Path) -> bool:
    for part in path.parts:
        if part.startswith(".") and part not in _HIDDEN_KEPT:
            return True
        if part not in _HIDDEN_KEPT and any(fnmatch.fnmatch(part.lower(), pattern.lower()) for pattern in LEFT_OUT):
            return True
    return False


def check_no_secrets(folder: Path, files: list[Path], token: str | bool | None) -> None:
    """Raises ValueError if a file but the weights holds a Hugging Face token, without saying it."""
    own = token if isinstance(token, str) else get_token()
    for path in files:
        if path.suffix == ".safetensors":
            continue
        content = (folder / path).read_bytes()
        told = content + b"\n" + content.replace(b"\0", b"")  # as UTF-16 and 32 write ASCII
        found = (
            "your token" if own and own.encode() in told else "a Hugging Face token" if _HF_TOKEN.search(told) else ""
        )
        if found:
            raise ValueError(
                f"{path.as_posix()!r} would make {found} public: take it out of the model's template, card or "
                "configuration, and make a new one if it has been anywhere else."
            )


def look(api: HfApi, repo_id: str, revision: str | None) -> State | None:
    """Returns the state of a repository's branch, None if there is no such repository or branch."""
    try:
        info: ModelInfo = retrying(lambda: api.model_info(repo_id, revision=revision))
    except GatedRepoError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    return State(str(info.sha), files, tuple(info.tags or ()), bool(info.private))


def check_kind(repo_id: str, state: State, is_adapter: bool) -> None:
    """Raises FileExistsError if a repository holds another kind of model than is about to be pushed."""
    weights = [name for name in state.files if re.search(r"\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)$", name)]
    code = [name for name in state.files if name.endswith(".py")]
    if not weights and not code and "config.json" not in state.files:
        return
    if TAG not in state.tags:
        kind = "a model that is not a PromptEOL"
    elif ("adapter_config.json" in state.files) != is_adapter:
        kind = "a full model" if is_adapter else "an adapter"
    else:
        return
    raise FileExistsError(
        f"{repo_id!r} already holds {kind}, and is pushed {'an adapter' if is_adapter else 'a full model'}: choose "
        "another name, or replace it with --force (force=True)."
    )


def commit_folder(
    api: HfApi,
    folder: Path,
    files: list[Path],
    repo_id: str,
    *,
    branch: str | None,
    create_pr: bool,
    message: str,
    keep_card: bool,
) -> CommitInfo:
    """Puts files into a repository, and takes what is left of an older model out of it, in one commit.

    A failure leaves the repository as it was; the same call can be made again.

    Args:
        api: The client.
        folder: Where the files are.
        files: The files, relative to it.
        repo_id: The repository, which exists.
        branch: The branch, made if it does not exist. None is `main`.
        create_pr: Whether to open a pull request instead.
        message: The commit's title.
        keep_card: Whether a README that is there stays.

    Returns:
        What `huggingface_hub` says about the commit.
    """

    def attempt() -> CommitInfo:
        state = look(api, repo_id, branch)
        if state is None and branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
            state = look(api, repo_id, branch)
        present = state.files if state else ()
        sent = [path for path in files if not (keep_card and path.as_posix() == "README.md" in present)]
        names = {path.as_posix() for path in sent}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path.as_posix(), str(folder / path)) for path in sent),
            *(CommitOperationDelete(name) for name in present if name not in names and _is_of_a_model(name)),
        ]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=state.commit if state else None,
        )

    # Of a request for a pull request that got no clear answer, nobody knows whether it was opened.
    return retrying(attempt, was_turned_away if create_pr else may_pass)


def _is_of_a_model(name: str) -> bool:
    first, *rest = name.split("/")
    if first == ".eval_results":
        return True
    return SAVED_NAMES.fullmatch(first) is not None and (not rest or "." not in first)


def retrying(call: Callable[[], T], is_passing: Callable[[BaseException], bool] = may_pass) -> T:
    """Calls until it succeeds, a few times, as long as failures are of those that pass."""
    for wait in RETRY_WAITS:
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(max(wait, retry_after(error)))
    return call()
