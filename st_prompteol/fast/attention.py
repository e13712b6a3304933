"""Attention of packed rows after a shared prefix (head): each token attends to its single copy and to its own row.

The two parts are computed separately and merged exactly by their log-sum-exp; only a short head is copied in front of
each row. Works for every transformers architecture whose attention goes through `AttentionInterface`.
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

from st_prompteol.fast.passes import Captured, Pass, SharedHead, running
from st_prompteol.fast.rows import PackedRows

_PREFIX = "shared_head_"
_SHORT = 64  # tokens up to which plain matrix products are faster than the flash kernel for causal attention on a CPU
_SHORT_HEAD = 16  # tokens up to which copying the head in front of each row is cheaper than separate attention to it
# Keyword arguments that are safe to ignore: positions are already applied to keys and queries, dropout is off, and
# every row fits in the sliding window
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
    """Returns the name of the model's transformers attention implementation, even while ours is installed over it."""
    return (model.config._attn_implementation or "").removeprefix(_PREFIX)


def can_install(model: PreTrainedModel) -> bool:
    """Returns whether ours can replace the model's attention: `sdpa` or `eager`, through `AttentionInterface`."""
    return own_name(model) in ("sdpa", "eager") and bool(model.is_backend_compatible())


def install(model: PreTrainedModel) -> None:
    """Installs attention that supports packed rows; every other forward pass computes as before."""
    model.set_attn_implementation(_PREFIX + own_name(model))


def is_installed(model: PreTrainedModel) -> bool:
    """Returns whether the model's attention implementation, which anyone may change, is ours."""
    configs = model.config, model.config.get_text_config()
    return all((config._attn_implementation or "").startswith(_PREFIX) for config in configs)


def put_back(model: PreTrainedModel) -> None:
    """Restores the model's own attention implementation."""
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
    # each architecture defines its own eager attention, in its modeling file
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
    """Attends to the head and to each row's own tokens, and merges the two results by their log-sum-exp.

    Args:
        module: The attention layer, with its `layer_idx`.
        state: The current forward pass.
        rows: The packed rows to compute.
        head: The prefix shared by the rows.
        query: `(1, num_heads, num_tokens, head_dim)`, for all tokens or for the last token of each row.
        key: `(1, num_key_value_heads, num_tokens, head_dim)`.
        value: `(1, num_key_value_heads, num_tokens, head_dim)`.
        attention_mask: None, because `rows` provides the masks.
        scaling: Factor applied to the scores. Defaults to `head_dim ** -0.5`.
        softcap: Bound on the scores, applied by `tanh` as in Gemma 2. Defaults to None.
        **kwargs: Only arguments that have no effect here.

    Returns:
        The output `(1, num_tokens, num_heads, head_dim)`, and None for the attention weights.

    Raises:
        Captured: If only keys and values are requested.
        NotImplementedError: If the architecture requests another kind of attention.
    """
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _WITHOUT_EFFECT]
    if unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention that is not causal, or takes {unknown}")
    if state.capturing:
        state.keys_values = key, value
        raise Captured
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]  # queries per key
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
    else:  # queries of the last tokens only
        queries = query[0].reshape(key.shape[1], groups, -1, query.shape[-1]).permute(2, 0, 1, 3)
        padding = torch.nn.functional.pad(~rows.mask, (keys.shape[2] - rows.mask.shape[1], 0))
        output, lse = _attention(queries, keys, values, scaling, softcap, padding[:, None, None])
        output, lse = output.flatten(1, 2).transpose(0, 1), lse.flatten(1, 2).transpose(0, 1)

    if not joined:
        folded = query.reshape(
            1, key.shape[1], -1, query.shape[-1]
        )  # all query groups of a key, for the single copy of the head
        to_head, head_lse = _attention(folded, head_key, head_value, scaling, softcap)
        own_share = torch.sigmoid(lse - head_lse.reshape(lse.shape)).unsqueeze(-1).to(output.dtype)
        output = torch.lerp(to_head.reshape(output.shape), output, own_share)  # (num_heads, num_tokens, head_dim)
    return output.transpose(0, 1).unsqueeze(0).contiguous(), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the output, shaped like `query`, and the log-sum-exp of the scores, without the last axis, in float32.

    Uses the flash kernel only for many float32 queries on a CPU (it is twice as slow in bfloat16 there), and plain
    matrix products otherwise.
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
    """Causal version of `_attention` for queries `(batch_size, num_heads, longest_row, head_dim)`.

    If there are more keys than queries, the additional first keys precede all queries.
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
    """Returns whether PyTorch's private flash operator, the only one with the log-sum-exp, exists and works."""
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


# Registered at import, because an unpickled model looks these names up in a process that has not loaded one.
for _name, _function in (("sdpa", _sdpa_attention), ("eager", _eager_attention)):
    AttentionInterface.register(_PREFIX + _name, _function)
    AttentionMaskInterface.register(_PREFIX + _name, _mask_of(_name))
