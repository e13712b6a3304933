"""Checks for NaN and infinity in embeddings and weights; errors name the sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from st_prompteol.llm.loaded import parts_of

REMEDY = (
    "Open the model in float32 or bfloat16, as float16 overflows at 65,504; if it is, its weights are damaged: "
    "download or train them again."
)


class NotFiniteError(ValueError):
    """An embedding contains NaN or infinity.

    Args:
        where: A description of the sentence's position.
        place: The index of the sentence in this call.
        sentence: The text of the sentence.
        more: The number of other such embeddings in this call.
    """

    def __init__(self, where: str, place: int, sentence: str, more: int) -> None:
        super().__init__(where, place, sentence, more)
        self.place = place

    def __str__(self) -> str:
        where, _, sentence, more = self.args
        others = f", and {more} more do" if more else ""
        return f"The embedding of {where} ({sentence!r}) holds NaN or infinity{others}. {REMEDY}"

    def found_in(self, where: str) -> NotFiniteError:
        """Returns the same error with a more precise position of the sentence."""
        return NotFiniteError(where, *self.args[1:])


def check_finite(embeddings: Any, sentences: Sequence[Any]) -> None:
    """Raises NotFiniteError for the first sentence whose embedding contains NaN or infinity.

    Args:
        embeddings: The result of `encode`: an array or a tensor, or a list of arrays, tensors or features.
        sentences: The sentences, one per embedding.
    """
    if isinstance(embeddings, np.ndarray | torch.Tensor):
        if len(embeddings) == 0 or _is_finite(embeddings):
            return
        # the sum may overflow although all values are finite
        finite = torch.as_tensor(embeddings).isfinite().flatten(1).all(dim=1).tolist()
    else:
        finite = [all(map(_is_finite, _values(row))) for row in embeddings]
    broken = [place for place, fine in enumerate(finite) if not fine]
    if broken:
        where = f"sentence {broken[0] + 1} of {len(sentences)}"
        raise NotFiniteError(where, broken[0], str(sentences[broken[0]])[:80], len(broken) - 1)


def check_weights(model: torch.nn.Module) -> None:
    """Raises ValueError if a parameter contains NaN or infinity."""
    for name, parameter in model.named_parameters():
        parts = [part for part in parts_of(parameter.detach()) if part.is_floating_point() and part.itemsize > 1]
        if not parameter.is_meta and not all(map(_is_finite, parts)):
            raise ValueError(f"The weights {name!r} hold NaN or infinity, so they are not saved. {REMEDY}")


def _is_finite(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _values(row: Any) -> Iterable[torch.Tensor]:
    if not isinstance(row, dict):
        return [row]
    return [value for name, value in row.items() if name.endswith(("embedding", "embeddings")) and len(value)]
