"""Quantized weights: quantization by bitsandbytes during loading, and checkpoints that are already quantized."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import OutOfMemoryError
from transformers import MODEL_MAPPING, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from st_prompteol.extras import missing_extra
from st_prompteol.llm.loaded import adapters_of, is_quantized
from st_prompteol.llm.nf4 import prepare_nf4

logger = logging.getLogger(__name__)

Quantization = Literal["nf4", "int8"]

# The modules that transformers needs for each quantization method, with the names of their pip packages
_PACKAGES = {
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "gguf": {"gguf": "gguf"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "torchao": {"torchao": "torchao"},
}
# Keys of a configuration that describe the number format, the most specific first
_KINDS = ("bnb_4bit_quant_type", "bits", "format", "quant_type", "fmt")


def quantization_config(
    quantization: Quantization, *, compute_dtype: torch.dtype = torch.float32
) -> BitsAndBytesConfig:
    """Returns transformers' `BitsAndBytesConfig` with the paper's values: nf4, double quantization, float32 compute.

    Args:
        quantization: `"nf4"` (4 bit) or `"int8"` (8 bit).
        compute_dtype: The compute dtype of nf4 layers. Defaults to `torch.float32`, as in the paper's training; its
            4-bit evaluation used `torch.float16`.

    Raises:
        ValueError: If `quantization` is neither of these.
        ImportError: If bitsandbytes is not installed.

    Example:
        >>> quantization_config("nf4").bnb_4bit_quant_type
        'nf4'
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"quantization={quantization!r}", "bitsandbytes", "train") from error
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise ValueError(f"Unknown quantization {quantization!r}: choose 'nf4' or 'int8', or leave it out.")


@contextmanager
def opening_quantized(name: str, config: PretrainedConfig, model_kwargs: dict[str, Any]) -> Iterator[None]:
    """Prepares the loading of a quantized checkpoint, and explains failures.

    compressed-tensors checkpoints are dequantized on load: transformers also computes with dequantized weights, but
    dequantizes in a hook that sentence-transformers does not call. GPTQ and AWQ checkpoints use kernels with gradient
    support on a CPU.

    Args:
        name: The name of the checkpoint.
        config: The configuration of the checkpoint; modified in place.
        model_kwargs: The keyword arguments for `from_pretrained` inside the block; modified in place.

    Raises:
        ImportError: If the format requires a missing package or a GPU.
        ValueError: If the format of the tensors differs from the one in the configuration.
    """
    stated = _plain(stated_quantization(config, model_kwargs))
    method = _method_of(stated)
    missing = [package for module, package in _PACKAGES.get(method, {}).items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"{name!r} is quantized by {method}, which needs a package: pip install {' '.join(missing)}")
    asked = _plain(model_kwargs.get("quantization_config"))
    asked_kind, kind = _kind_of(asked), _kind_of(stated)
    if method and _method_of(asked) == "bitsandbytes":
        if (method, kind) != ("bitsandbytes", asked_kind):
            raise ValueError(
                f"{name!r} comes quantized ({f'{method} {kind}'.strip()}), and cannot be quantized to {asked_kind} as "
                "well: open it without quantization, or take the checkpoint that it was made of."
            )
        model_kwargs.pop("quantization_config")  # the checkpoint's own configuration includes it
    if method == "compressed-tensors":
        config.quantization_config = {**stated, "dequantize": True}
        groups = (stated.get("config_groups") or {}).values()
        if any(isinstance(group, Mapping) and group.get("input_activations") for group in groups):
            logger.warning("%r rounds activations too where it is served; here they stay floats.", name)
    elif method in ("gptq", "awq") and not torch.accelerator.is_available():
        config.quantization_config = {**stated, "backend": "auto_trainable"}
    try:
        yield
    except (ImportError, NotImplementedError) as error:
        if method:
            raise ImportError(
                f"{name!r} is quantized by {method}, which cannot be read here: {_line(error)}"
            ) from error
        raise
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if (
            stated
            and method != "gguf"
            and not isinstance(error, OutOfMemoryError)
            and "ignore_mismatched_sizes" not in str(error)
        ):
            raise ValueError(
                f"{name!r} does not hold what its config.json says of its quantization, {method or 'no quant_method'} "
                f"({_line(error)}): download or save it again, or take the config.json that belongs to it."
            ) from error
        raise


