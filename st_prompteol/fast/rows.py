"""Rows without padding, one after the other: what of them is computed, planned on the CPU before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CPU_TOKENS = 1024  # that a CPU computes at once: its matrix products gain nothing by more, its caches lose
# Tokens that a CPU computes at once are a multiple of it: for each number oneDNN prepares code, which takes longer
# than a small product, and keeps it.
_MULTIPLE = 32


class PackedRows:
    """Rows of different lengths, one after the other without padding, behind a head that all of them share.

    Args:
        ids: What the rows hold behind the head, on the CPU, `(batch_size, longest_row)`, padded on the right.
        lengths: How many tokens that is in each row, `(batch_size,)`.
        head_length: How many tokens stand in front of them.
        fill: Whether to make the number of tokens a multiple of 32, by rows that nobody asked for.

    Attributes:
        input_ids: `(1, num_tokens)`.
        position_ids: Likewise.
        mask: Where the padded rows have tokens, boolean.
        tokens: Where each token stands in the flattened padded rows, `(num_tokens,)`.
        places: Where the token of each padded place stands among the packed ones, as `mask`; any other for padding.
        last: Where the last token of each row stands among the packed tokens.
        asked: How many rows were asked for; they are the first ones.
        asked_tokens: How many tokens those have.
    """

    def __init__(self, ids: Tensor, lengths: Tensor, head_length: int, *, fill: bool) -> None:
        self.asked, self.asked_tokens = len(ids), int(lengths.sum())
        if fill:
            more = _fill(self.asked_tokens, ids.shape[1])
            ids, lengths = torch.cat([ids, ids[:1].expand(len(more), -1)]), torch.cat([lengths, more])
        columns = torch.arange(ids.shape[1])
        self.mask = columns < lengths[:, None]
        self.tokens = self.mask.flatten().nonzero().squeeze(1)
        self.last = lengths.cumsum(dim=0) - 1
        self.places = (self.last - lengths + 1)[:, None] + torch.minimum(columns, lengths[:, None] - 1)
        self.input_ids = ids.flatten()[self.tokens][None]
        self.position_ids = (head_length + self.tokens % ids.shape[1])[None]

    def to(self, device: torch.device) -> PackedRows:
        """Moves the rows to a device, without waiting for it."""
        if device.type != "cpu":
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device, non_blocking=True))
        return self

    def pad(self, packed: Tensor) -> Tensor:
        """Returns `(num_heads, num_tokens, size)` as `(batch_size, num_heads, longest_row, size)`."""
        padded = packed.index_select(1, self.places.flatten().to(packed.device))
        return padded.view(len(packed), *self.mask.shape, packed.shape[-1]).transpose(0, 1)

    def pack(self, padded: Tensor) -> Tensor:
        """Returns `(batch_size, num_heads, longest_row, …)` as `(num_heads, num_tokens, …)`."""
        return padded.transpose(0, 1).flatten(1, 2).index_select(1, self.tokens.to(padded.device))


@dataclass
class Plan:
    """What of a batch is computed.

    Args:
        head_length: How many tokens of the head all rows share.
        longest: How many tokens the longest row has, with the head.
        parts: The rows in the order of the batch, in parts that are computed one after the other.
    """

    head_length: int
    longest: int
    parts: list[PackedRows]


def plan(ids: Tensor, mask: Tensor, head_ids: Tensor, *, on_cpu: bool) -> Plan | None:
    """Plans a batch; None where its rows have no token in common with the head, or are padded on the left.

    Args:
        ids: Whole rows, on the CPU, `(batch_size, sequence_length)`.
        mask: Where they have tokens, likewise.
        head_ids: What rows begin with, `(head_length,)`, on the CPU.
        on_cpu: Whether a CPU is to compute them.
    """
    lengths = mask.sum(dim=1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    head = head_ids[: shortest - 1]  # every row keeps a token of its own
    if not mask[:, :shortest].all():  # padded on the left
        return None
    shared = int((ids[:, : len(head)] == head).all(dim=0).cumprod(dim=0).sum())
    if shared == 0:
        return None
    lengths, parts = lengths - shared, []
    for rows in _split(lengths) if on_cpu else [slice(None)]:
        own = lengths[rows]
        parts.append(PackedRows(ids[rows, shared : shared + int(own.max())], own, shared, fill=on_cpu))
    return Plan(shared, longest, parts)


def _split(lengths: Tensor) -> Iterator[slice]:
    """Cuts rows of these lengths into parts of at most `_CPU_TOKENS` tokens, or of one row."""
    start, tokens = 0, 0
    for row, length in enumerate(lengths.tolist()):
        tokens += length
        if tokens > _CPU_TOKENS and row > start:
            yield slice(start, row)
            start, tokens = row, length
    yield slice(start, len(lengths))


def _fill(tokens: int, longest: int) -> Tensor:
    """Returns the lengths of rows that make the number of tokens a multiple of `_MULTIPLE`."""
    missing = -tokens % _MULTIPLE if tokens > _MULTIPLE * 2 else 0
    return torch.arange(missing, 0, -longest).clamp(max=longest)
