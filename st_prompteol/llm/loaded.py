"""Facts about a loaded model: its blocks, adapters, commit, quantization, and the tensors inside a weight."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel


def blocks_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Returns the blocks of a decoder; empty if it does not keep them in one list.

    Args:
        model: The body of a decoder LLM.

    Example:
        >>> body = PromptEOL("tiny").body
        >>> len(blocks_of(body)) == body.config.num_hidden_layers
        True
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count)
    return next(lists, torch.nn.ModuleList())


def adapters_of(model: PreTrainedModel) -> dict[str, PeftConfig]:
    """Returns the configurations of all loaded adapters, by name."""
    return getattr(model, "peft_config", {})


def commit_of(model: Any) -> str | None:
    """Returns the commit of the repository that a model with a configuration was loaded from; None for a folder."""
    return getattr(getattr(model, "config", None), "_commit_hash", None)


def is_quantized(model: PreTrainedModel) -> bool:
    """Returns whether the weights in memory are quantized."""
    return bool(getattr(model, "is_quantized", False))


def came_quantized(model: PreTrainedModel) -> bool:
    """Returns whether the checkpoint itself is quantized (not quantized on load)."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Returns the plain tensors inside a weight: values and scales for torchao, otherwise the weight itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]
