"""nf4 weights of bitsandbytes on CPUs, where the first inference packs them for a kernel of its own."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

# bitsandbytes' number of weights per scale, and the number of rows per step of its packed CPU kernel
_BLOCK_SIZE = 64
_PACK_ROWS = 32


def prepare_nf4(model: PreTrainedModel) -> None:
    """Keeps the loaded state of 4-bit weights for `unpack_nf4`, and disables packing of layers where it would fail.

    On a CPU with AVX512-BF16, bitsandbytes packs 4-bit weights at the first inference, which fails unless the rows are
    a multiple of 32 and the columns a multiple of the block size 64; other layers use its other kernel.
    """
    for module in _nf4_layers(model):
        module.loaded_quant_state = copy.copy(module.weight.quant_state)
        if module.out_features % _PACK_ROWS or module.in_features % _BLOCK_SIZE:
            module.support_avx512bf16_for_cpu = False


def unpack_nf4(model: PreTrainedModel) -> None:
    """Exactly reverses bitsandbytes' packing of 4-bit weights for CPUs, so that the loaded weights are saved.

    Packing rounds the scales to bfloat16, and bitsandbytes' own unpacking keeps the rounded scales. The next inference
    packs again.
    """
    for module in _nf4_layers(model):
        weight = module.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            weight.data, _ = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
            weight.quant_state = module.quant_state = copy.copy(module.loaded_quant_state)


def keep_nf4_unpacked(model: PreTrainedModel) -> None:
    """Prepares 4-bit weights for training: unpacks them and disables packing, also during evaluation.

    No gradient passes through a weight that bitsandbytes has packed for a CPU, so the gradients of the layers below
    would silently be zero. Without packing, later inference with this model is slower.
    """
    unpack_nf4(model)
    for module in _nf4_layers(model):
        module.support_avx512bf16_for_cpu = False


def _nf4_layers(model: PreTrainedModel) -> list[Any]:
    if not getattr(model, "is_loaded_in_4bit", False):
        return []
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]
