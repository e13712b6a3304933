"""The author's additions to a model card, and the options of a push."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from st_prompteol.card.data import is_repository


@dataclass(frozen=True)
class CardOptions:
    """The author's additions to a model card.

    Args:
        base_model: The repository of the base LLM, required if the adapter or model was trained from a local copy.
            Defaults to None: the repository in the adapter, an earlier card or the model's configuration; local
            folders are not named.
        license: The license identifier, e.g. `"apache-2.0"`. Defaults to None: that of an earlier card or of the base
            model.
        language: The language codes, e.g. `"en"`. Defaults to None: those of an earlier card.
        datasets: The repositories of the training data. Defaults to None: those of an earlier card.
        hardware: The hardware used for training. Defaults to None: this machine, if the model was trained in this
            process.
        limits: Limitations and other information for users, in Markdown. Defaults to None.
        results_dir: The results folder of `st-prompteol evaluate`. Defaults to None: no table.

    Raises:
        ValueError: If a value is not valid in a card's metadata.

    Example:
        >>> options = CardOptions(license="apache-2.0", language="en", limits="English only.")
        >>> options.languages
        ['en']
    """

    base_model: str | None = None
    license: str | None = None
    language: str | Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    hardware: str | None = None
    limits: str | None = None
    results_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in (self.base_model, *(self.datasets or ())):
            if name is not None:
                check_repository(name)
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"{self.license!r} does not identify a license: write, e.g., apache-2.0, or other.")
        for tag in self.languages or ():
            if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|code|multilingual", tag):
                raise ValueError(f"{tag!r} is not the code of a language: write, e.g., en.")

    @property
    def languages(self) -> list[str] | None:
        """The language codes as a list, None if there are none."""
        return [self.language] if isinstance(self.language, str) else list(self.language or ()) or None


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """The options of a push; those that `SentenceTransformer.push_to_hub` also has are named as there.

    Args:
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
        commit_message: The title of the commit. Defaults to None: names the kind of model.
        merge_to: A repository for the full model with the adapter merged, pushed in addition. The model in memory is
            then merged. Defaults to None.

    Raises:
        ValueError: If options contradict each other.

    Example:
        >>> options = PushOptions(private=True, tag="v1")
    """

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
    merge_to: str | None = None

    def __post_init__(self) -> None:
        if self.create_pr and (self.revision not in (None, "main") or self.tag is not None):
            raise ValueError(
                "A pull request goes to main and has no commit to tag yet: leave out the branch and the tag."
            )


def check_repository(name: str) -> None:
    """Raises ValueError if a name is not a valid repository name."""
    if not is_repository(name):
        raise ValueError(f"{name!r} cannot be the name of a repository: write it as user/name.")
