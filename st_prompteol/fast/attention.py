"""Attention of packed rows behind a shared head: each token attends to the one copy of the head and to its own row.

The two are computed apart and merged exactly by their log-sum-exp; only a short head is copied in front of each row.
Every family of transformers whose attention goes through `AttentionInterface` can use it.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from st_prompteol.fast.head import SharedHead
from st_prompteol.fast.passes import Captured, Pass
from st_prompteol.fast.rows import PackedRows
from st_prompteol.fast.threads import running

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


def own_name(model: PreTrainedModel) -> str:
    """Returns which attention of transformers the model is set to, also where ours is installed over it."""
    return (model.config._attn_implementation or "").removeprefix(_PREFIX)


def can_install(model: PreTrainedModel) -> bool:
    """Says whether ours can stand in for the model's attention: `sdpa` or `eager`, by the interface."""
    return own_name(model) in ("sdpa", "eager") and bool(model.is_backend_compatible())


def install(model: PreTrainedModel) -> None:
    """Lets the model's attention compute packed rows; in every other forward pass it computes as before."""
    model.set_attn_implementation(_PREFIX + own_name(model))


def is_installed(model: PreTrainedModel) -> bool:
    """Says whether the model's attention, which everybody may set, is ours."""
    configs = model.config, model.config.get_text_config()
    return all((config._attn_implementation or "").startswith(_PREFIX) for config in configs)


def put_back(model: PreTrainedModel) -> None:
    """Gives the model its own attention again."""
    if is_installed(model):
        model.set_attn_implementation(own_name(model))


def _sdpa_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
    state = running.forward_pass
    if state is not None and state.rows is not None and state.head is not None:
        return _attend(module, state, state.rows, state.head, query, key, value, *args, **kw)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kw)


def _eager_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
    state = running.forward_pass
    if state is not None and state.rows is not None and state.head is not None:
        return _attend(module, state, state.rows, state.head, query, key, value, *args, **kw)
    # each family has its own, in the file of its classes
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, *args, **kw)


def _attend(
    module: torch.nn.Module,
    state: Pass,
    rows: PackedRows,
    head: SharedHead,
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
        state: The forward pass that asks.
        rows: What it computes.
        head: What stands in front of the rows.
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
    if state.capturing:
        state.keys_values = key, value
        raise Captured
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]  # queries that share a key
    index: int = module.layer_idx  # type: ignore[assignment]
    head_key, head_value = head.keys[index], head.values[index]
    own_key, own_value = (key, value) if state.keys_values is None else state.keys_values
    keys, values = rows.pad(own_key[0]), rows.pad(own_value[0])
    joined = head_key.shape[2] <= _SHORT_HEAD and rows.mask.shape[1] <= _SHORT
    if joined:
        keys = torch.cat([head_key.expand(len(keys), -1, -1, -1), keys], dim=2)
        values = torch.cat([head_value.expand(len(values), -1, -1, -1), values], dim=2)

    if state.keys_values is None:
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
    many = query.shape[2] > _SHORT and query.dtype == torch.float32
    if plain and many and query.device.type == "cpu" and _has_flash_attention():
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
    if plain and length > _SHORT and query.device.type == "cpu" and _has_flash_attention():
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


@cache
def _has_flash_attention() -> bool:
    """Says whether PyTorch has its private operator, the only one that gives the log-sum-exp, and it works."""
    query = torch.ones(1, 1, 2, 8)
    try:
        output, lse = _flash_attention(query, query, query, 1.0, causal=True)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return output.shape == query.shape and lse.shape == query.shape[:3]


def _mask_of(original: str) -> Any:
    def mask(*args: Any, **kwargs: Any) -> Any:
        state = running.forward_pass
        if state is not None and state.rows is not None:
            return None
        return ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs)

    return mask


# At import, because a model that was pickled looks these names up in a process that has not opened one.
for _name, _function in (("sdpa", _sdpa_attention), ("eager", _eager_attention)):
    AttentionInterface.register(_PREFIX + _name, _function)
    AttentionMaskInterface.register(_PREFIX + _name, _mask_of(_name))
