"""The shared head: keys and values of the tokens that every row begins with, computed once and attended to once.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights and kept. The rows then run without them: each layer attends to the one copy of
the head for the whole batch and to the row's own tokens, and merges the two exactly by their log-sum-exp.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "shared_head_"
# Of this thread's forward pass: .head, what it attends to in front, and .stop_before, the block that it need not run
_current = threading.local()


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


class HeadCache:
    """The heads of models, each for as long as its weights, adapters and tokens stay what they are."""

    def __init__(self) -> None:
        self._heads: WeakKeyDictionary[torch.nn.Module, tuple[Any, SharedHead]] = WeakKeyDictionary()

    def get(self, model: PreTrainedModel, ids: Tensor, layer: int) -> SharedHead:
        """Returns the head of `model` for `ids`, computed anew if anything that it depends on has changed."""
        state = (ids.tolist(), layer, _weights_state(model), _adapter_state(model))
        found = self._heads.get(model)
        if found is not None and found[0] == state:
            return found[1]
        head = compute_head(model, ids, layer)
        if not any(tensor.is_inference() for tensor in model.parameters()):  # their changes leave no trace
            self._heads[model] = (state, head)
        return head

    def forget(self, model: PreTrainedModel) -> None:
        """Drops the head of `model`: fused optimizers change weights and leave no trace."""
        self._heads.pop(model, None)


def compute_head(model: PreTrainedModel, ids: Tensor, layer: int) -> SharedHead:
    """Runs the model over the tokens `ids` `(head_length,)` and keeps their keys, values and hidden states."""
    cache = DynamicCache()
    with torch.no_grad():
        hidden = run_to_layer(model, layer, input_ids=ids[None], past_key_values=cache, use_cache=True)
    return SharedHead(ids, [entry.keys for entry in cache.layers], [entry.values for entry in cache.layers], hidden)


def run_to_layer(model: PreTrainedModel, layer: int, **inputs: Any) -> Tensor:
    """Runs the blocks that a hidden state needs and no others.

    Args:
        model: The body of a decoder LLM.
        layer: -1 for the last hidden state, after the final norm; -2 for the output of the last but one block, …
        **inputs: As the model takes them.

    Returns:
        `(batch_size, sequence_length, hidden_size)`.
    """
    if layer == -1:
        output: Tensor = model(**inputs).last_hidden_state
        return output
    count = model.config.get_text_config().num_hidden_layers
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    block = blocks[count + layer + 1]  # its input is the hidden state that is asked for
    if _stop not in block._forward_pre_hooks.values():
        block.register_forward_pre_hook(_stop, with_kwargs=True)
    _current.stop_before = block
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.hidden
    finally:
        _current.stop_before = None
    raise RuntimeError(f"{type(model).__name__} did not run its blocks one after the other.")


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if getattr(_current, "stop_before", None) is module:
        raise _Reached(args[0] if args else kwargs["hidden_states"])


def _weights_state(model: PreTrainedModel) -> list[Any]:
    """What changes when a weight does: version, dtype and storage, by a weak reference, as addresses come again."""
    return [
        (_storage(tensor), None if tensor.is_inference() else tensor._version, tensor.dtype)
        for tensor in chain(model.parameters(), model.buffers())
    ]


def _storage(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _adapter_state(model: PreTrainedModel) -> list[Any]:
    if not getattr(model, "peft_config", None):
        return []
    return [
        (
            tuple(layer.active_adapters),
            layer.disable_adapters,
            tuple(layer.merged_adapters),
            repr(getattr(layer, "scaling", None)),
        )
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]


def install(model: PreTrainedModel) -> bool:
    """Lets the model's attention attend to a shared head; without one it computes as before.

    Returns:
        Whether the model can: its attention is transformers' own `sdpa` or `eager`, and goes through the interface;
        and its weights are not quantised, for there a row's result depends on the rows that it is computed with.
    """
    original = model.config._attn_implementation
    quantised = getattr(model, "is_quantized", False)
    if original not in ("sdpa", "eager") or quantised or not model.is_backend_compatible():
        return False
    model.set_attn_implementation(_PREFIX + original)
    return True


@contextmanager
def attending_to(head: SharedHead) -> Iterator[None]:
    """Makes the forward passes of this thread attend to `head` in front of their own tokens."""
    _current.head = head
    try:
        yield
    finally:
        _current.head = None


def _sdpa_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    head = getattr(_current, "head", None)
    if head is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)
    return _attend(module, head, query, key, value, **kwargs)


def _eager_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    head = getattr(_current, "head", None)
    if head is None:  # each family has its own, in the file of its classes
        return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, *args, **kwargs)
    return _attend(module, head, query, key, value, **kwargs)


def _attend(
    module: torch.nn.Module,
    head: SharedHead,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends to the head and to a row's own tokens, and merges the two by their log-sum-exp.

    Args:
        module: The attention layer, with its `layer_idx`.
        head: The shared head.
        query: `(batch_size, num_heads, sequence_length, head_dim)`.
        key: `(batch_size, num_key_value_heads, sequence_length, head_dim)`.
        value: Likewise.
        scaling: What scores are multiplied by. Defaults to `head_dim ** -0.5`.
        softcap: Bounds scores by `tanh`, as Gemma 2 does. Defaults to None.
        attention_mask: Of no effect: rows are padded on the right, which no token of theirs sees.
        **kwargs: Of no effect outside of training.

    Returns:
        `(batch_size, sequence_length, num_heads, head_dim)`, and None for the weights.
    """
    batch_size, num_heads, length, head_dim = query.shape
    groups = num_heads // key.shape[1]
    scaling = head_dim**-0.5 if scaling is None else scaling
    head_key, head_value = head.keys[module.layer_idx], head.values[module.layer_idx]  # type: ignore[index]

    # (1, num_key_value_heads, groups * batch_size * length, head_dim): one attention for all rows
    folded = query.reshape(batch_size, key.shape[1], groups, length, head_dim).permute(1, 2, 0, 3, 4)
    folded = folded.reshape(1, key.shape[1], groups * batch_size * length, head_dim)
    to_head, head_lse = _attention(folded, head_key, head_value, scaling, softcap, is_causal=False)
    to_head = to_head.reshape(num_heads, batch_size, length, head_dim).transpose(0, 1)
    head_lse = head_lse.reshape(num_heads, batch_size, length).transpose(0, 1)

    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    to_own, own_lse = _attention(query, key, value, scaling, softcap, is_causal=True)

    own_share = torch.sigmoid(own_lse - head_lse).unsqueeze(-1).to(to_own.dtype)
    merged = torch.lerp(to_head.to(to_own.dtype), to_own, own_share)
    return merged.transpose(1, 2).contiguous(), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns attention, shaped as `query`, and the log-sum-exp of its scores, without the last axis, in float32."""
    if query.device.type == "cpu" and softcap is None:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=None, scale=scaling
        )
        return output, lse
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value, torch.logsumexp(scores, dim=-1)


# At import, because a model that was pickled looks these names up in a process that has not opened one.
for _name, _function in (("sdpa", _sdpa_attention), ("eager", _eager_attention)):
    AttentionInterface.register(_PREFIX + _name, _function)
    AttentionMaskInterface.register(_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])
