"""MTEB: mteb itself on the model, under the model's own name and revision, with mteb's results cache."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.results import revision_of
from st_prompteol.extras import missing_extra
from st_prompteol.failures import check_whole


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

    Args:
        model: Any sentence-transformers model.
        tasks: Names of tasks (`"STS12"`) or of benchmarks (`"MTEB(eng, v2)"`).
        name: The model's repository or folder, which names its results. Defaults to None: what it was opened from.
        revision: What stands for its revision. Defaults to None: its commit, or a hash of the folder's files.
        results_dir: mteb's results cache. Defaults to None: mteb's own, `~/.cache/mteb` or `MTEB_CACHE`.
        batch_size: The model's batch size. Defaults to 32.
        rerun: Whether to run finished tasks again. Defaults to False.
        show_progress_bar: Whether mteb shows progress bars. Defaults to False.

    Returns:
        mteb's `ModelResult`; its `task_results` hold a `get_score()` each.

    Raises:
        ValueError: If a task or benchmark is unknown; the nearest name is named.
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
    name = name or model.transformers_model.config.name_or_path
    wrapper = SentenceTransformerEncoderWrapper(model)
    # Models in memory and in folders have no name to mteb, so that all of them would share one folder of results.
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(
        update={"name": _repository(name), "revision": revision or revision_of(name)}
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


def _repository(name: str) -> str:
    """Returns a name of the form that mteb asks for, `organisation/model`, for folders and files too."""
    if not os.path.exists(name) and name.count("/") == 1:
        return name
    return "local/" + (re.sub(r"[^\w.-]+", "-", Path(name).resolve().name) or "model")
