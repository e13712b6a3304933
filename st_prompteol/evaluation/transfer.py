"""Transfer tasks: accuracy of a logistic regression on embeddings, following SentEval's protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold
from tqdm.auto import tqdm

from st_prompteol.evaluation.cache import EmbeddingCache
from st_prompteol.evaluation.classifier import Classifiers, Indices, Split, train_classifiers
from st_prompteol.evaluation.senteval import TREC_CLASSES, Examples, TaskResult, read_task

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2)
N_FOLDS = 10
SEED = 1111

Train = Callable[[Sequence[Split], Sequence[Sequence[float]]], Classifiers]  # from splits and L2 strengths of each


def evaluate_transfer_task(
    cache: EmbeddingCache, data_dir: str | Path, task: str, *, batch_size: int = 32, show_progress_bar: bool = False
) -> TaskResult:
    """Runs one transfer task.

    Args:
        cache: An embedding cache of the model. The classifiers are trained on the model's device.
        data_dir: A folder in SentEval's layout.
        task: One of `TRANSFER_TASKS`.
        batch_size: The model's batch size. Defaults to 32; the classifiers use SentEval's 64.
        show_progress_bar: Whether to show progress bars. Defaults to False.

    Returns:
        The result. `score` is the test accuracy, rounded to 2 decimals as in the protocol (for MR, CR, SUBJ and MPQA
        the mean of the 10 folds). `details` holds `classifier`, `dev_accuracy`, `test_accuracy`, `l2` and
        `fold_accuracy` (both one per test fold), and `n`, the number of examples of each split.

    Raises:
        ValueError: If a file is damaged, or if the model returns NaN.
        FileNotFoundError: If a file is missing.
    """
    splits = {name: sort_examples(examples) for name, examples in read_task(data_dir, task).items()}
    embeddings = cache.encode(
        [column for examples in splits.values() for column in examples.columns],
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )
    if task == "MRPC":
        embeddings = [np.hstack([abs(u - v), u * v]) for u, v in zip(embeddings[::2], embeddings[1::2], strict=True)]
    features = np.concatenate(embeddings)
    labels = np.concatenate([examples.labels for examples in splits.values()])
    sizes = {name: len(examples.labels) for name, examples in splits.items()}

    with tqdm(desc=task, unit="split", disable=not show_progress_bar) as progress_bar:
        train = partial(
            train_classifiers,
            features,
            labels,
            n_classes=len(TREC_CLASSES) if task == "TREC" else 2,
            seed=SEED,
            device=cache.model.device,
            progress_bar=progress_bar,
        )
        if task == "SST2":
            details = _given_dev(sizes, train)
        else:
            rows = np.arange(len(labels))
            outer = [(rows[: sizes["train"]], rows[sizes["train"] :])] if "test" in sizes else _folds(labels)
            details = _by_folds(outer, labels, train)
    details = {"classifier": "SentEval logistic regression (Adam)", **details, "n": sizes}
    return TaskResult(task, details["test_accuracy"], details)


def sort_examples(examples: Examples) -> Examples:
    """Sorts by number of tokens, then by class, as SentEval does: the folds depend on the order."""
    lengths = [[len(sentence.split()) for sentence in column] for column in examples.columns]
    keys = list(zip(*lengths, examples.labels.tolist(), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Examples(tuple([column[i] for i in order] for column in examples.columns), examples.labels[order])


def _folds(labels: npt.NDArray[np.int64]) -> list[tuple[Indices, Indices]]:
    folds = StratifiedKFold(n_splits=N_FOLDS, shuffle=True, random_state=SEED)
    return list(folds.split(np.zeros(len(labels)), labels))


def _percent(accuracy: float) -> float:
    """Rounds as SentEval does, which affects ties between L2 strengths and the last decimal."""
    return float(round(100 * accuracy, 2))


def _by_folds(outer: Sequence[tuple[Indices, Indices]], labels: npt.NDArray[np.int64], train: Train) -> dict[str, Any]:
    """Chooses the L2 strength for each training set by 10-fold cross-validation, and scores it on the test set.

    Args:
        outer: Training and test rows: 10 folds for MR, CR, SUBJ and MPQA, the given split for TREC and MRPC.
        labels: The classes of all rows.
        train: Function that trains classifiers.
    """
    inner = [Split(rows[a], validation=rows[b]) for rows, _ in outer for a, b in _folds(labels[rows])]
    accuracy = train(inner, [L2_GRID] * len(inner)).validation_accuracy.reshape(len(outer), N_FOLDS, len(L2_GRID))
    dev = [[_percent(fold[:, run].mean()) for run in range(len(L2_GRID))] for fold in accuracy]
    l2 = [L2_GRID[int(np.argmax(scores))] for scores in dev]
    final = train([Split(rows, test=test) for rows, test in outer], [[strength] for strength in l2])
    return _details([max(scores) for scores in dev], l2, final.test_accuracy[:, 0])


def _given_dev(sizes: dict[str, int], train: Train) -> dict[str, Any]:
    """Chooses the L2 strength for SST2 on the dev examples, which also stop the training.

    SentEval then trains the chosen classifier again, with the same seed, examples and therefore weights. Here the
    first training is used.
    """
    rows = np.split(np.arange(sum(sizes.values())), np.cumsum([sizes["train"], sizes["dev"]]))
    classifiers = train([Split(rows[0], validation=rows[1], test=rows[2])], [L2_GRID])
    dev = [_percent(value) for value in classifiers.validation_accuracy[0].tolist()]
    chosen = int(np.argmax(dev))
    return _details([max(dev)], [L2_GRID[chosen]], classifiers.test_accuracy[:, chosen])


def _details(dev: list[float], l2: list[float], test_accuracy: npt.NDArray[np.float64]) -> dict[str, Any]:
    folds = [_percent(value) for value in test_accuracy.tolist()]
    return {
        "dev_accuracy": float(round(np.mean(dev), 2)),
        "test_accuracy": float(round(np.mean(folds), 2)),
        "l2": l2,
        "fold_accuracy": folds,
    }
