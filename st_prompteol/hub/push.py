"""Pushing a model: checks its folder, uploads it in one commit, and checks it again from the Hub."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.hf_api import ModelInfo

from st_prompteol.evaluation.results import Run
from st_prompteol.failures import RETRY_WAITS, explain_opening, explain_push, retrying, status_of
from st_prompteol.hub.card import render_card
from st_prompteol.hub.check import CleanProcess, embed
from st_prompteol.hub.facts import collect_facts, run_of
from st_prompteol.hub.options import CardOptions, check_repository
from st_prompteol.hub.results import eval_result_files, read_results
from st_prompteol.hub.upload import (
    check_kind,
    check_no_secrets,
    commit_folder,
    files_of,
    look,
)
from st_prompteol.llm.cut import server_note
from st_prompteol.llm.loaded import adapters_of
from st_prompteol.model import PromptEOL

logger = logging.getLogger(__name__)

# Additional files to push from the folder that a model was loaded from
_COMPANIONS = ("curves.png", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")


@dataclass(frozen=True)
class PushReport:
    """The result of a push or a dry run.

    Args:
        repo_id: The repository.
        files: The files, name -> size in bytes.
        url: The URL of the commit or pull request. Defaults to None, for a dry run.
        commit: The commit hash. Defaults to None, for a dry run.
        merged: The report of the merged model. Defaults to None: not requested.

    Example:
        >>> report = PushReport("user/my-model", {"model.safetensors": 6_691_176})
        >>> print(report)  # of a dry run
        1 files, 6,691,176 bytes would go to user/my-model
    """

    repo_id: str
    files: dict[str, int]
    url: str | None = None
    commit: str | None = None
    merged: PushReport | None = None

    def __str__(self) -> str:
        """The URL of the commit, or the number and size of files in a dry run."""
        return self.url or f"{len(self.files)} files, {sum(self.files.values()):,} bytes would go to {self.repo_id}"


def push_to_hub(
    model: PromptEOL | str | os.PathLike[str],
    repo_id: str,
    card: CardOptions | None = None,
    *,
    source: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    force: bool = False,
    exist_ok: bool = True,
    replace_model_card: bool = True,
    commit_message: str | None = None,
    merge_to: str | None = None,
) -> PushReport:
    """Pushes a model to the Hub: a full model, or the adapter with tokenizer and template.

    Before the upload, the files are loaded with plain `SentenceTransformer` in a clean process, and their embeddings
    must be those of the model in memory. The same check is repeated from the Hub at the new commit. A push is a single
    commit, so readers see either the old or the new state. A failed push can be repeated.

    Args:
        model: The model, or the folder or repository to load it from.
        repo_id: The repository, `user/name` or `organization/name`; created if it does not exist.
        card: The author's additions to the card; results in `results_dir` are also pushed as `.eval_results`. Defaults
            to None: no additions.
        source: As in `build_model_card`; a license and curves in that folder are also pushed. Defaults to None.
        token: The access token of the Hub, as in `huggingface_hub`. Defaults to None: the token of the logged-in user.
        private: Whether a new repository is private. Defaults to None: the default of the account.
        revision: The branch to push to; created if it does not exist. Defaults to None: `main`.
        tag: A tag for the commit. Defaults to None.
        create_pr: Whether to open a pull request instead of pushing. Defaults to False.
        dry_run: Whether to only check and list the files; without a connection the repository is not checked. Defaults
            to False.
        force: Whether to replace a model of another type. Defaults to False.
        exist_ok: Whether the repository may exist. Defaults to True.
        replace_model_card: Whether to replace a README in the repository. Defaults to True.
        commit_message: The title of the commit. Defaults to None.
        merge_to: A repository for the full model with the adapter merged, pushed in addition. The model in memory is
            then merged. Defaults to None.

    Returns:
        A report of the push.

    Raises:
        ValueError: If the embeddings of the files differ, arguments contradict each other, metadata is invalid,
            results belong to another model, or a file contains a secret.
        PermissionError: If there is no token, or it has no write access.
        FileExistsError: If the repository contains another type of model, the tag exists, or the branch has changed
            since it was read.
        ConnectionError: If the Hub cannot be reached, or requests still fail after a few retries.

    Example:
        >>> card = CardOptions(license="apache-2.0", language="en")
        >>> push_to_hub("runs/mine", "user/my-model", card, dry_run=True)  # doctest: +SKIP
    """
    if create_pr and (revision not in (None, "main") or tag is not None):
        raise ValueError("A pull request goes to main and has no commit to tag yet: leave out the branch and the tag.")
    if not isinstance(model, PromptEOL):
        source = os.fspath(model)
        model = PromptEOL(source, token=token)
    card = card or CardOptions()
    push = _Push(
        model, repo_id, card, source, token=token, private=private, revision=revision, tag=tag, create_pr=create_pr,
        dry_run=dry_run, force=force, exist_ok=exist_ok, replace_model_card=replace_model_card,
        commit_message=commit_message,
    )  # fmt: skip
    if model.layer != -1:
        logger.warning("%s", server_note(model.layer))
    if merge_to is not None and not model.adapters:
        raise ValueError(f"{push.name!r} has no adapter to merge: leave out merge_to={merge_to!r}.")
    if merge_to == repo_id:
        raise ValueError(f"{repo_id!r} cannot hold both the adapter and the merged model: give merge_to another name.")
    # cheap checks come before expensive ones
    new_base = _new_base(model, push.name, card.base_model, token)
    push, state = push.check(is_adapter=bool(model.adapters))
    merged, merged_state = push, None
    if merge_to is not None:
        merged, merged_state = replace(push, repo_id=merge_to).check(is_adapter=False)
    run = run_of(model, source)  # the key of the results, also for the merged model
    read_results(card.results_dir, run, None)  # raises if the folder is missing or has no results of this model
    with CleanProcess() as clean:
        report = push.run(state, new_base, run, clean)
        if merge_to is None:
            return report
        model.merge_adapter()
        return replace(report, merged=merged.run(merged_state, None, run, clean))


def check_push(
    model: PromptEOL,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> None:
    """Raises all errors of a push that do not depend on the weights, for a check before training.

    Args:
        model: The model with its adapter.
        repo_id: As in `push_to_hub`.
        token: As in `push_to_hub`. Defaults to None.
        private: As in `push_to_hub`. Defaults to None.
        revision: As in `push_to_hub`. Defaults to None.

    Example:
        >>> check_push(PromptEOL("tiny"), "user/my-model")  # doctest: +SKIP
    """
    _new_base(model, repo_id, None, token)
    _Push(model, repo_id, token=token, private=private, revision=revision).check(is_adapter=bool(model.adapters))


@dataclass(frozen=True)
class _Push:
    """A push to one repository; its fields are the parameters of `push_to_hub`."""

    model: PromptEOL
    repo_id: str
    card: CardOptions = field(default_factory=CardOptions)
    source: str | None = None
    token: str | bool | None = None
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    force: bool = False
    exist_ok: bool = True
    replace_model_card: bool = True
    commit_message: str | None = None

    def __post_init__(self) -> None:
        check_repository(self.repo_id)

    @property
    def name(self) -> str:
        """The name of the model in errors."""
        return self.source or str(self.model[0].config.name_or_path)

    @property
    def api(self) -> HfApi:
        """The Hub client."""
        return HfApi(token=self.token)

    def check(self, *, is_adapter: bool) -> tuple[_Push, ModelInfo | None]:
        """Returns the push with the full repository name, and the state of the repository, None for a new one.

        Raises an error if the repository must not be pushed to. In a dry run without a connection it counts as new.
        """
        push = self
        try:
            with explain_push(self.repo_id):
                push = self._with_namespace()
                state = look(self.api, push.repo_id, None)
                if state is not None:
                    push._check_state(state, is_adapter)
        except ConnectionError as error:
            if not self.dry_run:
                raise
            logger.warning("Only what is here was checked, and not what %r holds: %s", push.repo_id, error)
            return push, None
        if state is None and self.create_pr:
            raise FileNotFoundError(f"{push.repo_id!r} does not exist, so it takes no pull request: push to it.")
        return push, state

    def run(
        self, state: ModelInfo | None, new_base: dict[str, str] | None, run: Run | None, clean: CleanProcess
    ) -> PushReport:
        """Writes, checks and uploads the folder, then checks the files on the Hub."""
        with explain_push(self.repo_id), tempfile.TemporaryDirectory(prefix="st_prompteol-") as temporary:
            folder = Path(temporary, "model")
            self.write_folder(folder, new_base, run)
            check_no_secrets(folder, self.token)
            expected = embed(self.model)
            if problem := clean.compare(self.model, expected, str(folder), token=self.token):
                raise ValueError(
                    f"{self.name!r} was not pushed, because a stranger would get something else than you have: "
                    f"{problem}."
                )
            report = PushReport(self.repo_id, files_of(folder))
            if self.dry_run:
                return report
            if state is None:
                retrying(lambda: self.api.create_repo(self.repo_id, private=self.private, exist_ok=True))
            commit = commit_folder(
                self.api,
                folder,
                self.repo_id,
                revision=self.revision,
                create_pr=self.create_pr,
                message=self.commit_message or f"Add PromptEOL {'adapter' if self.model.adapters else 'model'}",
                keep_card=not self.replace_model_card,
            )
        commit_id = str(commit.oid)
        for wait in (*RETRY_WAITS, None):
            problem = clean.compare(self.model, expected, self.repo_id, commit_id, self.token)
            if problem is None or wait is None or "does not open" not in problem:
                break
            time.sleep(wait)
        if problem:
            if isinstance(self.token, str):
                problem = problem.replace(self.token, "…")
            raise ConnectionError(
                f"{self.repo_id!r} was pushed to (commit {commit_id}), but the check from the Hub failed: {problem}. "
                "Push again to repeat it, or go back to the commit before."
            )
        if self.tag is not None:
            with explain_push(self.repo_id):
                retrying(lambda: self._put_tag(commit_id))
        return replace(report, url=str(commit.pr_url if self.create_pr else commit.commit_url), commit=commit_id)

    def write_folder(self, folder: Path, new_base: dict[str, str] | None, run: Run | None) -> None:
        """Saves the model with its card, results and additional files."""
        self.model.save(str(folder), create_model_card=False)
        config_file = folder / "adapter_config.json"
        if new_base and config_file.is_file():
            config = json.loads(config_file.read_text(encoding="utf-8")) | new_base
            config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        facts = collect_facts(
            self.model, self.repo_id, self.card, source=self.source, saved_in=folder, run=run, token=self.token
        )
        results = read_results(self.card.results_dir, run, facts.evaluated_base)
        if results is not None:
            (folder / ".eval_results").mkdir()
            for name, text in eval_result_files(results).items():
                (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(str(render_card(facts, results)), encoding="utf-8")
        for name in _COMPANIONS:
            companion = os.path.join(self.name, name)
            if os.path.islink(companion):
                raise ValueError(
                    f"{name!r} in {self.name!r} is a link to {os.path.realpath(companion)!r}, and nothing from "
                    "outside the folder is pushed: put a copy in its place, or remove it."
                )
            if os.path.isfile(companion):
                shutil.copyfile(companion, folder / name)

    def _with_namespace(self) -> _Push:
        """Adds the user's name to a repository name without one; raises PermissionError without write access."""
        if self.dry_run and "/" in self.repo_id:
            return self
        try:
            user = retrying(self.api.whoami)
        except (LocalTokenNotFoundError, ValueError):  # the latter for token=False
            raise PermissionError(
                f"{self.repo_id!r} cannot be pushed to without a token: log in with `hf auth login`, or pass token=…."
            ) from None
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError(
                f"{self.repo_id!r} cannot be pushed to with a token that may only read: make one with the role write."
            )
        return self if "/" in self.repo_id else replace(self, repo_id=f"{user['name']}/{self.repo_id}")

    def _check_state(self, state: ModelInfo, is_adapter: bool) -> None:
        if not self.exist_ok:
            raise FileExistsError(f"{self.repo_id!r} exists: choose another name, or allow it by exist_ok=True.")
        if self.private and not state.private:
            raise FileExistsError(
                f"{self.repo_id!r} exists and is public: make it private on its page first, or leave out private."
            )
        branch = look(self.api, self.repo_id, self.revision) if self.revision else state
        if not self.force:
            check_kind(self.repo_id, branch or state, is_adapter)
        if self.tag is not None and (tagged := self._tagged()) and branch and tagged != branch.sha:
            raise FileExistsError(f"{self.repo_id!r} has a tag {self.tag!r} at {tagged[:12]}: choose another one.")

    def _tagged(self) -> str | None:
        refs = retrying(lambda: self.api.list_repo_refs(self.repo_id))
        return next((ref.target_commit for ref in refs.tags if ref.name == self.tag), None)

    def _put_tag(self, commit: str) -> None:
        try:
            self.api.create_tag(self.repo_id, tag=str(self.tag), revision=commit)
        except Exception as error:
            # a repeated push finds its own tag
            if status_of(error) != 409 or self._tagged() != commit:
                raise


def _new_base(model: PromptEOL, name: str, base_model: str | None, token: str | bool | None) -> dict[str, str] | None:
    """Returns the base model to write into `adapter_config.json`; raises ValueError if it is only a local folder."""
    if base_model is not None:
        with explain_opening(base_model):
            commit = retrying(lambda: HfApi(token=token).model_info(base_model)).sha
        return {"base_model_name_or_path": base_model, "revision": str(commit)}
    for adapter in adapters_of(model.body).values():
        base = str(adapter.base_model_name_or_path)
        if os.path.exists(base):
            raise ValueError(
                f"The adapter {name!r} sits on {base!r}, a folder that nobody else has: give `st-prompteol push` "
                "the repository that it is a copy of by --base-model (base_model=…), or merge and push the full model."
            )
    return None
