"""Uploading a folder in one commit: checks of its content and of the repository, and retries."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from st_prompteol.card.data import TAG
from st_prompteol.failures import may_pass, retrying, was_turned_away
from st_prompteol.saved.saving import is_saved

# Files of models of any type
_OF_A_MODEL = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack|py)$|^config\.json$")
_HF_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def files_of(folder: Path) -> dict[str, int]:
    """Returns the files of a folder, relative path -> size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def check_no_secrets(folder: Path, token: str | bool | None) -> None:
    """Raises ValueError if a file other than the weights contains a Hugging Face token, without showing the token."""
    own = token if isinstance(token, str) else get_token()
    for name in files_of(folder):
        if name.endswith(".safetensors"):
            continue
        content = (folder / name).read_bytes()
        text = content + b"\n" + content.replace(b"\0", b"")  # ASCII in UTF-16 and UTF-32
        is_own = own and own.encode() in text
        if is_own or _HF_TOKEN.search(text):
            raise ValueError(
                f"{name!r} would make {'your token' if is_own else 'a Hugging Face token'} public: take it out of the "
                "model's template, card or configuration, and make a new one if it has been anywhere else."
            )


def look(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo | None:
    """Returns the Hub's information about a repository's branch, None if there is no such repository or branch."""
    try:
        return retrying(lambda: api.model_info(repo_id, revision=revision))
    except GatedRepoError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def names_in(state: ModelInfo | None) -> list[str]:
    """Returns the names of a repository's files."""
    return [file.rfilename for file in (state.siblings if state else None) or ()]


def check_kind(repo_id: str, state: ModelInfo, is_adapter: bool) -> None:
    """Raises FileExistsError if a repository contains another type of model than the one to push."""
    names = names_in(state)
    if not any(map(_OF_A_MODEL.search, names)):
        return
    if TAG not in (state.tags or ()):
        kind = "a model that is not a PromptEOL"
    elif ("adapter_config.json" in names) != is_adapter:
        kind = "a full model" if is_adapter else "an adapter"
    else:
        return
    raise FileExistsError(
        f"{repo_id!r} already holds {kind}, and this push is of {'an adapter' if is_adapter else 'a full model'}: "
        "choose another name, or replace it with --force (force=True)."
    )


def commit_folder(
    api: HfApi,
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
    keep_card: bool = False,
) -> CommitInfo:
    """Uploads a folder to a repository and removes the files of an older model, in one commit.

    A failure leaves the repository unchanged, and the call can be repeated.

    Args:
        api: The Hub client.
        folder: The folder.
        repo_id: The repository, which must exist.
        revision: The branch; created if it does not exist. Defaults to None: `main`.
        create_pr: Whether to open a pull request instead. Defaults to False.
        message: The title of the commit.
        keep_card: Whether to keep a README in the repository. Defaults to False.

    Returns:
        The commit information of `huggingface_hub`.
    """

    def attempt() -> CommitInfo:
        state = look(api, repo_id, revision)
        if state is None and revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
            state = look(api, repo_id, revision)
        present = names_in(state)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=state.sha if state else None,
            ignore_patterns="README.md" if keep_card and "README.md" in present else None,
            delete_patterns=[name for name in present if _is_of_a_model(name)],  # except the uploaded ones
        )

    # If the response to a request for a pull request is lost, it is unknown whether it was opened.
    return retrying(attempt, was_turned_away if create_pr else may_pass)


def _is_of_a_model(name: str) -> bool:
    return name.startswith(".eval_results/") or is_saved(name)
