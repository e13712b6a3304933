"""Rank correlation, and what chance does to a difference of two: a paired bootstrap over sentence pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gain:
    """A difference of two scores on the same pairs, x100.

    Args:
        value: The difference.
        low: The lower end of its 95 % interval.
        high: The upper end.

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
        """Whether the interval holds zero, so that other pairs could have turned the difference around."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def spearman(similarities: Array, gold: Array) -> float:
    """Returns Spearman's correlation, x100, of two arrays `(n,)`; 0 if one is constant, which ranks nothing."""
    a, b = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (similarities, gold))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return 100 * float(a @ b) / scale if scale > 0 else 0.0


class Bootstrap:
    """Draws pairs with replacement, the same draws for whatever is compared.

    Args:
        gold: Gold scores, `(n,)`.
        resamples: How many draws of `n` pairs. Defaults to 1000.
        seed: Of the draws. Defaults to 0.
    """

    def __init__(self, gold: Array, resamples: int = 1000, seed: int = 0) -> None:
        n = len(gold)
        self.counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        ranks = _ranks_of_draws(gold, self.counts)
        self._weighted = self.counts * ranks  # (resamples, n)
        self._scale = np.sqrt((self._weighted * ranks).sum(axis=1))

    def scores(self, similarities: Array) -> Array:
        """Returns Spearman's correlation, x100, of similarities `(n,)` with gold in every draw, `(resamples,)`."""
        ranks = _ranks_of_draws(similarities, self.counts)
        scale = self._scale * np.sqrt((self.counts * ranks * ranks).sum(axis=1))
        covariance = (self._weighted * ranks).sum(axis=1)
        result: Array = np.divide(100 * covariance, scale, out=np.zeros_like(scale), where=scale > 0)
        return result


def gain(value: float, scores: Array, over: Array) -> Gain:
    """Returns a difference with its 95 % interval.

    Args:
        value: The difference on all pairs.
        scores: The scores of one in every draw, `(resamples,)`.
        over: Those of the other in the same draws.
    """
    low, high = np.percentile(scores - over, [2.5, 97.5])
    return Gain(value, float(low), float(high))


def _ranks_of_draws(values: Array, counts: Array) -> Array:
    """Ranks within draws that hold value `i` `counts[:, i]` times, less their mean; equal values share a rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)  # (resamples, groups)
    ranks: Array = (sizes.cumsum(axis=1) - sizes / 2 + 0.5 - (counts.shape[1] + 1) / 2)[:, group]
    return ranks
