"""float32 linear layers through oneDNN, where it is faster than PyTorch's default BLAS.

MKL uses slower instructions for float32 on CPUs not made by Intel: on an AMD EPYC with AVX-512, oneDNN takes less than
half of the time for the same product, with the same rounding errors. Weights are neither converted nor moved.
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

_FEW_ROWS = 8  # minimum rows; with fewer, reading the weights dominates, and oneDNN would reorder them first
_SMALL = 2**22  # minimum multiplications; with fewer, the call overhead dominates
_TRIES = 12
_FASTER = 1.2  # minimum speed-up; below it we keep PyTorch's kernel for reproducibility


def install_fast_linear(model: torch.nn.Module) -> None:
    """Uses oneDNN for float32 CPU linear layers when it is faster; training is unaffected."""
    for module in model.modules():
        if type(module) is torch.nn.Linear and "forward" not in vars(module):  # accelerate puts hooks there
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def remove_fast_linear(model: torch.nn.Module) -> None:
    """Restores the original forward of the model's linear layers."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is _forward:
            del module.forward


def _forward(layer: torch.nn.Linear, rows: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    if (
        rows.dtype == weight.dtype == torch.float32
        and rows.is_cpu
        and rows.numel() >= _FEW_ROWS * layer.in_features
        and rows.numel() * layer.out_features >= _SMALL
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and type(rows) is Tensor
        and type(weight) is torch.nn.Parameter
        and torch.backends.mkldnn.enabled
        and _is_faster()
    ):
        return _product(rows, weight, bias)
    return torch.nn.functional.linear(rows, weight, bias)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # type: ignore[no-any-return]


@cache
def _is_faster() -> bool:
    """Times both kernels once per process (a tenth of a second); False if the oneDNN operator is missing or fails.

    Compares the fastest of many runs, because on a busy machine most of them are interrupted.
    """
    rows, weight = torch.ones(256, 1024), torch.ones(1024, 1024)
    seconds: dict[Any, list[float]] = {torch.nn.functional.linear: [], _product: []}
    with torch.no_grad():
        for _ in range(_TRIES):
            for way, measured in seconds.items():
                start = time.perf_counter()
                try:
                    way(rows, weight, None)
                except (AttributeError, RuntimeError, TypeError):
                    return False
                measured.append(time.perf_counter() - start)
    return min(seconds[torch.nn.functional.linear]) > _FASTER * min(seconds[_product])
