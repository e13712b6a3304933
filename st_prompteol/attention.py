"""Attention of packed rows behind a shared head: each token attends to the one copy of the head and to its own row.

The two are computed apart and merged exactly by their log-sum-exp; only a short head is copied in front of each row.
Every family of transformers whose attention goes through `AttentionInterface` can use it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "shared_head_"
_SHORT = 64  # tokens up to which a CPU attends causally faster by plain matrix products than by the flash kernel
_SHORT_HEAD = 16  # tokens up to which a copy of the head in front of each row is cheaper than attending to it apart
# What an attention function may be told that changes nothing: positions are in keys and queries already, dropout is
# off, and a window holds every row
_WITHOUT_EFFECT = {
    "cache_position",
    "dropout",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "position_embeddings",
    "position_ids",
    "sliding_window",
    "use_cache",
}
_current = threading.local()  # .rows: the PackedRows that this thread's forward pass computes


@dataclass(frozen=True)
class SharedHead:
    """What a model has computed for the tokens that every row begins with.

    Args:
        ids: Token ids, `(head_length,)`.
        keys: Per layer, `(1, num_key_value_heads, head_length, head_dim)`, positions applied.
        values: Per layer, likewise.
        hidden: What the model reads off for them, `(1, head_length, hidden_size)`.
    """

    ids: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor

    def __getitem__(self, length: int) -> SharedHead:
        """Returns the head cut to its first `length` tokens: causal attention makes that their own head."""
        return SharedHead(
            self.ids[:length],
            [key[:, :, :length] for key in self.keys],
            [value[:, :, :length] for value in self.values],
            self.hidden[:, :length],
        )


class PackedRows:
    """Rows of different lengths, one after the other without padding, behind a head that all of them share.

    Args:
        head: The shared head.
        mask: Where the padded rows have tokens, `(batch_size, longest_row)`, boolean, padded on the right.

    Attributes:
        tokens: Where each token stands in the flattened padded rows, `(num_tokens,)`.
        last: Where the last token of each row stands among the packed tokens, `(batch_size,)`.
        keys_values: Of all tokens in the block that computes the last tokens only; None in every other.
    """

    def __init__(self, head: SharedHead, mask: Tensor) -> None:
        self.head = head
        self.mask = mask
        self.tokens = self.mask.flatten().nonzero().squeeze(1)
        lengths = self.mask.sum(dim=1)
        self.last = lengths.cumsum(dim=0) - 1
        columns = torch.arange(mask.shape[1], device=mask.device)
        # where the token of each padded place stands among the packed ones; any other for padding
        self.places = (self.last - lengths + 1)[:, None] + torch.minimum(columns, lengths[:, None] - 1)
        self.keys_values: tuple[Tensor, Tensor] | None = None
        self.capturing = False

    def pad(self, packed: Tensor) -> Tensor:
        """Returns `(num_heads, num_tokens, size)` as `(batch_size, num_heads, longest_row, size)`."""
        padded = packed.index_select(1, self.places.flatten().to(packed.device))
        return padded.view(len(packed), *self.mask.shape, packed.shape[-1]).transpose(0, 1)

    def pack(self, padded: Tensor) -> Tensor:
        """Returns `(batch_size, num_heads, longest_row, …)` as `(num_heads, num_tokens, …)`."""
        return padded.transpose(0, 1).flatten(1, 2).index_select(1, self.tokens.to(padded.device))


class Captured(Exception):
    """Raised when a block has computed its keys and values, which are then in `rows.keys_values`."""


@contextmanager
def computing(rows: PackedRows) -> Iterator[None]:
    """Makes the forward passes of this thread compute `rows`."""
    _current.rows = rows
    try:
        yield
    finally:
        _current.rows = None


def current_rows() -> PackedRows | None:
    """Returns the rows that this thread's forward pass computes."""
    return getattr(_current, "rows", None)


def install(model: PreTrainedModel) -> bool:
    """Lets the model's attention compute packed rows; in every other forward pass it computes as before.

    Returns:
        Whether the model can: its attention is transformers' own `sdpa` or `eager`, and goes through the interface;
        and its weights are not quantised, for there a row's result depends on the rows that it is computed with.
    """
    original = (model.config._attn_implementation or "").removeprefix(_PREFIX)
    quantised = getattr(model, "is_quantized", False)
    if original not in ("sdpa", "eager") or quantised or not model.is_backend_compatible():
        return False
    model.set_attn_implementation(_PREFIX + original)
    return True


def _sdpa_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
    if (rows := current_rows()) is not None:
        return _attend(module, rows, query, key, value, *args, **kw)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kw)


def _eager_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
    if (rows := current_rows()) is not None:
        return _attend(module, rows, query, key, value, *args, **kw)
    # each family has its own, in the file of its classes
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, *args, **kw)


