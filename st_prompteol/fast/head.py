"""The shared head: keys, values and hidden states of the prefix of all rows, cached while the model is the same.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights; rows then run without this prefix and attend to its single copy.
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
from st_prompteol.llm.quantization import parts_of

# Values compared per weight. A change to a whole tensor changes the first one; any contiguous change longer than a
# 64th of the tensor contains one of them.
_SAMPLES = 64


@dataclass(frozen=True)
class SharedHead:
    """Prefix cache: keys, values and hidden states of the tokens that every row begins with.

    Args:
        keys: Per block, `(1, num_key_value_heads, head_length, head_dim)`, with positions applied.
        values: Per block, `(1, num_key_value_heads, head_length, head_dim)`.
        hidden: Hidden states at the layer that the model reads, `(1, head_length, hidden_size)`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, self.hidden))

    def __getitem__(self, length: int) -> SharedHead:
        """Returns the head of the first `length` tokens, which by causal attention do not depend on later ones."""
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
    """Fingerprint of weights and active adapters, to detect changes.

    Holds each weight's address, version and a sample of its values. The version counts in-place changes of any size
    that PyTorch tracks; the sample shows those it does not (`.data`, fused optimizers).

    Args:
        model: The transformers model.

    Attributes:
        is_complete: Whether all weights are in memory and have versions; if not, nothing computed from them is cached.
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
