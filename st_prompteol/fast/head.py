"""The shared head: what a model computes for the tokens that every row begins with, kept while it holds.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights; the rows then run without them, and attend to the one copy of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from st_prompteol.fast.passes import Pass
from st_prompteol.quantization import parts_of

# Numbers of each weight that are compared. A change of a whole tensor changes the first one; any run of changed
# numbers longer than a 64th of the tensor holds one of them.
_SAMPLES = 64


@dataclass(frozen=True)
class SharedHead:
    """What a model has computed for the tokens that every row begins with.

    Args:
        keys: Per layer, `(1, num_key_value_heads, head_length, head_dim)`, positions applied.
        values: Per layer, likewise.
        hidden: What the model reads off for them, `(1, head_length, hidden_size)`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        """The memory that its tensors take, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, self.hidden))

    def __getitem__(self, length: int) -> SharedHead:
        """Returns the head cut to its first `length` tokens: causal attention makes that their own head."""
        return SharedHead(
            [key[:, :, :length] for key in self.keys],
            [value[:, :, :length] for value in self.values],
            self.hidden[:, :length],
        )


def compute_head(model: PreTrainedModel, ids: Tensor, layer: int) -> SharedHead:
    """Runs the model over the tokens `ids` `(head_length,)` and keeps their keys, values and hidden states."""
    cache = DynamicCache()
    inputs = {"input_ids": ids[None].to(model.device), "past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        hidden = Pass(model, [layer]).run(**inputs)[layer]
    return SharedHead([entry.keys for entry in cache.layers], [entry.values for entry in cache.layers], hidden)


class Fingerprint:
    """What changes when a model does: where each weight is, its version, some of its numbers, the adapters in use.

    A version counts what PyTorch sees of changes in place, whatever their size; the numbers show those that go past
    it (`.data`, fused optimizers).

    Args:
        model: The model.

    Attributes:
        is_complete: Whether all weights are in memory, with versions; without, nothing computed from them is kept.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.is_complete = True
        self.facts: list[Any] = []
        samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for module in model.modules():
            weights = chain(module._parameters.values(), module._buffers.values())
            for tensor in chain.from_iterable(parts_of(weight) for weight in weights if weight is not None):
                if tensor.is_meta or tensor.is_inference():
                    self.is_complete = False
                else:
                    self.facts += (tensor.data_ptr(), tensor._version, tensor.dtype)
                    count = tensor.numel()
                    step = max(1, count // _SAMPLES)
                    some = torch.as_strided(tensor, (min(count, _SAMPLES),), (step,), tensor.storage_offset())
                    samples.setdefault((tensor.device, tensor.dtype), []).append(some)
            if isinstance(module, BaseTunerLayer):
                scaling = repr(getattr(module, "scaling", None))
                self.facts += (*module.active_adapters, module.disable_adapters, *module.merged_adapters, scaling)
        with torch.no_grad():
            self.samples = [torch.cat(group) for group in samples.values()]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint)
            and self.is_complete
            and self.facts == other.facts
            and all(torch.equal(*pair) for pair in zip(self.samples, other.samples, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]