def _attend(
    module: torch.nn.Module,
    rows: PackedRows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends to the head and to each row's own tokens, and merges the two by their log-sum-exp.

    Args:
        module: The attention layer, with its `layer_idx`.
        rows: What is computed.
        query: `(1, num_heads, num_tokens, head_dim)`, of all tokens or of the last token of each row.
        key: `(1, num_key_value_heads, num_tokens, head_dim)`.
        value: Likewise.
        attention_mask: None, for masks are those of the rows.
        scaling: What scores are multiplied by. Defaults to `head_dim ** -0.5`.
        softcap: Bounds scores by `tanh`, as Gemma 2 does. Defaults to None.
        **kwargs: Only what is of no effect here.

    Returns:
        `(1, num_tokens, num_heads, head_dim)`, and None for the weights.

    Raises:
        Captured: If only keys and values are asked for.
        NotImplementedError: If the family asks for another kind of attention.
    """
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _WITHOUT_EFFECT]
    if unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention that is not causal, or takes {unknown}")
    if rows.capturing:
        rows.keys_values = key, value
        raise Captured
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]  # queries that share a key
    index: int = module.layer_idx  # type: ignore[assignment]
    head_key, head_value = rows.head.keys[index], rows.head.values[index]
    own_key, own_value = (key, value) if rows.keys_values is None else rows.keys_values
    keys, values = rows.pad(own_key[0]), rows.pad(own_value[0])
    joined = head_key.shape[2] <= _SHORT_HEAD and rows.mask.shape[1] <= _SHORT
    if joined:
        keys = torch.cat([head_key.expand(len(keys), -1, -1, -1), keys], dim=2)
        values = torch.cat([head_value.expand(len(values), -1, -1, -1), values], dim=2)

    if rows.keys_values is None:
        output, lse = _causal_attention(rows.pad(query[0]), keys, values, scaling, softcap)
        output, lse = rows.pack(output), rows.pack(lse)
    else:  # the queries are those of the last tokens
        queries = query[0].reshape(key.shape[1], groups, -1, query.shape[-1]).permute(2, 0, 1, 3)
        padding = torch.nn.functional.pad(~rows.mask, (keys.shape[2] - rows.mask.shape[1], 0))
        output, lse = _attention(queries, keys, values, scaling, softcap, padding[:, None, None])
        output, lse = output.flatten(1, 2).transpose(0, 1), lse.flatten(1, 2).transpose(0, 1)

    if not joined:
        folded = query.reshape(1, key.shape[1], -1, query.shape[-1])  # all groups, one head
        to_head, head_lse = _attention(folded, head_key, head_value, scaling, softcap)
        own_share = torch.sigmoid(lse - head_lse.reshape(lse.shape)).unsqueeze(-1).to(output.dtype)
        output = torch.lerp(to_head.reshape(output.shape), output, own_share)  # (num_heads, num_tokens, head_dim)
    return output.transpose(0, 1).unsqueeze(0).contiguous(), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns attention, shaped as `query`, and the log-sum-exp of its scores, without the last axis, in float32.

    Written out but for many queries in float32 on a CPU: the flash kernel is twice as slow there in bfloat16.
    """
    plain = softcap is None and hidden is None and key.shape[-1] == value.shape[-1]
    if plain and query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[2] > _SHORT:
        return _flash_attention(query, key, value, scaling, causal=False)
    scores = ((query * scaling) @ key.transpose(-1, -2)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        scores.masked_fill_(hidden.to(scores.device), float("-inf"))
    peak = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    output = (weights.to(value.dtype) @ value) / total.to(value.dtype)
    return output, (peak + total.log()).squeeze(-1)


def _causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `_attention`, of `(batch_size, num_heads, longest_row, head_dim)` to the keys up to its own.

    Of keys more than queries, the first ones are in front of all queries.
    """
    groups, length, in_front = query.shape[1] // key.shape[1], query.shape[2], key.shape[2] - query.shape[2]
    plain = in_front == 0 and softcap is None and key.shape[-1] == value.shape[-1]
    if plain and length > _SHORT and query.device.type == "cpu":
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return _flash_attention(query, key, value, scaling, causal=True)
    future = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).triu(1 + in_front)
    folded = query.reshape(len(query), key.shape[1], groups * length, query.shape[-1])
    output, lse = _attention(folded, key, value, scaling, softcap, future.repeat(groups, 1))
    return output.view(*query.shape[:3], -1), lse.view(query.shape[:3])


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, 0.0, causal, attn_mask=None, scale=scaling)  # type: ignore[no-any-return]


def _mask_of(original: str) -> Any:
    def mask(*args: Any, **kwargs: Any) -> Any:
        return ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs) if current_rows() is None else None

    return mask


# At import, because a model that was pickled looks these names up in a process that has not opened one.
for _name, _function in (("sdpa", _sdpa_attention), ("eager", _eager_attention)):
    AttentionInterface.register(_PREFIX + _name, _function)
    AttentionMaskInterface.register(_PREFIX + _name, _mask_of(_name))
