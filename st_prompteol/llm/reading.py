"""Call state: the settings at the start of a call of `encode`, shared by its batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reading:
    """Per-call state of `encode`, shared by its batches.

    Args:
        last_only: Whether only the last token of each row is read. Defaults to False.
        inner_layers: Layers below the model's own whose last tokens are read in the same pass. Defaults to none.
        heads: Prefix cache of this call, by token ids and layer; the fast path fills it.

    Example:
        >>> Reading(last_only=True, inner_layers=(-2,)).inner_layers
        (-2,)
    """

    last_only: bool = False
    inner_layers: tuple[int, ...] = ()
    heads: dict[tuple[tuple[int, ...], int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inner_layers and not self.last_only:
            raise ValueError(
                f"Of the inner layers {self.inner_layers} only last tokens are read: pass last_only=True."
            )


def inner_embeddings(layer: int) -> str:
    """Returns the key of an inner layer's embeddings among the features.

    Args:
        layer: The layer, counted from the end as in `PromptEOL`.

    Example:
        >>> inner_embeddings(-2)
        'layer_-2_embedding'
    """
    return f"layer_{layer}_embedding"
