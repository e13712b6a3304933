"""PromptEOL sentence embeddings from decoder LLMs, as sentence-transformers models."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_prompteol.llm.adapters import lora_config
    from st_prompteol.llm.quantization import quantization_config
    from st_prompteol.model import PromptEOL
    from st_prompteol.modules import LastTokenPooling, PromptEOLTransformer
    from st_prompteol.prompt.template import TEMPLATES, Demonstration, PromptTemplate
    from st_prompteol.saved.released import TINY
    from st_prompteol.standardization import Standardization

__all__ = [
    "TEMPLATES",
    "TINY",
    "Demonstration",
    "LastTokenPooling",
    "PromptEOL",
    "PromptEOLTransformer",
    "PromptTemplate",
    "Standardization",
    "lora_config",
    "quantization_config",
]

__version__ = "0.1.0"

_HOMES = {
    "TEMPLATES": "prompt.template",
    "TINY": "saved.released",
    "Demonstration": "prompt.template",
    "LastTokenPooling": "modules",
    "PromptEOL": "model",
    "PromptEOLTransformer": "modules",
    "PromptTemplate": "prompt.template",
    "Standardization": "standardization",
    "lora_config": "llm.adapters",
    "quantization_config": "llm.quantization",
}


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Whether a log message is worth reading.

    While upstream imports them, bitsandbytes and torchao log missing kernels, which only quantized models need, and
    torch a call in torchao: the first output of every process.
    """
    message = record.getMessage()
    return not message.startswith("Failed to load ") and "register_constant() on Enum" not in message


for _name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_no_advice)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, because templates and the command line's help do not need PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
