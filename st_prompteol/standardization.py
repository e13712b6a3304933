"""Standardizing embeddings by statistics of unlabeled sentences, as a stock `Dense` module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.base.modules import Dense

Method = Literal["center", "scale", "whiten"]
METHODS: tuple[Method, ...] = ("center", "scale", "whiten")
SHRINKAGE = 0.9  # measured: with statistics of other text than the embedded one, less shrinkage loses
_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # relative error that float32 accumulates in a decoder
_NOT_FINITE = "The statistics contain NaN or infinity: leave out the sentences whose embeddings do."


def distinct_sentences(sentences: Iterable[str]) -> list[str]:
    """Returns the distinct sentences for the statistics of a standardization.

    Raises:
        ValueError: If `sentences` is one string, or there are fewer than two distinct sentences.
    """
    if isinstance(sentences, str):
        raise ValueError(f"sentences={sentences[:80]!r} is one string: pass a list of sentences.")
    distinct = list(dict.fromkeys(sentences))
    if len(distinct) < 2:
        raise ValueError(
            f"Statistics need two different sentences or more, got {len(distinct)}: pass some hundred sentences of "
            "the kind that will be embedded."
        )
    return distinct


@dataclass(frozen=True, eq=False)
class Standardization:
    """A fitted affine map of embeddings: `factor * (embedding - mean)`, or `factor @ (embedding - mean)`.

    Args:
        mean: The mean embedding, `(embedding_dimension,)`.
        factor: One factor per dimension, `(embedding_dimension,)`, or a matrix
            `(embedding_dimension, embedding_dimension)`.

    Raises:
        ValueError: If the shapes do not belong together, or a number is NaN or infinite.

    Example:
        >>> embeddings = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> Standardization.fit(embeddings, "scale").apply(embeddings)
        array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)
    """

    mean: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        size = len(self.mean)
        if self.mean.shape != (size,) or self.factor.shape not in ((size,), (size, size)):
            raise ValueError(
                f"A mean of shape {self.mean.shape} and a factor of shape {self.factor.shape} do not belong together: "
                "the mean has one number per dimension, the factor as many, or a row of as many per dimension."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.factor).all()):
            raise ValueError(_NOT_FINITE)

    @classmethod
    def fit(
        cls,
        embeddings: npt.ArrayLike,
        method: Method = "scale",
        shrinkage: float = SHRINKAGE,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Fits the map to embeddings.

        Args:
            embeddings: Embeddings of unlabeled sentences, `(sentences, embedding_dimension)`.
            method: `"center"` subtracts the mean; `"scale"` also divides each dimension by its standard deviation;
                `"whiten"` also decorrelates the dimensions, by the inverse Cholesky factor of their correlation matrix
                (Kessy et al. 2018, https://arxiv.org/abs/1512.00809), so that the first dimensions of an embedding do
                not depend on the others. `"scale"` and `"whiten"` set a dimension that does not vary to 0. Defaults
                to `"scale"`.
            shrinkage: Only for `"whiten"`: the weight of the identity in the correlation matrix, as in
                `sklearn.covariance.shrunk_covariance`; at 1, whitening is scaling. Defaults to 0.9.
            dtype: The dtype in which the embeddings were computed. A dimension that varies by less than its rounding
                errors does not count as varying. Defaults to `torch.float32`.

        Raises:
            ValueError: If the method is unknown, there are fewer than two sentences, `shrinkage` is not above 0 and at
                most 1 or too small for so few sentences, or embeddings are all equal or not finite.
        """
        if method not in METHODS:
            raise ValueError(f"Unknown standardization {method!r}: choose one of {', '.join(METHODS)}.")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage!r} must be above 0 and at most 1: pass e.g. {SHRINKAGE}.")
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(
                f"Statistics need the embeddings of two sentences or more, got the shape {rows.shape}: give some "
                "hundred sentences of the kind that will be embedded."
            )
        if not np.isfinite(rows).all():
            raise ValueError(_NOT_FINITE)
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        # in half precision, the bias of a dimension that varies less would be rounded by half a deviation or more
        varies = deviation > max(_ROUNDING, torch.finfo(dtype).eps) * np.abs(rows).max(axis=0)
        if not varies.any():
            raise ValueError(
                f"The embeddings of all {len(rows)} sentences are equal, which gives no statistics: give sentences of "
                "the kind that will be embedded."
            )
        if method == "center":
            return cls(mean, np.ones_like(mean))
        factor = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
        if method == "scale":
            return cls(mean, factor)
        scaled = (rows - mean) * factor
        correlations = (1 - shrinkage) * (scaled.T @ scaled) / len(rows)
        correlations += shrinkage * np.eye(len(mean))
        try:
            lower = np.linalg.cholesky(correlations)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"shrinkage={shrinkage!r} is too small for {len(rows)} sentences of {len(mean)} dimensions: raise it, "
                "or give more sentences."
            ) from None
        # for triangular matrices, NumPy's solver takes three times as long
        triangular = torch.linalg.solve_triangular(
            torch.from_numpy(lower), torch.from_numpy(np.diag(factor)), upper=False
        )
        return cls(mean, triangular.numpy())

    def apply(self, embeddings: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Returns the standardized embeddings, `(len(embeddings), embedding_dimension)`."""
        centered = np.asarray(embeddings, dtype=np.float64) - self.mean
        standardized = centered * self.factor if self.factor.ndim == 1 else centered @ self.factor.T
        return standardized.astype(np.float32)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Dense:
        """Returns the map as a `Dense` module of sentence-transformers, on the CPU.

        Args:
            dtype: The dtype of its weight and bias. In bfloat16, a dimension whose mean is many times its deviation is
                rounded; cosine similarities then have at most about twice the error that rounding the embeddings
                themselves to bfloat16 gives them. Defaults to `torch.float32`.

        Raises:
            ValueError: If a number exceeds the range of the dtype.
        """
        matrix = np.diag(self.factor) if self.factor.ndim == 1 else self.factor
        weight = torch.from_numpy(matrix).to(dtype)
        bias = -(weight.double() @ torch.from_numpy(self.mean)).to(dtype)  # of the rounded weight
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"The statistics exceed the range of {dtype}: open the model in float32 or bfloat16.")
        size = len(self.mean)
        return Dense(size, size, activation_function=torch.nn.Identity(), init_weight=weight, init_bias=bias)
