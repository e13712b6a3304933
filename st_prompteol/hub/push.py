"""Pushing a model: its folder is checked, sent in one commit, and checked again from the Hub."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from st_prompteol.cut import server_note
from st_prompteol.evaluation.results import Run
from st_prompteol.failures import explain_opening, explain_push, status_of
from st_prompteol.hub.card import render_card
from st_prompteol.hub.check import CleanProcess, embed
from st_prompteol.hub.facts import CardOptions, collect_facts, run_of
from st_prompteol.hub.measured import eval_result_files, read_results
from st_prompteol.hub.upload import (
    RETRY_WAITS,
    State,
    check_kind,
    check_no_secrets,
    commit_folder,
    look,
    retrying,
    select_files,
)
from st_prompteol.model import PromptEOL

logger = logging.getLogger(__name__)

# What goes along from the folder that a model was opened from, beside what a save writes
_COMPANIONS = ("curves.png", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")


@dataclass(frozen=True)
class PushReport:
    """What a push has done, or, of a dry run, would do.

    Args:
        repo_id: The repository.
        files: Its files, name -> bytes.
        left_out: Files that stay here.
        url: The page of the commit or pull request. None for a dry run.
        commit: The commit. None for a dry run.
        merged: The report of the merged model, if one was asked for.
    """

    repo_id: str
    files: dict[str, int]
    left_out: tuple[str, ...]
    url: str | None
    commit: str | None
    merged: PushReport | None = None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(self.files.values())


def push_to_hub(
    model: PromptEOL | str | os.PathLike[str],
    repo_id: str,
    *,
    source: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    force: bool = False,
    exist_ok: bool = True,
    replace_model_card: bool = True,
    commit_message: str | None = None,
    merge_to: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    hardware: str | None = None,
    limits: str | None = None,
    results_dir: str | os.PathLike[str] | None = None,
) -> PushReport:
    """Publishes a model: a full one, or the adapter with tokenizer and template.

    Before anything is sent, the files are opened by plain `SentenceTransformer` in a clean process and must embed as
    the model in memory does; afterwards the same is done from the Hub, at the new commit. There is one commit: a
    reader sees the old state or the new one. A failed push can be repeated.

    Args:
        model: The model, or the folder or repository to open it from.
        repo_id: The repository, `user/name` or `organisation/name`; made if it does not exist.
        source: As in `build_model_card`; a licence and curves that lie in that folder go along. Defaults to None.
        token: As in `huggingface_hub`. Defaults to None: the one that is logged in.
        private: Whether a new repository is private. Defaults to None: as the account says.
        branch: Branch to push to, made if it does not exist. Defaults to None: `main`.
        tag: Tag to put on the commit. Defaults to None.
        create_pr: Whether to open a pull request instead of pushing. Defaults to False.
        dry_run: Whether to check and list only; without a connection the repository is not looked at. Defaults to
            False.
        force: Whether to replace a model of another kind. Defaults to False.
        exist_ok: Whether the repository may exist. Defaults to True.
        replace_model_card: Whether a README that is there is replaced. Defaults to True.
        commit_message: Title of the commit. Defaults to None.
        merge_to: Repository for the full model with the adapter merged, as well. Defaults to None. The model in memory
            is merged then.
        base_model: The repository of the base LLM, where the adapter or the model was made on a copy in a folder.
            Defaults to None.
        license: As in `build_model_card`. Defaults to None.
        language: As in `build_model_card`. Defaults to None.
        datasets: As in `build_model_card`. Defaults to None.
        hardware: As in `build_model_card`. Defaults to None.
        limits: As in `build_model_card`. Defaults to None.
        results_dir: As in `build_model_card`; results go along as `.eval_results` too. Defaults to None.

    Returns:
        What was pushed.

    Raises:
        ValueError: If the files do not embed as the model does, arguments contradict each other, metadata are invalid,
            results are of another model, or a file holds a secret.
        PermissionError: If there is no token, or it may not write there.
        FileExistsError: If the repository holds another kind of model, the tag exists, or someone else just pushed.
        ConnectionError: If the Hub cannot be reached, or is in trouble for longer than a few tries.
    """
    if create_pr and (branch not in (None, "main") or tag is not None):
        raise ValueError("A pull request goes to main and has no commit to tag yet: leave out branch and tag.")
    options = CardOptions(base_model, license, language, datasets, hardware, limits)
    if not isinstance(model, PromptEOL):
        source = os.fspath(model)
        model = PromptEOL(source, token=token)
    name = source or str(model[0].config.name_or_path)
    if model.layer != -1:
        logger.warning("%s", server_note(model.layer))
    if merge_to is not None and not model.adapters:
        raise ValueError(f"{name!r} has no adapter to merge: leave out merge_to={merge_to!r}.")
    if merge_to == repo_id:
        raise ValueError(f"{repo_id!r} cannot hold both the adapter and the merged model: give merge_to another name.")
    contents = _Contents(
        model, name, source, options, _new_base(model, name, base_model, token), run_of(model, source), results_dir
    )
    target = _Target(
        repo_id, token, private, branch, tag, create_pr, dry_run, force, exist_ok, replace_model_card, commit_message
    )
    with CleanProcess() as clean:
        report = _push(contents, target, clean)
        if merge_to is None:
            return report
        model.merge_adapter()
        return replace(report, merged=_push(contents, replace(target, repo_id=merge_to), clean))


def check_push(
    model: PromptEOL,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    branch: str | None = None,
) -> None:
    """Raises what a push would raise whatever is in the weights, so that it is met before they are trained.

    Args:
        model: The model, with its adapter on it.
        repo_id: As in `push_to_hub`.
        token: As in `push_to_hub`. Defaults to None.
        private: As in `push_to_hub`. Defaults to None.
        branch: As in `push_to_hub`. Defaults to None.
    """
    _check_base(model, repo_id)
    api = HfApi(token=token)
    with explain_push(repo_id):
        target = _with_namespace(api, _Target(repo_id, token, private, branch))
        _check_target(api, target, bool(model.adapters))


@dataclass(frozen=True)
class _Contents:
    """What goes: the model, what errors call it, and what `push_to_hub` was told to say of it.

    Args:
        new_base: What adapters name as their base from now on. None: what they name already.
        run: What results are filed under, of the merged model too.
    """

    model: PromptEOL
    name: str
    source: str | None
    options: CardOptions
    new_base: dict[str, str] | None
    run: Run | None
    results_dir: str | os.PathLike[str] | None


@dataclass(frozen=True)
class _Target:
    """Where a model goes, and how: the parameters of `push_to_hub`."""

    repo_id: str
    token: str | bool | None = None
    private: bool | None = None
    branch: str | None = None
    tag: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    force: bool = False
    exist_ok: bool = True
    replace_model_card: bool = True
    commit_message: str | None = None


def _push(contents: _Contents, target: _Target, clean: CleanProcess) -> PushReport:
    api, model = HfApi(token=target.token), contents.model
    state = None
    try:
        with explain_push(target.repo_id):
            target = _with_namespace(api, target)
            state = _check_target(api, target, bool(model.adapters))
    except ConnectionError as error:
        if not target.dry_run:
            raise
        logger.warning("Only what is here was checked, and not what %r holds: %s", target.repo_id, error)
    expected = embed(model)
    with explain_push(target.repo_id), tempfile.TemporaryDirectory(prefix="st_prompteol-") as temporary:
        folder = Path(temporary, "model")
        _write_folder(contents, target, folder)
        files, left_out = select_files(folder)
        check_no_secrets(folder, files, target.token)
        if problem := clean.compare(model, expected, str(folder), token=target.token):
            raise ValueError(
                f"{contents.name!r} was not pushed, because a stranger would get something else than you have: "
                f"{problem}."
            )
        sizes = {path.as_posix(): (folder / path).stat().st_size for path in files}
        report = PushReport(target.repo_id, sizes, tuple(path.as_posix() for path in left_out), None, None)
        if target.dry_run:
            return report
        if state is None and not target.create_pr:
            retrying(lambda: api.create_repo(target.repo_id, private=target.private, exist_ok=True))
        commit = commit_folder(
            api,
            folder,
            files,
            target.repo_id,
            branch=target.branch,
            create_pr=target.create_pr,
            message=target.commit_message or f"Add PromptEOL {'adapter' if model.adapters else 'model'}",
            keep_card=not target.replace_model_card,
        )
    _check_pushed(
        lambda: clean.compare(model, expected, target.repo_id, str(commit.oid), target.token), target, commit
    )
    if target.tag is not None:
        with explain_push(target.repo_id):
            retrying(lambda: _tag(api, target, str(commit.oid)))
    url = commit.pr_url if target.create_pr else commit.commit_url
    return replace(report, url=str(url), commit=str(commit.oid))


def _new_base(model: PromptEOL, name: str, base_model: str | None, token: str | bool | None) -> dict[str, str] | None:
    """Returns what adapters shall name as their base; raises ValueError if only this machine has the one they name."""
    if base_model is None:
        _check_base(model, name)
        return None
    with explain_opening(base_model):
        commit = retrying(lambda: HfApi(token=token).model_info(base_model)).sha
    return {"base_model_name_or_path": base_model, "revision": str(commit)}


def _check_base(model: PromptEOL, name: str) -> None:
    for adapter in getattr(model[0].model, "peft_config", {}).values():
        base = str(adapter.base_model_name_or_path)
        if os.path.exists(base):
            raise ValueError(
                f"The adapter {name!r} sits on {base!r}, a folder that nobody else has: give `st-prompteol push` "
                "the repository that it is a copy of by --base-model (base_model=…), or merge and push the full model."
            )


def _with_namespace(api: HfApi, target: _Target) -> _Target:
    """Puts the user's name in front of a bare one, and meets a missing or read-only token before any work is done."""
    if target.dry_run and "/" in target.repo_id:
        return target
    try:
        user = retrying(lambda: api.whoami())
    except (LocalTokenNotFoundError, ValueError):  # the latter for token=False
        raise PermissionError(
            f"{target.repo_id!r} cannot be pushed to without a token: log in with `hf auth login`, or pass token=…."
        ) from None
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(
            f"{target.repo_id!r} cannot be pushed to with a token that may only read: make one with the role write."
        )
    return target if "/" in target.repo_id else replace(target, repo_id=f"{user['name']}/{target.repo_id}")


