"""Running tasks: each finished one is on disk before the next begins, and is not run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.encoding import EmbeddingCache
from st_prompteol.evaluation.results import Run, load_result, save_result
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, TaskResult, check_tasks
from st_prompteol.evaluation.sts import evaluate_sts_task
from st_prompteol.evaluation.transfer import evaluate_transfer_task

TASK_GROUPS = {
    "sts": STS_TASKS,
    "transfer": TRANSFER_TASKS,
    "all": (*STS_TASKS, *TRANSFER_TASKS),
}


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Replaces the names of groups (`sts`, `transfer`, `all`) by their tasks, each task once."""
    return list(dict.fromkeys(task for name in names for task in TASK_GROUPS.get(name, (name,))))


def run_tasks(
    model: SentenceTransformer,
    run: Run,
    data_dir: str | Path,
    tasks: Sequence[str],
    *,
    results_dir: str | Path = "results",
    fast: bool = False,
    rerun: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    callback: Callable[[TaskResult, bool], None] | None = None,
) -> dict[str, TaskResult]:
    """Runs SentEval tasks, those that have no result yet.

    Args:
        model: Any sentence-transformers model.
        run: What its results belong to, see `Run.of`.
        data_dir: A folder in SentEval's layout.
        tasks: Names of tasks.
        results_dir: Where results are kept. Defaults to `"results"`.
        fast: Whether scikit-learn's logistic regression stands in for SentEval's; such results are kept under a name
            of their own. Defaults to False.
        rerun: Whether to run finished tasks again. Defaults to False.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether to show progress bars. Defaults to False.
        callback: Called with each result and whether it was there already.

    Returns:
        Task -> result.

    Raises:
        ValueError: If a task is unknown, a file damaged, or the model returns NaN.
        FileNotFoundError: If a file is missing; nothing has run then.
    """
    tasks = check_tasks(data_dir, tasks, (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS))
    cache = EmbeddingCache(model)
    results = {}
    for task in tasks:
        stored_as = f"{task}-fast" if fast and task in TRANSFER_TASKS else task
        result = None if rerun else load_result(results_dir, run, task, data_dir, stored_as)
        finished = result is not None
        if result is None:
            start = time.perf_counter()
            if task in TRANSFER_TASKS:
                result = evaluate_transfer_task(
                    cache, data_dir, task, fast, batch_size=batch_size, show_progress_bar=show_progress_bar
                )
            else:
                result = evaluate_sts_task(
                    cache, data_dir, task, batch_size=batch_size, show_progress_bar=show_progress_bar
                )
            save_result(results_dir, run, result, data_dir, time.perf_counter() - start, stored_as)
        results[task] = result
        if callback is not None:
            callback(result, finished)
    return results
