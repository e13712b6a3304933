"""The repository to push to: what the Hub knows of it, the commit and its tag."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from st_prompteol.card.data import TAG
from st_prompteol.failures import explain_push, may_pass, retrying, status_of, was_turned_away
from st_prompteol.hub.options import PushOptions, check_repository
from st_prompteol.saved.saving import is_saved

logger = logging.getLogger(__name__)

# Files of models of any type
_OF_A_MODEL = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack|py)$|^config\.json$")


@dataclass(frozen=True)
class Repository:
    """A repository to push to.

    Args:
        repo_id: Its name.
        options: The options of the push. Defaults to those of a push without options.
        is_new: Whether it has to be created. Defaults to False.
    """

    repo_id: str
    options: PushOptions = field(default_factory=PushOptions)
    is_new: bool = False

    def __post_init__(self) -> None:
        check_repository(self.repo_id)

    def checked(self, *, is_adapter: bool) -> Repository:
        """Returns the repository as it is on the Hub, with the user's name added to a name without one.

        Raises an error if it must not be pushed to. In a dry run without a connection it counts as new.

        Args:
            is_adapter: Whether an adapter is pushed.
        """
        found, state = self, None
        try:
            with explain_push(self.repo_id):
                found = found._with_namespace()
                state = found._look()
                if state is not None:
                    found._check(state, is_adapter)
        except ConnectionError as error:
            if not self.options.dry_run:
                raise
            logger.warning("Only what is here was checked, and not what %r holds: %s", found.repo_id, error)
        else:
            if state is None and self.options.create_pr:
                raise FileNotFoundError(f"{found.repo_id!r} does not exist, so it takes no pull request: push to it.")
        return replace(found, is_new=state is None)

    def commit(self, folder: Path, message: str) -> CommitInfo:
        """Uploads a folder and removes the files of an older model, in one commit; creates a new repository first.

        A failure leaves the repository unchanged, and the call can be repeated.

        Args:
            folder: The folder.
            message: The title of the commit, unless the options have one.

        Returns:
            The commit information of `huggingface_hub`.
        """
        options = self.options
        if self.is_new:
            retrying(lambda: self._api.create_repo(self.repo_id, private=options.private, exist_ok=True))

        def attempt() -> CommitInfo:
            state = self._look(options.revision)
            if state is None and options.revision is not None:
                self._api.create_branch(self.repo_id, branch=options.revision, exist_ok=True)
                state = self._look(options.revision)
            present = _names_in(state)
            return self._api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                commit_message=options.commit_message or message,
                revision=options.revision,
                create_pr=options.create_pr,
                parent_commit=state.sha if state else None,
                ignore_patterns=None if options.replace_model_card or "README.md" not in present else "README.md",
                # except the uploaded ones
                delete_patterns=[name for name in present if name.startswith(".eval_results/") or is_saved(name)],
            )

        # If the response to a request for a pull request is lost, it is unknown whether it was opened.
        return retrying(attempt, was_turned_away if options.create_pr else may_pass)

    def put_tag(self, commit: str) -> None:
        """Puts the tag of the options, if there is one, on a commit."""
        tag = self.options.tag
        if tag is None:
            return
        with explain_push(self.repo_id):
            try:
                retrying(lambda: self._api.create_tag(self.repo_id, tag=tag, revision=commit))
            except Exception as error:
                # a repeated push finds its own tag
                if status_of(error) != 409 or self._tagged() != commit:
                    raise

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.options.token)

    def _look(self, revision: str | None = None) -> ModelInfo | None:
        """Returns the Hub's information about a branch, None if there is no such repository or branch."""
        try:
            return retrying(lambda: self._api.model_info(self.repo_id, revision=revision))
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def _with_namespace(self) -> Repository:
        """Adds the user's name to a repository name without one; raises PermissionError without write access."""
        if self.options.dry_run and "/" in self.repo_id:
            return self
        try:
            user = retrying(self._api.whoami)
        except (LocalTokenNotFoundError, ValueError):  # the latter for token=False
            raise PermissionError(
                f"{self.repo_id!r} cannot be pushed to without a token: log in with `hf auth login`, or pass token=…."
            ) from None
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError(
                f"{self.repo_id!r} cannot be pushed to with a token that may only read: make one with the role write."
            )
        return self if "/" in self.repo_id else replace(self, repo_id=f"{user['name']}/{self.repo_id}")

    def _check(self, state: ModelInfo, is_adapter: bool) -> None:
        options = self.options
        if not options.exist_ok:
            raise FileExistsError(f"{self.repo_id!r} exists: choose another name, or allow it by exist_ok=True.")
        if options.private and not state.private:
            raise FileExistsError(
                f"{self.repo_id!r} exists and is public: make it private on its page first, or leave out private."
            )
        branch = self._look(options.revision) if options.revision else state
        if not options.force:
            self._check_kind(branch or state, is_adapter)
        if options.tag is not None and (tagged := self._tagged()) and branch and tagged != branch.sha:
            raise FileExistsError(f"{self.repo_id!r} has a tag {options.tag!r} at {tagged[:12]}: choose another one.")

    def _check_kind(self, state: ModelInfo, is_adapter: bool) -> None:
        """Raises FileExistsError if the repository contains another type of model than the one to push."""
        names = _names_in(state)
        if not any(map(_OF_A_MODEL.search, names)):
            return
        if TAG not in (state.tags or ()):
            kind = "a model that is not a PromptEOL"
        elif ("adapter_config.json" in names) != is_adapter:
            kind = "a full model" if is_adapter else "an adapter"
        else:
            return
        pushed = "an adapter" if is_adapter else "a full model"
        raise FileExistsError(
            f"{self.repo_id!r} already holds {kind}, and this push is of {pushed}: choose another name, or replace it "
            "with --force (force=True)."
        )

    def _tagged(self) -> str | None:
        refs = retrying(lambda: self._api.list_repo_refs(self.repo_id))
        return next((ref.target_commit for ref in refs.tags if ref.name == self.options.tag), None)


def _names_in(state: ModelInfo | None) -> list[str]:
    return [file.rfilename for file in (state.siblings if state else None) or ()]