def _check_target(api: HfApi, target: _Target, is_adapter: bool) -> State | None:
    """Returns the state of the repository, None for a new one; raises for what must not be pushed to."""
    state = look(api, target.repo_id, None)
    if state is None:
        if target.create_pr:
            raise FileNotFoundError(f"{target.repo_id!r} does not exist, so it takes no pull request: push to it.")
        return None
    if not target.exist_ok:
        raise FileExistsError(f"{target.repo_id!r} exists: choose another name, or allow it by exist_ok=True.")
    if target.private and not state.private:
        raise FileExistsError(
            f"{target.repo_id!r} exists and is public: make it private on its page first, or leave out private."
        )
    branch = look(api, target.repo_id, target.branch) if target.branch else state
    if not target.force:
        check_kind(target.repo_id, branch or state, is_adapter)
    if target.tag is not None and (tagged := _tagged(api, target)) and branch and tagged != branch.commit:
        raise FileExistsError(f"{target.repo_id!r} has a tag {target.tag!r} at {tagged[:12]}: choose another one.")
    return state


def _write_folder(contents: _Contents, target: _Target, folder: Path) -> None:
    """Saves the model with its card, results and the files that go along."""
    model, source = contents.model, contents.source or contents.name
    model.save(str(folder), create_model_card=False)
    config_file = folder / "adapter_config.json"
    if contents.new_base and config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8")) | contents.new_base
        config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    facts = collect_facts(
        model, target.repo_id, contents.source, contents.options, run=contents.run, token=target.token
    )
    measured = None
    if contents.results_dir is not None:
        measured = read_results(contents.results_dir, facts.run, facts.evaluated_base)
        (folder / ".eval_results").mkdir()
        for name, text in eval_result_files(measured).items():
            (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(str(render_card(facts, measured)), encoding="utf-8")
    for name in _COMPANIONS:
        companion = os.path.join(source, name)
        if os.path.islink(companion):
            raise ValueError(
                f"{name!r} in {source!r} is a link to {os.path.realpath(companion)!r}, and nothing from outside the "
                "folder is pushed: put a copy in its place, or remove it."
            )
        if os.path.isfile(companion):
            shutil.copyfile(companion, folder / name)


def _check_pushed(compare: Callable[[], str | None], target: _Target, commit: CommitInfo) -> None:
    """Raises if what is on the Hub now does not embed as the model in memory does."""
    for wait in (*RETRY_WAITS, None):
        problem = compare()
        if problem is None:
            return
        if wait is None or "does not open" not in problem:
            break
        time.sleep(wait)
    if isinstance(target.token, str) and problem:
        problem = problem.replace(target.token, "…")
    raise ConnectionError(
        f"{target.repo_id!r} was pushed to (commit {commit.oid}), but the check from the Hub failed: {problem}. Push "
        "again to repeat it, or go back to the commit before."
    )


def _tagged(api: HfApi, target: _Target) -> str | None:
    refs = retrying(lambda: api.list_repo_refs(target.repo_id))
    return next((ref.target_commit for ref in refs.tags if ref.name == target.tag), None)


def _tag(api: HfApi, target: _Target, commit: str) -> None:
    try:
        api.create_tag(target.repo_id, tag=str(target.tag), revision=commit)
    except Exception as error:
        # a push that is repeated finds its own tag
        if status_of(error) != 409 or _tagged(api, target) != commit:
            raise