def check_read(name: str, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Raises ValueError if the checkpoint has unexpected tensors of linear layers, e.g. quantization scales."""
    layers = {path for path, module in model.named_modules() if hasattr(module, "in_features")}
    odd = sorted(
        key for key in unexpected if key.rpartition(".")[0].removeprefix(f"{model.base_model_prefix}.") in layers
    )
    if odd:
        raise ValueError(
            f"The checkpoint {name!r} holds {odd[0]} and {len(odd) - 1} more, of which its config.json says nothing, "
            "so weights would be misread: download or save it again, or take the config.json that belongs to it."
        )


def check_saving(model: PreTrainedModel) -> None:
    """Raises ValueError if transformers would not save the weights as they were loaded."""
    method = _method_of(_config_of(model.config))
    if method in ("awq", "gptq") and not adapters_of(model):
        raise ValueError(
            f"{model.name_or_path!r} is quantized by {method}, whose layers are reordered while they are opened and "
            "would be saved wrong: save an adapter on it (model.add_adapter), or a copy of the checkpoint itself."
        )


def is_saved_with_head(config: PretrainedConfig) -> bool:
    """Returns whether a checkpoint must be loaded with its language-model head, before the body is extracted.

    torchao records the name of every tensor in the file, and transformers only finds them under the same names.
    """
    is_torchao = _method_of(_config_of(config)) == "torchao"
    return is_torchao and any("ForCausalLM" in name for name in config.architectures or ())


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the body of a language model, with the quantization and device attributes of the full model."""
    body = language_model_of(model.base_model)
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "hf_device_map"):
        if hasattr(model, name):
            setattr(body, name, getattr(model, name))
    return body


def language_model_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the language model inside a multimodal model; other models are returned unchanged."""
    config = model.config.get_text_config()
    if config is model.config or type(model) is MODEL_MAPPING.get(type(config), None):
        return model
    kind = MODEL_MAPPING[type(config)]
    language_model: PreTrainedModel = next(module for module in model.modules() if type(module) is kind)
    language_model.name_or_path = language_model.config._name_or_path = model.name_or_path
    return language_model


def settle(model: PreTrainedModel, stated: Any) -> None:
    """Fixes up a model after loading: marks dequantized models as float, and prepares 4-bit weights.

    Quantized checkpoints are saved with the architecture's own tensor names, because the reverse conversion of
    transformers rounds again without recording it in the configuration, or does not exist.

    Args:
        model: The body.
        stated: The `quantization_config` of the checkpoint, if any.
    """
    if stated:
        model.__dict__.pop("_weight_conversions", None)
    quantizer = getattr(model, "hf_quantizer", None)
    is_float_gguf = getattr(quantizer, "packed_modules", None) == {}
    if quantizer is not None and (is_float_gguf or getattr(quantizer.quantization_config, "dequantize", False)):
        quantizer.remove_quantization_config(model)
    prepare_nf4(model)


def stated_quantization(config: PretrainedConfig, model_kwargs: dict[str, Any]) -> Any:
    """Returns the `quantization_config` of a checkpoint, None for float weights."""
    stated = getattr(config, "quantization_config", None)
    return stated or ({"quant_method": "gguf"} if model_kwargs.get("gguf_file") else None)


def describe_quantization(stated: Any, model: PreTrainedModel) -> str | None:
    """Returns a short description of a model's quantization, also if dequantized on load; None for float weights.

    Args:
        stated: The `quantization_config` of the checkpoint, if any.
        model: The loaded body.
    """
    values = _config_of(model.config) if is_quantized(model) else _plain(stated)
    if not values:
        return None
    description = f"{_method_of(values)} {_kind_of(values)}".strip()
    return description if is_quantized(model) else f"{description}, opened as floats"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _method_of(values: Mapping[str, Any]) -> str:
    method = values.get("quant_method") or ""
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        method = "bitsandbytes"
    return str(getattr(method, "value", method))


def _kind_of(values: Mapping[str, Any]) -> str:
    kind = "int8" if values.get("load_in_8bit") else next((values[name] for name in _KINDS if values.get(name)), "")
    if isinstance(kind, Mapping):  # torchao's, by layer
        kind = next(iter(kind.values())).get("_type", "")
    return f"{kind} bit" if isinstance(kind, int) else str(kind)


def _config_of(config: PretrainedConfig) -> dict[str, Any]:
    return _plain(getattr(config, "quantization_config", None))


def _plain(quantization: Any) -> dict[str, Any]:
    if quantization is None:
        return {}
    return dict(quantization if isinstance(quantization, Mapping) else quantization.to_dict())
