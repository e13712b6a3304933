"""Runs mteb on a model, with mteb's results cache, under a name and revision that identify the model uniquely."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.results import revision_of
from st_prompteol.extras import missing_extra
from st_prompteol.failures import check_whole
from st_prompteol.llm.decoders import has_file
from st_prompteol.saved.identity import digest, identify

logger = logging.getLogger(__name__)


def evaluate_mteb(
    model: SentenceTransformer,
    tasks: Sequence[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    results_dir: str | Path | None = None,
    batch_size: int = 32,
    rerun: bool = False,
    show_progress_bar: bool = False,
) -> Any:
    """Runs MTEB tasks on a model.

    Results are cached under the model's name and revision: its commit, or a hash of the folder's files. If the model
    embeds differently from the published one, a hash of everything that its scores depend on is appended, e.g. for a
    base LLM with a template, or a model with another layer or dtype, other weights or adapters.

    Args:
        model: Any sentence-transformers model.
        tasks: Names of tasks (`"STS12"`) or of benchmarks (`"MTEB(eng, v2)"`).
        name: The model's repository or folder, which names its results. Defaults to None: where it was loaded from, or
            its base LLM if it has an adapter.
        revision: The branch, tag or commit that was loaded. Defaults to None: the main branch.
        results_dir: mteb's results cache. Defaults to None: mteb's default, `~/.cache/mteb` or `MTEB_CACHE`.
        batch_size: The model's batch size. Defaults to 32.
        rerun: Whether to run finished tasks again. Defaults to False.
        show_progress_bar: Whether mteb shows progress bars. Defaults to False.

    Returns:
        mteb's `ModelResult`; each of its `task_results` has a `get_score()`.

    Raises:
        ValueError: If a task or benchmark is unknown; the message suggests similar names.
        ImportError: If mteb is not installed.

    Example:
        >>> result = evaluate_mteb(PromptEOL("tiny"), ["STS12"])  # doctest: +SKIP
        >>> [task.get_score() for task in result.task_results]  # doctest: +SKIP
    """
    check_whole(batch_size=batch_size)
    try:
        import mteb
        from mteb.models import SentenceTransformerEncoderWrapper
    except ImportError as error:
        raise missing_extra("An evaluation by MTEB", "mteb", "eval") from error
    selected = _select(mteb, tasks)
    name = name or str(getattr(getattr(model.transformers_model, "config", None), "name_or_path", "")) or "model"
    own_revision = revision_in_results(type(model), name, revision_of(name, revision), identify(model))
    wrapper = SentenceTransformerEncoderWrapper(model)
    # mteb knows no name for models in memory and in folders: all of them would share one folder of results.
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(
        update={"name": _repository(name), "revision": own_revision}
    )
    return mteb.evaluate(
        wrapper,
        selected,
        cache=mteb.ResultCache(results_dir),
        overwrite_strategy="always" if rerun else "only-missing",
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": show_progress_bar},
        show_progress_bar=show_progress_bar,
    )


def _select(mteb: Any, names: Sequence[str]) -> list[Any]:
    tasks = {task.metadata.name: [task] for task in mteb.get_tasks(exclude_superseded=False)}
    known = tasks | {benchmark.name: benchmark.tasks for benchmark in mteb.get_benchmarks()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see mteb.get_tasks() and mteb.get_benchmarks()."
            raise ValueError(f"mteb knows no task or benchmark {name!r}: {hint}")
    return [task for name in names for task in known[name]]


def revision_in_results(kind: type[SentenceTransformer], name: str, found: str, identity: Mapping[str, Any]) -> str:
    """Returns the revision of a model's results, which only models of its name with the same embeddings share.

    Args:
        kind: The class with which the published model is opened.
        name: The model's repository or folder.
        found: Its commit, or the hash of its files.
        identity: The result of `identify`.
    """
    return found if identity == _identity_as_published(kind, name, found) else f"{found}-{digest(identity)[:8]}"


def _identity_as_published(kind: type[SentenceTransformer], name: str, revision: str) -> dict[str, Any] | None:
    """Returns the identity of the model published under this name; None if it is not a sentence embedding model."""
    where: dict[str, Any] = {} if os.path.isdir(name) else {"revision": revision}
    if not has_file(name, "modules.json", {**where, "local_files_only": True}):
        return None
    try:
        return identify(kind(name, device="cpu", local_files_only=True, **where))
    except Exception as error:  # any failure: a model that cannot be loaded again may differ
        logger.info("%r cannot be compared with what is published: %s", name, error)
        return None


def _repository(name: str) -> str:
    """Returns a name of the form that mteb requires, `organization/model`, also for folders and files."""
    if not os.path.exists(name) and name.count("/") == 1:
        return name
    return "local/" + (re.sub(r"[^\w.-]+", "-", Path(name).resolve().name) or "model")
