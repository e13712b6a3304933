"""STS tasks: rank correlation of cosine similarities with human scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sentence_transformers.util import pairwise_cos_sim

from st_prompteol.evaluation.cache import EmbeddingCache
from st_prompteol.evaluation.senteval import TaskResult, read_task


def evaluate_sts_task(
    cache: EmbeddingCache, data_dir: str | Path, task: str, *, batch_size: int = 32, show_progress_bar: bool = False
) -> TaskResult:
    """Runs one STS task.

    Args:
        cache: An embedding cache of the model.
        data_dir: A folder in SentEval's layout.
        task: One of `STS_TASKS` or `STS_DEV_TASK`.
        batch_size: The model's batch size. Defaults to 32.
        show_progress_bar: Whether the model shows its progress bar. Defaults to False.

    Returns:
        The result. `score` is Spearman over all pairs of all subsets together, the paper's aggregation "all".
        `details` holds, x100: `spearman` and `pearson`, each with `all`, `mean` (over the subsets) and
        `weighted_mean` (by pairs), `subsets` with `spearman`, `pearson` and `n` of each, and `n`, the number of pairs.

    Raises:
        ValueError: If a file is damaged, if the model returns NaN, or if all similarities are equal, which leaves the
            correlation undefined.
        FileNotFoundError: If a file is missing.
    """
    subsets = read_task(data_dir, task)
    embeddings = cache.encode(
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
    return TaskResult(task, together["spearman"], {**details, "subsets": correlations, "n": together["n"]})


def cosine_similarities(
    embeddings1: npt.NDArray[np.floating[Any]], embeddings2: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Computes cosine similarities row by row; 0 if an embedding is all zeros, as in SentEval.

    Args:
        embeddings1: Embeddings, `(n, embedding_dimension)`.
        embeddings2: Embeddings, `(n, embedding_dimension)`.

    Returns:
        The similarities `(n,)`, computed in float32: norms of 16-bit embeddings overflow above a few thousand
        dimensions.
    """
    similarities: npt.NDArray[np.float32] = pairwise_cos_sim(
        embeddings1.astype(np.float32, copy=False), embeddings2.astype(np.float32, copy=False)
    ).numpy()
    return similarities


def spearman(similarities: npt.NDArray[np.floating[Any]], gold: npt.NDArray[np.floating[Any]]) -> float:
    """Returns the Spearman correlation, x100, of two arrays `(n,)`; 0 if one is constant."""
    a, b = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (similarities, gold))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return 100 * float(a @ b) / scale if scale > 0 else 0.0


def _correlations(name: str, similarities: npt.NDArray[np.float32], gold: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Returns Spearman and Pearson, x100, and the number of pairs."""
    for values, what in ((similarities, "cosine similarities"), (gold, "gold scores")):
        if len(values) < 2 or np.ptp(values) == 0:
            raise ValueError(
                f"{name}: the {len(values)} {what} are all equal, which leaves the correlation undefined: "
                "check that the model tells sentences apart and that the data is whole."
            )
    return {
        "spearman": spearman(similarities, gold),
        "pearson": 100 * float(stats.pearsonr(similarities.astype(np.float64), gold).statistic),
        "n": len(gold),
    }
