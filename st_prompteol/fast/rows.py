"""Packs a batch without padding and plans its computation on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CPU_TOKENS = (
    1024  # maximum tokens per forward pass on a CPU: more do not speed up its matrix products and overflow caches
)
# The number of tokens per forward pass on a CPU is a multiple of this: oneDNN generates and caches code for each
# number, which takes longer than a small product.
_MULTIPLE = 32


class PackedRows:
    """A packed batch: rows of different lengths, concatenated without padding, after a shared head.

    Args:
        ids: Token ids of the rows without the head, on the CPU, `(batch_size, longest_row)`, padded on the right.
        lengths: Number of these tokens in each row, `(batch_size,)`.
        head_length: Number of tokens of the head.
        fill: Whether to add rows that make the number of tokens a multiple of 32.

    Attributes:
        input_ids: `(1, num_tokens)`.
        position_ids: `(1, num_tokens)`.
        mask: Whether a place of the padded batch holds a token, boolean, `(num_rows, longest_row)`.
        tokens: Index of each token in the flattened padded batch, `(num_tokens,)`.
        places: Index of the packed token for each place of the padded batch, shaped like `mask`; arbitrary at padding.
        last: Index of the last token of each row among the packed tokens, `(num_rows,)`.
        asked: Number of requested rows; rows added by `fill` follow them.
        asked_tokens: Number of tokens of the requested rows.
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
        """Moves the rows to a device, without synchronization."""
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
    """How a batch is split and packed.

    Args:
        head_ids: Token ids of the shared prefix, `(head_length,)`.
        head_length: Number of tokens of the head that all rows share.
        longest: Number of tokens of the longest row, including the head.
        parts: Packed batches that are computed one after the other, in the order of the rows.
    """

    head_ids: tuple[int, ...]
    head_length: int
    longest: int
    parts: list[PackedRows]


def plan(ids: Tensor, mask: Tensor, head_ids: tuple[int, ...], *, on_cpu: bool) -> Plan | None:
    """Plans a batch; None if its rows share no token with the head, or are padded on the left.

    Args:
        ids: Token ids of whole rows, on the CPU, `(batch_size, sequence_length)`.
        mask: Attention mask as booleans, on the CPU, `(batch_size, sequence_length)`.
        head_ids: Token ids of the shared prefix, `(head_length,)`.
        on_cpu: Whether the model runs on a CPU.
    """
    lengths = mask.sum(dim=1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    head = torch.tensor(head_ids[: shortest - 1], dtype=ids.dtype)  # leaves each row a token of its own
    if not mask[:, :shortest].all():  # padded on the left
        return None
    shared = int((ids[:, : len(head)] == head).all(dim=0).cumprod(dim=0).sum())
    if shared == 0:
        return None
    lengths, parts = lengths - shared, []
    for rows in _split(lengths) if on_cpu else [slice(None)]:
        own = lengths[rows]
        parts.append(PackedRows(ids[rows, shared : shared + int(own.max())], own, shared, fill=on_cpu))
    return Plan(head_ids, shared, longest, parts)


def _split(lengths: Tensor) -> Iterator[slice]:
    """Splits rows of these lengths into parts of at most `_CPU_TOKENS` tokens, or of one row."""
    start, tokens = 0, 0
    for row, length in enumerate(lengths.tolist()):
        tokens += length
        if tokens > _CPU_TOKENS and row > start:
            yield slice(start, row)
            start, tokens = row, length
    yield slice(start, len(lengths))


def _fill(tokens: int, longest: int) -> Tensor:
    """Returns the lengths of additional rows that make the number of tokens a multiple of `_MULTIPLE`."""
    missing = -tokens % _MULTIPLE if tokens > _MULTIPLE * 2 else 0
    return torch.arange(missing, 0, -longest).clamp(max=longest)
