"""The shared head: what a model computes for the tokens that every row begins with, kept while it holds.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights; the rows then run without them, and attend to the one copy of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache, PreTrainedModel

from st_prompteol.blocks import run_to_layer


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
