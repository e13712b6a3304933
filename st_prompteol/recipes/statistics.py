"""Paired-bootstrap confidence intervals of Spearman correlations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gain:
    """Difference of two scores on the same pairs, x100.

    Args:
        value: The difference.
        low: Lower bound of its 95 % confidence interval.
        high: Upper bound of its 95 % confidence interval.

    Example:
        >>> gain = Gain(0.8, low=-0.3, high=1.9)
        >>> print(gain, gain.is_noise)
        +0.80 [-0.30, +1.90] True
    """

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains zero, so that the difference could have the opposite sign on other pairs."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Bootstrap:
    """Paired bootstrap: resamples of the pairs with replacement, the same for all compared recipes.

    Args:
        gold: Gold scores, `(n,)`.
        resamples: Number of resamples of `n` pairs. Defaults to 1000.
        seed: Seed of the resamples. Defaults to 0.
    """

    def __init__(self, gold: Array, resamples: int = 1000, seed: int = 0) -> None:
        n = len(gold)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        self.counts = draws.astype(np.float32)  # (resamples, n); a search resamples hundreds of recipes
        ranks = _ranks_of_draws(gold, self.counts)
        self._weighted = self.counts * ranks
        self._scale = np.sqrt(np.einsum("ij,ij->i", self._weighted, ranks))

    def scores(self, similarities: Array) -> Array:
        """Returns the Spearman correlation, x100, of similarities `(n,)` with gold per resample, `(resamples,)`."""
        ranks = _ranks_of_draws(similarities, self.counts)
        scale = self._scale * np.sqrt(np.einsum("ij,ij->i", self.counts * ranks, ranks))
        covariance = np.einsum("ij,ij->i", self._weighted, ranks)
        result: Array = np.divide(100 * covariance, scale, out=np.zeros_like(scale), where=scale > 0)
        return result


def gain(value: float, scores: Array, over: Array) -> Gain:
    """Returns a difference with its 95 % confidence interval.

    Args:
        value: The difference on all pairs.
        scores: Scores of one recipe per resample, `(resamples,)`.
        over: Scores of the other recipe in the same resamples, `(resamples,)`.
    """
    low, high = np.percentile(scores - over, [2.5, 97.5])
    return Gain(value, float(low), float(high))


def _ranks_of_draws(values: Array, counts: Array) -> Array:
    """Returns mean-centered ranks in resamples with `counts[:, i]` copies of value `i`; equal values share a rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = counts[:, order]  # (resamples, groups)
    if len(values) > (groups := group.max() + 1):
        sizes = np.add.reduceat(sizes, np.searchsorted(group[order], np.arange(groups)), axis=1)
    ranks: Array = sizes.cumsum(axis=1)
    ranks -= sizes / 2
    ranks -= counts.shape[1] / 2
    return ranks[:, group]
