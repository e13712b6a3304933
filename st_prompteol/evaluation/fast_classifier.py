"""A stand-in for SentEval's logistic regression: scikit-learn's, on the same splits and L2 strengths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from st_prompteol.evaluation.classifier import Split


def train_fast_classifiers(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    splits: Sequence[Split],
    l2: Sequence[Sequence[float]],
    *,
    progress_bar: Any = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Trains one logistic regression per split and L2 strength: at most 100 iterations of L-BFGS, no seed.

    Args:
        features: Shape `(n, dim)`.
        labels: Classes, shape `(n,)`.
        splits: The splits; one without validation rows trains on all of its training rows.
        l2: Shape `(n_splits, n_runs)`. The objective is mean cross-entropy + l2 / 2 * ||weight||^2, whose gradient is
            the one that Adam follows; the bias is not decayed.
        progress_bar: A tqdm bar, advanced by one for every finished split.

    Returns:
        Accuracies between 0 and 1 on the validation and on the test rows, each of shape `(n_splits, n_runs)`, NaN for
        a split without such rows.
    """
    accuracy = np.full((2, len(splits), len(l2[0])), np.nan)
    for i, split in enumerate(splits):
        for j, strength in enumerate(l2[i]):
            classifier = LogisticRegression(C=1 / (strength * len(split.train)))
            with warnings.catch_warnings():
                # SentEval's own training stops early as well, and the weakest strengths need far more iterations.
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(features[split.train], labels[split.train])
            for k, rows in enumerate((split.validation, split.test)):
                if rows is not None:
                    accuracy[k, i, j] = classifier.score(features[rows], labels[rows])
        if progress_bar is not None:
            progress_bar.update(1)
    return accuracy[0], accuracy[1]
