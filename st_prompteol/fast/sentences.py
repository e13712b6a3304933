"""Deduplicates sentences and encodes them in length-sorted chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def encode_distinct(sentences: list[Any], encode: Callable[[list[Any]], Any], chunk: int | None) -> Any:
    """Encodes each distinct sentence once and returns a row for every sentence, in the order of the sentences.

    Args:
        sentences: Inputs of `encode`; inputs other than strings are encoded without deduplication.
        encode: Returns an array, a tensor or a list with a row for each sentence.
        chunk: Maximum number of sentences per call, which avoids holding all rows twice at the end. None for no
            maximum.

    Example:
        >>> encode_distinct(["b", "a", "b"], lambda letters: [letter.upper() for letter in letters], None)
        ['B', 'A', 'B']
    """
    if not all(isinstance(sentence, str) for sentence in sentences):
        return encode(sentences)
    distinct = list(dict.fromkeys(sentences))
    if chunk is None or len(distinct) <= chunk:
        rows = encode(distinct)
    else:
        order = sorted(range(len(distinct)), key=lambda index: -len(distinct[index]))
        for start in range(0, len(order), chunk):
            places = order[start : start + chunk]
            part = encode([distinct[index] for index in places])
            if start == 0:
                rows = _empty_like(part, len(distinct))
            if isinstance(rows, list):
                for place, row in zip(places, part, strict=True):
                    rows[place] = row
            else:
                rows[places] = part
    if len(distinct) == len(sentences):
        return rows
    index_of = {sentence: index for index, sentence in enumerate(distinct)}
    order = [index_of[sentence] for sentence in sentences]
    return [rows[index] for index in order] if isinstance(rows, list) else rows[order]


def _empty_like(part: Any, count: int) -> Any:
    if isinstance(part, torch.Tensor):
        return part.new_empty(count, *part.shape[1:])
    if isinstance(part, np.ndarray):
        return np.empty((count, *part.shape[1:]), dtype=part.dtype)
    return [None] * count
