"""Fingerprints of a model's weights and active adapters, to detect changes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from st_prompteol.llm.loaded import parts_of

# Values compared per weight. A change to a whole tensor changes the first one; any contiguous change longer than a
# 64th of the tensor contains one of them.
_SAMPLES = 64


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
