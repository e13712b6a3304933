"""Pushing a model: checks its folder, uploads it in one commit, and checks it again from the Hub."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from huggingface_hub import HfApi

from st_prompteol.evaluation.results import Run
from st_prompteol.failures import RETRY_WAITS, explain_opening, explain_push, retrying
from st_prompteol.hub.card import render_card
from st_prompteol.hub.check import CleanProcess, embed
from st_prompteol.hub.facts import collect_facts, name_of, run_of
from st_prompteol.hub.folder import check_no_secrets, copy_companions, files_of
from st_prompteol.hub.options import CardOptions, PushOptions
from st_prompteol.hub.repository import Repository
from st_prompteol.hub.results import eval_result_files, read_results
from st_prompteol.llm.cut import server_note
from st_prompteol.llm.loaded import adapters_of
from st_prompteol.model import PromptEOL

logger = logging.getLogger(__name__)


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
    model: PromptEOL,
    repo_id: str,
    card: CardOptions | None = None,
    options: PushOptions | None = None,
    *,
    source: str | None = None,
) -> PushReport:
    """Pushes a model to the Hub: a full model, or the adapter with tokenizer and template.

    Before the upload, the files are loaded with plain `SentenceTransformer` in a clean process, and their embeddings
    must be those of the model in memory. The same check is repeated from the Hub at the new commit. A push is a single
    commit, so readers see either the old or the new state. A failed push can be repeated.

    Args:
        model: The model.
        repo_id: The repository, `user/name` or `organization/name`; created if it does not exist.
        card: The author's additions to the card; results in `results_dir` are also pushed as `.eval_results`. Defaults
            to None: no additions.
        options: The options of the push. Defaults to None: those of `PushOptions()`.
        source: As in `build_model_card`; a license and curves in that folder are also pushed. Defaults to None.

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
        >>> model, card = PromptEOL("runs/mine"), CardOptions(license="apache-2.0", language="en")  # doctest: +SKIP
        >>> push_to_hub(model, "user/my-model", card, PushOptions(dry_run=True))  # doctest: +SKIP
    """
    card, options = card or CardOptions(), options or PushOptions()
    repository, name, merge_to = Repository(repo_id, options), name_of(model, source), options.merge_to
    if model.layer != -1:
        logger.warning("%s", server_note(model.layer))
    if merge_to is not None and not model.adapters:
        raise ValueError(f"{name!r} has no adapter to merge: leave out merge_to={merge_to!r}.")
    if merge_to == repo_id:
        raise ValueError(f"{repo_id!r} cannot hold both the adapter and the merged model: give merge_to another name.")
    # cheap checks come before expensive ones
    new_base = _new_base(model, name, card.base_model, options.token)
    repository = repository.checked(is_adapter=bool(model.adapters))
    merged = Repository(merge_to, options).checked(is_adapter=False) if merge_to is not None else None
    run = run_of(model, source)  # the key of the results, also for the merged model
    read_results(card.results_dir, run, None)  # raises if the folder is missing or has no results of this model
    with CleanProcess() as clean:
        push = _Push(model, card, source, new_base, run, clean)
        report = push.to(repository)
        if merged is None:
            return report
        model.merge_adapter()
        return replace(report, merged=push.to(merged))


def check_push(model: PromptEOL, repo_id: str, options: PushOptions | None = None) -> None:
    """Raises all errors of a push that do not depend on the weights, for a check before training.

    Args:
        model: The model with its adapter.
        repo_id: As in `push_to_hub`.
        options: As in `push_to_hub`. Defaults to None.

    Example:
        >>> check_push(PromptEOL("tiny"), "user/my-model")  # doctest: +SKIP
    """
    options = options or PushOptions()
    _new_base(model, repo_id, None, options.token)
    Repository(repo_id, options).checked(is_adapter=bool(model.adapters))


@dataclass(frozen=True)
class _Push:
    """What is pushed: a model with its card and the base model to name, and a process for the checks."""

    model: PromptEOL
    card: CardOptions
    source: str | None
    new_base: dict[str, str] | None
    run: Run | None
    clean: CleanProcess

    def to(self, repository: Repository) -> PushReport:
        """Writes, checks and uploads the folder, then checks the files on the Hub."""
        repo_id, options = repository.repo_id, repository.options
        with explain_push(repo_id), tempfile.TemporaryDirectory(prefix="st_prompteol-") as temporary:
            folder = Path(temporary, "model")
            self._write(folder, repo_id, options.token)
            check_no_secrets(folder, options.token)
            expected = embed(self.model)
            if problem := self.clean.compare(self.model, expected, str(folder), token=options.token):
                raise ValueError(
                    f"{name_of(self.model, self.source)!r} was not pushed, because plain SentenceTransformer does not "
                    f"give the same embeddings: {problem}."
                )
            report = PushReport(repo_id, files_of(folder))
            if options.dry_run:
                return report
            done = repository.commit(folder, f"Add PromptEOL {'adapter' if self.model.adapters else 'model'}")
        commit = str(done.oid)
        self._check_pushed(repository, commit, expected)
        repository.put_tag(commit)
        return replace(report, url=str(done.pr_url if options.create_pr else done.commit_url), commit=commit)

    def _write(self, folder: Path, repo_id: str, token: str | bool | None) -> None:
        """Saves the model with its card, results and additional files."""
        self.model.save(str(folder), create_model_card=False)
        config_file = folder / "adapter_config.json"
        if self.new_base and config_file.is_file():
            config = json.loads(config_file.read_text(encoding="utf-8")) | self.new_base
            config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        facts = collect_facts(
            self.model, repo_id, self.card, source=self.source, saved_in=folder, run=self.run, token=token
        )
        results = read_results(self.card.results_dir, self.run, facts.evaluated_base)
        if results is not None:
            (folder / ".eval_results").mkdir()
            for name, text in eval_result_files(results).items():
                (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(str(render_card(facts, results)), encoding="utf-8")
        copy_companions(name_of(self.model, self.source), folder)

    def _check_pushed(self, repository: Repository, commit: str, expected: npt.NDArray[np.float32]) -> None:
        """Raises ConnectionError if the commit does not load from the Hub with the expected embeddings."""
        token = repository.options.token
        for wait in (*RETRY_WAITS, None):
            problem = self.clean.compare(self.model, expected, repository.repo_id, commit, token)
            if problem is None:
                return
            if wait is None or "does not open" not in problem:
                problem = problem.replace(token, "…") if isinstance(token, str) else problem
                raise ConnectionError(
                    f"{repository.repo_id!r} was pushed to (commit {commit}), but the check from the Hub failed: "
                    f"{problem}. Push again to repeat it, or go back to the commit before."
                )
            time.sleep(wait)


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
