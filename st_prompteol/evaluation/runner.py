"""Runs tasks one after another, in memory or with each result saved before the next task begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.cache import EmbeddingCache
from st_prompteol.evaluation.results import Run, load_result, save_result
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, TaskResult, check_tasks
from st_prompteol.evaluation.sts import evaluate_sts_task
from st_prompteol.evaluation.transfer import evaluate_transfer_task
from st_prompteol.failures import check_whole

TASK_GROUPS = {"sts": STS_TASKS, "transfer": TRANSFER_TASKS, "all": (*STS_TASKS, *TRANSFER_TASKS)}


def evaluate_sts(
    model: SentenceTransformer | EmbeddingCache,
    data_dir: str | Path,
    tasks: Iterable[str] = STS_TASKS,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> dict[str, TaskResult]:
    """Runs STS tasks.

    Args:
        model: Any sentence-transformers model, or an `EmbeddingCache` of one to share with other evaluations.
        data_dir: A folder in SentEval's layout.
        tasks: Names from `STS_TASKS` and `STS_DEV_TASK`. Defaults to `STS_TASKS`.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether the model shows its progress bar. Defaults to False.

    Returns:
        The results by task. `score` is the Spearman correlation over all pairs of all subsets together, the paper's
        aggregation "all"; `details` hold `pearson`, the means over subsets, each subset and `n`, the number of pairs.

    Raises:
        ValueError: If a task is unknown or a file damaged, or if the model returns NaN.
        FileNotFoundError: If a file is missing, before any task runs.

    Example:
        >>> results = evaluate_sts(PromptEOL("tiny"), "senteval", ["STSBenchmark"])
        >>> list(results)
        ['STSBenchmark']
    """
    tasks = check_tasks(data_dir, tasks, (*STS_TASKS, STS_DEV_TASK))
    return run_tasks(model, None, data_dir, tasks, batch_size=batch_size, show_progress_bar=show_progress_bar)


def evaluate_transfer(
    model: SentenceTransformer | EmbeddingCache,
    data_dir: str | Path,
    tasks: Iterable[str] = TRANSFER_TASKS,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> dict[str, TaskResult]:
    """Runs transfer tasks.

    Args:
        model: Any sentence-transformers model, or an `EmbeddingCache` of one to share with other evaluations.
        data_dir: A folder in SentEval's layout.
        tasks: Names from `TRANSFER_TASKS`. Defaults to all of them.
        batch_size: The model's batch size. Defaults to 32; the classifiers use SentEval's 64.
        show_progress_bar: Whether to show progress bars. Defaults to False.

    Returns:
        The results by task. `score` is the test accuracy (for MR, CR, SUBJ and MPQA the mean of the 10 folds);
        `details` hold `dev_accuracy`, `l2` and `fold_accuracy`, and `n`, the number of examples of each split.

    Raises:
        ValueError: If a task is unknown or a file damaged, or if the model returns NaN.
        FileNotFoundError: If a file is missing, before any task runs.

    Example:
        >>> results = evaluate_transfer(PromptEOL("tiny"), "senteval", ["MR"])
        >>> list(results)
        ['MR']
    """
    tasks = check_tasks(data_dir, tasks, TRANSFER_TASKS)
    return run_tasks(model, None, data_dir, tasks, batch_size=batch_size, show_progress_bar=show_progress_bar)


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Replaces the names of groups (`sts`, `transfer`, `all`) with their tasks, without duplicates."""
    return list(dict.fromkeys(task for name in names for task in TASK_GROUPS.get(name, (name,))))


def run_tasks(
    model: SentenceTransformer | EmbeddingCache,
    run: Run | None,
    data_dir: str | Path,
    tasks: Iterable[str],
    *,
    results_dir: str | Path = "results",
    rerun: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    callback: Callable[[TaskResult, bool], None] | None = None,
) -> dict[str, TaskResult]:
    """Runs the SentEval tasks that have no saved result yet.

    Args:
        model: Any sentence-transformers model, or an `EmbeddingCache` of one.
        run: The run that the results belong to, see `Run.of`. None neither loads nor saves results.
        data_dir: A folder in SentEval's layout.
        tasks: Names of tasks.
        results_dir: Folder of the results. Defaults to `"results"`.
        rerun: Whether to run finished tasks again. Defaults to False.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether to show progress bars. Defaults to False.
        callback: Called with each result and whether it was loaded instead of computed.

    Returns:
        The results by task.

    Raises:
        ValueError: If a task is unknown, a file damaged, or the model returns NaN.
        FileNotFoundError: If a file is missing, before any task runs.

    Example:
        >>> model = PromptEOL("tiny")
        >>> run = Run.of(model, TINY)
        >>> results = run_tasks(model, run, "senteval", ["STSBenchmark"], results_dir="results")
        >>> again = run_tasks(model, run, "senteval", ["STSBenchmark"], results_dir="results")  # read, not run
        >>> again == results
        True
    """
    check_whole(batch_size=batch_size)
    tasks = check_tasks(data_dir, tasks, (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS))
    cache = model if isinstance(model, EmbeddingCache) else EmbeddingCache(model)
    results = {}
    for task in tasks:
        result = None if rerun or run is None else load_result(results_dir, run, task, data_dir)
        finished = result is not None
        if result is None:
            start = time.perf_counter()
            evaluate_task = evaluate_transfer_task if task in TRANSFER_TASKS else evaluate_sts_task
            result = evaluate_task(cache, data_dir, task, batch_size=batch_size, show_progress_bar=show_progress_bar)
            if run is not None:
                save_result(results_dir, run, result, data_dir, time.perf_counter() - start)
        results[task] = result
        if callback is not None:
            callback(result, finished)
    return results
