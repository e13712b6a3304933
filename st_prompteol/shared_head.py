"""The shared head: what a model computes for the tokens that every row begins with, kept while it holds.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights; the rows then run without them, and attend to the one copy of the head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache, PreTrainedModel

from st_prompteol.attention import PackedRows, SharedHead, computing
from st_prompteol.blocks import run_to_layers

logger = logging.getLogger(__name__)

# Tokens that a CPU computes at once are a multiple of it: for each number oneDNN prepares code, which takes longer
# than a small product, and keeps it.
_MULTIPLE = 32


class HeadCache:
    """The heads of models, each for as long as its weights, adapters and tokens stay what they are."""

    def __init__(self) -> None:
        self._heads: WeakKeyDictionary[torch.nn.Module, tuple[Any, SharedHead]] = WeakKeyDictionary()

    def get(self, model: PreTrainedModel, ids: Tensor, layer: int) -> SharedHead:
        """Returns the head of `model` for `ids`, computed anew if anything that it depends on has changed."""
        state = (ids.tolist(), layer, _state(model))
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
        hidden = run_to_layers(model, [layer], input_ids=ids[None], past_key_values=cache, use_cache=True)[layer]
    return SharedHead(ids, [entry.keys for entry in cache.layers], [entry.values for entry in cache.layers], hidden)


def run_behind(
    model: PreTrainedModel,
    head: SharedHead,
    ids: Tensor,
    mask: Tensor,
    layers: Sequence[int],
    *,
    last_only: bool = False,
) -> dict[int, Tensor]:
    """Computes what rows hold behind their head.

    Args:
        model: One that `attention.install` has prepared.
        head: What all rows begin with, at least as deep as the layers.
        ids: Whole rows, padded on the right, `(batch_size, sequence_length)`.
        mask: Where they have tokens, boolean, likewise; each row has at least one behind the head.
        layers: As `run_to_layers` takes them.
        last_only: Whether the last token of each row is enough. Defaults to False.

    Returns:
        By layer the hidden states of all tokens behind the head, row after row, `(num_tokens, hidden_size)`; with
        `last_only` those of the last ones, `(batch_size, hidden_size)`.
    """
    own = slice(len(head.ids), int(mask.sum(dim=1).max()))
    ids, mask = ids[:, own], mask[:, own]
    asked = len(ids) if last_only else int(mask.sum())
    if ids.device.type == "cpu":
        fill = _fill(mask)
        ids, mask = torch.cat([ids, ids[:1].expand(len(fill), -1)]), torch.cat([mask, fill])
    rows = PackedRows(head, mask)
    positions = torch.arange(own.start, own.stop, device=ids.device).expand_as(mask)
    inputs = {"input_ids": ids[mask][None], "position_ids": positions[mask][None]}
    with computing(rows):
        hidden = run_to_layers(model, layers, last_only=last_only, use_cache=False, **inputs)
    return {layer: states[0, :asked] for layer, states in hidden.items()}


def _fill(mask: Tensor) -> Tensor:
    """Returns the mask of rows that nobody asked for, which make the number of tokens a multiple of `_MULTIPLE`."""
    tokens, longest = int(mask.sum()), mask.shape[1]
    missing = -tokens % _MULTIPLE if tokens > _MULTIPLE * 2 else 0
    lengths = torch.arange(missing, 0, -longest).clamp(max=longest)
    return torch.arange(longest) < lengths[:, None]


def is_exact(model: PreTrainedModel, layer: int) -> bool:
    """Tries on two short rows whether the model computes them behind a head as it computes them whole.

    Blocks that mix tokens otherwise than by attention, attention of another kind, or a cache of another kind make a
    difference, or fail; such a model has to compute every row whole.
    """
    ids = torch.arange(24, device=model.device).view(2, 12) % model.config.get_text_config().vocab_size
    ids[1, :4] = ids[0, :4]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 7:] = False
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    with torch.no_grad():
        try:
            whole = run_to_layers(model, [layer], **inputs)[layer]
            head = compute_head(model, ids[0, :4], layer)
            rows = run_behind(model, head, ids, mask, [layer])[layer]
            last = run_behind(model, head, ids, mask, [layer], last_only=True)[layer]
        except Exception as error:  # whatever a family trips over, it has a way that works
            logger.info("%s computes every sentence whole: %s", type(model).__name__, error)
            return False
    expected = torch.cat([whole[:, 4:][mask[:, 4:]], whole[[0, 1], [11, 6]]]).float()
    difference = (torch.cat([rows, last]).float() - expected).abs().max() / expected.abs().max()
    exact = bool(difference < (1e-4 if whole.dtype == torch.float32 else 5e-2))
    if not exact:
        logger.info(
            "%s computes every sentence whole: a shared head differs by %.1g", type(model).__name__, difference
        )
    return exact


def _state(model: PreTrainedModel) -> list[Any]:
    """What changes when the model does: each weight's version, dtype and storage, and which adapters are in use."""
    state: list[Any] = []
    for module in model.modules():
        for tensor in chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None:
                # storages by a weak reference, as addresses come again
                storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
                state.append((storage, None if tensor.is_inference() else tensor._version, tensor.dtype))
        if isinstance(module, BaseTunerLayer):
            scaling = repr(getattr(module, "scaling", None))
            state.append((*module.active_adapters, module.disable_adapters, *module.merged_adapters, scaling))
    return state
