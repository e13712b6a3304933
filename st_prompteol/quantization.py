"""Quantised weights: quantising by bitsandbytes while a model is opened, and checkpoints that come quantised."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import OutOfMemoryError, Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import MODEL_MAPPING, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from st_prompteol.extras import missing_extra

logger = logging.getLogger(__name__)

Quantization = Literal["nf4", "int8"]

# The modules that transformers reads a format with, by the names that pip installs them under
_PACKAGES = {
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "gguf": {"gguf": "gguf"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "torchao": {"torchao": "torchao"},
}
# What a configuration calls its kind of numbers, in the order in which it says most
_KINDS = ("bnb_4bit_quant_type", "bits", "format", "quant_type", "fmt")
# bitsandbytes' block of weights that share one scale, and the rows that its packed CPU kernel takes at a time
_NF4_BLOCK_SIZE = 64
_CPU_PACK_ROWS = 32


def quantization_config(
    quantization: Quantization, *, compute_dtype: torch.dtype = torch.float32
) -> BitsAndBytesConfig:
    """Returns upstream's configuration with the paper's values: nf4, double quantisation, computing in float32.

    Args:
        quantization: `"nf4"` (4 bit) or `"int8"` (8 bit).
        compute_dtype: The dtype that nf4 weights are multiplied in. Defaults to `torch.float32`, as the paper's
            training does; its 4-bit evaluation used `torch.float16`.

    Raises:
        ValueError: If `quantization` is neither.
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
    """Makes sure that a checkpoint that comes quantised can be read, chooses how, and says what went wrong.

    What compressed-tensors writes is opened as the floats that its weights stand for: transformers computes with these
    as well, but turns them into floats in a hook that sentence-transformers does not call. What gptqmodel reads is
    computed on a CPU by kernels through which gradients pass.

    Args:
        name: The checkpoint's.
        config: Its configuration, in which the choice is noted.
        model_kwargs: What `from_pretrained` is called with within.

    Raises:
        ImportError: If a package that its format needs is missing, or a GPU.
        ValueError: If its tensors are of another format than its configuration says.
    """
    stated = _plain(stated_quantization(config, model_kwargs))
    method = _method_of(stated)
    missing = [package for module, package in _PACKAGES.get(method, {}).items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"{name!r} is quantised by {method}, which needs a package: pip install {' '.join(missing)}")
    asked = _plain(model_kwargs.get("quantization_config"))
    asked_kind, kind = _kind_of(asked), _kind_of(stated)
    if method and _method_of(asked) == "bitsandbytes":
        if (method, kind) != ("bitsandbytes", asked_kind):
            raise ValueError(
                f"{name!r} comes quantised ({f'{method} {kind}'.strip()}), and cannot be quantised to {asked_kind} as "
                "well: open it without quantization, or take the checkpoint that it was made of."
            )
        model_kwargs.pop("quantization_config")  # the checkpoint's own says the same, and more
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
                f"{name!r} is quantised by {method}, which cannot be read here: {_line(error)}"
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
                f"{name!r} does not hold what its config.json says of its quantisation, {method or 'no quant_method'} "
                f"({_line(error)}): download or save it again, or take the config.json that belongs to it."
            ) from error
        raise


def check_read(name: str, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Raises ValueError if linear layers have tensors in the checkpoint that the model has no use for: scales, say."""
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
    """Raises ValueError if transformers would not save the weights as they were opened."""
    method = _method_of(_plain(getattr(model.config, "quantization_config", None)))
    if method in ("awq", "gptq") and not getattr(model, "peft_config", None):
        raise ValueError(
            f"{model.name_or_path!r} is quantised by {method}, whose layers are reordered while they are opened and "
            "would be saved wrong: save an adapter on it (model.add_adapter), or a copy of the checkpoint itself."
        )


def is_saved_with_head(config: PretrainedConfig) -> bool:
    """Says whether a checkpoint can be opened with its language-model head only, of which the body is then taken.

    torchao notes the name of every tensor in the file, and transformers finds them under the same names alone.
    """
    is_torchao = _method_of(_plain(getattr(config, "quantization_config", None))) == "torchao"
    return is_torchao and any("ForCausalLM" in name for name in config.architectures or ())


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the body of a language model, with what transformers has noted on the whole; a body as it is."""
    body = language_model_of(model.base_model)
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "hf_device_map"):
        if hasattr(model, name):
            setattr(body, name, getattr(model, name))
    return body


