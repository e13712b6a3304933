"""The paper's loss; where the batch does not fit, gradient caching over mini-batches of sentences of like length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from training.arguments import RunArguments


def build_loss(model: SentenceTransformer, args: RunArguments) -> torch.nn.Module:
    """Returns the paper's loss: cosine / 0.05, cross-entropy over the batch, gathered from all processes."""
    options: dict[str, Any] = {"scale": 20.0, "gather_across_devices": args.world_size > 1}
    loss: torch.nn.Module
    if args.mini_batch_size:
        loss = LengthSortedCachedLoss(model, mini_batch_size=args.mini_batch_size, **options)
    else:
        loss = MultipleNegativesRankingLoss(model, **options)
    return MatryoshkaLoss(model, loss, args.matryoshka_dims) if args.matryoshka_dims else loss


class LengthSortedCachedLoss(CachedMultipleNegativesRankingLoss):
    """Upstream's cached loss with each column in order of length while it is embedded, so that fewer pads are.

    Upstream cuts columns into mini-batches as they come and each mini-batch to its longest sentence. Loss and
    gradients are the same in any order, since the embeddings return to their rows before they are compared.
    """

    _orders: tuple[Tensor, ...] = ()

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Computes the loss of the columns, whose embeddings are `(batch_size, hidden_size)` each."""
        columns = list(sentence_features)
        if not all("attention_mask" in column for column in columns):  # no pads, as flash attention takes rows
            self._orders = ()
            return super().forward(columns, labels)
        self._orders = tuple(column["attention_mask"].sum(dim=1).argsort() for column in columns)
        return super().forward([_permute(*pair) for pair in zip(columns, self._orders, strict=True)], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Computes the loss of embeddings in the columns' orders, and with `with_backward` leaves their gradients."""
        if not self._orders:
            return super().calculate_loss(reps, labels, with_backward=with_backward)
        rows = [torch.cat(column).detach() for column in reps]  # each (batch_size, hidden_size)
        rows = [column[order.argsort()].requires_grad_() for column, order in zip(rows, self._orders, strict=True)]
        loss = super().calculate_loss([[column] for column in rows], labels, with_backward=with_backward)
        if with_backward:
            for parts, column, order in zip(reps, rows, self._orders, strict=True):
                if column.grad is not None:
                    for part, gradient in zip(parts, column.grad[order].split([len(p) for p in parts]), strict=True):
                        part.grad = gradient
        return loss


def _permute(features: dict[str, Any], order: Tensor) -> dict[str, Any]:
    return {
        key: value[order] if isinstance(value, Tensor) and value.ndim and len(value) == len(order) else value
        for key, value in features.items()
    }
