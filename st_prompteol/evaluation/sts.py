"""The 7 STS tasks of the paper, and STS-B dev: rank correlation of cosine similarities with human scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.encoding import EmbeddingCache, as_cache
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TaskResult, check_tasks, read_task


def evaluate_sts(
    model: SentenceTransformer | EmbeddingCache,
    data_dir: str | Path,
    tasks: Iterable[str] | None = None,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    callback: Callable[[TaskResult], None] | None = None,
) -> dict[str, TaskResult]:
    """Runs STS tasks.

    Args:
        model: Any sentence-transformers model, or a cache around one that other evaluations share.
        data_dir: A folder in SentEval's layout.
        tasks: Names out of `STS_TASKS` and `STS_DEV_TASK`. Defaults to `STS_TASKS`.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether the model shows its progress bar. Defaults to False.
        callback: Called with each task's result as soon as it is there.

    Returns:
        Task -> result, see `evaluate_sts_task`.

    Raises:
        ValueError: If a task is unknown or a file damaged, or if the model returns NaN.
        FileNotFoundError: If a file is missing; nothing has run then.
    """
    cache = as_cache(model)
    results = {}
    for task in check_tasks(data_dir, tasks, (*STS_TASKS, STS_DEV_TASK)):
        results[task] = evaluate_sts_task(
            cache, data_dir, task, batch_size=batch_size, show_progress_bar=show_progress_bar
        )
        if callback is not None:
            callback(results[task])
    return results


def evaluate_sts_task(
    model: SentenceTransformer | EmbeddingCache,
    data_dir: str | Path,
    task: str,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> TaskResult:
    """Runs one STS task.

    Args:
        model: Any sentence-transformers model, or a cache around one that other evaluations share.
        data_dir: A folder in SentEval's layout.
        task: A name out of `STS_TASKS` and `STS_DEV_TASK`.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether the model shows its progress bar. Defaults to False.

    Returns:
        The result. `score` is Spearman over all pairs of all subsets together, the aggregation "all" of the paper.
        `details` holds, x100: `spearman` and `pearson`, each with `all`, `mean` (over the subsets) and
        `weighted_mean` (by pairs), `subsets` with `spearman`, `pearson` and `n` of each, and `n`, the number of pairs.

    Raises:
        ValueError: If the task is unknown or a file damaged, if the model returns NaN, or if all similarities are
            equal, so that no correlation is defined.
        FileNotFoundError: If a file is missing.
    """
    check_tasks(data_dir, [task], (*STS_TASKS, STS_DEV_TASK))
    subsets = read_task(data_dir, task)
    embeddings = as_cache(model).encode(
        [column for examples in subsets.values() for column in examples.columns],
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )
    similarities = [cosine_similarities(a, b) for a, b in zip(embeddings[::2], embeddings[1::2], strict=True)]
    gold = [examples.labels for examples in subsets.values()]
    correlations = {
        name: _correlations(f"{task} {name}", *arrays)
        for name, *arrays in zip(subsets, similarities, gold, strict=True)
    }
    together = _correlations(task, np.concatenate(similarities), np.concatenate(gold))
    details: dict[str, Any] = {}
    for kind in ("spearman", "pearson"):
        values = [correlation[kind] for correlation in correlations.values()]
        details[kind] = {
            "all": together[kind],
            "mean": float(np.mean(values)),
            "weighted_mean": float(np.average(values, weights=[len(scores) for scores in gold])),
        }
    details["subsets"] = correlations
    details["n"] = together["n"]
    return TaskResult(task, together["spearman"], details)


def cosine_similarities(
    embeddings1: npt.NDArray[np.float32], embeddings2: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Computes cosine similarities row by row, in float32; 0 where an embedding is all zeros, as in SentEval.

    Args:
        embeddings1: Shape `(n, embedding_dimension)`.
        embeddings2: Shape `(n, embedding_dimension)`.

    Returns:
        Shape `(n,)`.
    """
    # Norms of 16-bit embeddings overflow above some thousand dimensions.
    a, b = embeddings1.astype(np.float32, copy=False), embeddings2.astype(np.float32, copy=False)
    dots = np.einsum("nd,nd->n", a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarities: npt.NDArray[np.float32] = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return similarities


def _correlations(name: str, similarities: npt.NDArray[np.float32], gold: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Spearman and Pearson, x100, of one subset or of all of them together."""
    for values, what in ((similarities, "cosine similarities"), (gold, "gold scores")):
        if len(values) < 2 or np.ptp(values) == 0:
            raise ValueError(
                f"{name}: the {len(values)} {what} are all equal, which leaves the correlation undefined: "
                "check that the model tells sentences apart and that the data is whole."
            )
    predicted = similarities.astype(np.float64)
    return {
        "spearman": 100 * float(stats.spearmanr(predicted, gold).statistic),
        "pearson": 100 * float(stats.pearsonr(predicted, gold).statistic),
        "n": len(gold),
    }