def language_model_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the language model within a multimodal one, any other as it is."""
    config = model.config.get_text_config()
    if config is model.config or type(model) is MODEL_MAPPING.get(type(config), None):
        return model
    kind = MODEL_MAPPING[type(config)]
    language_model: PreTrainedModel = next(module for module in model.modules() if type(module) is kind)
    language_model.name_or_path = language_model.config._name_or_path = model.name_or_path
    return language_model


def settle(model: PreTrainedModel, stated: Any) -> None:
    """Finishes the opening of a model: what was turned into floats is a float model, 4-bit weights can be computed.

    What comes quantised is saved under the architecture's own names: the way back that transformers notes rounds
    again, without a word of it in the configuration, or is not there.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first inference, which breaks unless the rows
    are a multiple of 32 and the columns of the block size 64; other layers are computed by its other kernel.

    Args:
        model: The body.
        stated: The `quantization_config` that the checkpoint came with, if any.
    """
    if stated:
        model.__dict__.pop("_weight_conversions", None)
    quantizer = getattr(model, "hf_quantizer", None)
    is_float_gguf = getattr(quantizer, "packed_modules", None) == {}
    if quantizer is not None and (is_float_gguf or getattr(quantizer.quantization_config, "dequantize", False)):
        quantizer.remove_quantization_config(model)
    for module in _nf4_layers(model):
        module.loaded_quant_state = copy.copy(module.weight.quant_state)
        if module.out_features % _CPU_PACK_ROWS or module.in_features % _NF4_BLOCK_SIZE:
            module.support_avx512bf16_for_cpu = False


def stated_quantization(config: PretrainedConfig, model_kwargs: dict[str, Any]) -> Any:
    """Returns the `quantization_config` that a checkpoint comes with, None for floats."""
    stated = getattr(config, "quantization_config", None)
    return stated or ({"quant_method": "gguf"} if model_kwargs.get("gguf_file") else None)


def describe_quantization(stated: Any, model: PreTrainedModel) -> str | None:
    """Returns how the weights of a model are, or came, quantised, in a few words; None for floats.

    Args:
        stated: The `quantization_config` that the checkpoint came with, if any.
        model: The body, as it was opened.
    """
    is_quantized = getattr(model, "is_quantized", False)
    values = _plain(getattr(model.config, "quantization_config", None) if is_quantized else stated)
    if not values:
        return None
    told = f"{_method_of(values)} {_kind_of(values)}".strip()
    return told if is_quantized else f"{told}, opened as floats"


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Returns the plain tensors that a weight is made of: its numbers and scales if torchao made it, else itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def came_quantized(model: PreTrainedModel) -> bool:
    """Says whether the checkpoint itself is quantised, so that everybody who opens it gets it so."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _method_of(values: Mapping[str, Any]) -> str:
    method = values.get("quant_method") or ""
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        method = "bitsandbytes"
    return str(getattr(method, "value", method))


def _kind_of(values: Mapping[str, Any]) -> str:
    kind = "int8" if values.get("load_in_8bit") else next((values[name] for name in _KINDS if values.get(name)), "")
    if isinstance(kind, Mapping):  # torchao's, by the layers that it is for
        kind = next(iter(kind.values())).get("_type", "")
    return f"{kind} bit" if isinstance(kind, int) else str(kind)


def _plain(quantization: Any) -> dict[str, Any]:
    if quantization is None:
        return {}
    return dict(quantization if isinstance(quantization, Mapping) else quantization.to_dict())


def unpack_nf4(model: PreTrainedModel) -> None:
    """Undoes bitsandbytes' packing of 4-bit weights for a CPU, exactly, so that what is saved is what was loaded.

    Packing rounds the scales to bfloat16, and bitsandbytes' own way back keeps the rounded ones. The next inference
    packs again.
    """
    for module in _nf4_layers(model):
        weight = module.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            weight.data, _ = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
            weight.quant_state = module.quant_state = copy.copy(module.loaded_quant_state)


def keep_nf4_unpacked(model: PreTrainedModel) -> None:
    """Makes 4-bit weights ready for gradients, and keeps them so through every evaluation in between.

    No gradient passes through a weight that bitsandbytes has packed for a CPU, so those below it would silently be
    zero. What was packed is unpacked, and packing is turned off, which costs later inference on this model speed.
    """
    unpack_nf4(model)
    for module in _nf4_layers(model):
        module.support_avx512bf16_for_cpu = False


def _nf4_layers(model: PreTrainedModel) -> list[Any]:
    if not getattr(model, "is_loaded_in_4bit", False):
        return []
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]
