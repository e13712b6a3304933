"""The fingerprint of a model: everything that its embeddings depend on. Used in corpora, results, logs and cards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from sentence_transformers import SentenceTransformer

from st_prompteol.llm.loaded import adapters_of, parts_of
from st_prompteol.prompt.tokenizer import TemplateTokenizer, read_template

_THREADS = 4  # for hashing weights; hashlib releases the GIL
# Keys of a configuration that only describe a model's origin and saved format
_NAMES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config")
_STATED_APART = ("transformer_task", "modality_config", "module_output_name", "model_args")  # layer and dtype
_ADAPTER_NAMES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


def identify(model: SentenceTransformer) -> dict[str, Any]:
    """Returns a JSON-serializable dictionary of everything that a model's embeddings and their scores depend on.

    All bytes of the weights are hashed, which takes about a second for 2 GB.

    Args:
        model: Any `SentenceTransformer`.

    Raises:
        ValueError: If weights are on the device `meta`, where they have no values.
    """
    first = model[0]
    body = model.transformers_model
    config = getattr(body, "config", None)
    return {
        "weights": _digest_of_weights(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": _plain(getattr(config, "quantization_config", None)),
        "adapters": _adapters(body),
        "template": _templates(model),
        "layer": getattr(first, "layer", None),
        "modules": [[type(module).__name__, _settings(module, is_first=module is first)] for module in model],
        "config": digest([digest(_plain(config), _NAMES), _computation(body)]),
        "tokenizer": digest(_tokenizer(model.tokenizer)),
        "max_seq_length": model.max_seq_length,
        "truncate_dim": model.truncate_dim,
        "prompt": model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None,
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},  # mteb chooses one by task
        "similarity": model.similarity_fn_name,
        "dimension": model.get_embedding_dimension(),
    }


def digest(values: Any, but: tuple[str, ...] = ()) -> str:
    """Returns a short hash of JSON-like values; the keys of a mapping in `but` are ignored."""
    if isinstance(values, Mapping):
        values = {name: value for name, value in values.items() if name not in but}
    text = json.dumps(
        values, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], line: str) -> str:
    """Formats each changed key with `line`, which contains `{name}`, `{before}` and `{now}`; empty if none changed."""
    return "; ".join(
        line.format(name=name, before=repr(before.get(name)), now=repr(now.get(name)))
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )


def _templates(model: SentenceTransformer) -> Any:
    """Returns the template, or the templates of an ensemble."""
    several = [template.to_dict() for template in getattr(model, "templates", ())]
    return several or read_template(model.tokenizer)


def _adapters(body: Any) -> dict[str, str]:
    """Returns the active adapters by name, and their state in each layer: enabled, merged, scaling."""
    if not (loaded := adapters_of(body)):
        return {}
    layers = [
        (name, layer.disable_adapters, layer.active_adapters, layer.merged_adapters, getattr(layer, "scaling", None))
        for name, layer in body.named_modules()
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    active = {adapter for _, is_off, names, *_ in layers if not is_off for adapter in names}
    configs = {name: digest(_plain(loaded[name]), _ADAPTER_NAMES) for name in sorted(active)}
    return {**configs, "layers": digest(layers)}


def _computation(body: Any) -> list[Any]:
    """Returns the numbers and activations of the body's modules, which may be changed apart from the configuration."""
    return [
        [name, None if next(module.parameters(), None) is not None else type(module).__name__, numbers]
        for name, module in (body.named_modules() if body is not None else ())
        if (numbers := {key: value for key, value in vars(module).items() if isinstance(value, float)})
        or next(module.parameters(), None) is None
    ]


def _digest_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    tensors: dict[str, Any] = dict(model.state_dict())
    for name, buffer in model.named_buffers():
        if name not in tensors:  # not saved: computed by the body from its configuration, and possibly cast
            tensors[name] = buffer.dtype if name.startswith("0.") else buffer
    with ThreadPoolExecutor(_THREADS) as threads:
        for part in threads.map(lambda item: _digest_of_tensor(*item), tensors.items()):
            digest.update(part)
    return digest.hexdigest()[:16]


def _digest_of_tensor(name: str, tensor: Any) -> bytes:
    if not isinstance(tensor, torch.Tensor):  # a module's extra state
        return hashlib.sha256(f"{name} {tensor!r}".encode()).digest()
    if tensor.is_meta:
        raise ValueError(f"The weights {name!r} are on the device 'meta', so they hold nothing: open it on another.")
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    for part in parts_of(tensor):
        digest.update(part.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.digest()


def _settings(module: torch.nn.Module, *, is_first: bool) -> Any:
    get_config: Any = getattr(module, "get_config_dict", None)
    settings: Any = repr(module) if get_config is None else get_config()
    if hasattr(module, "layer"):  # our module, whose layer is a separate entry
        settings = {name: value for name, value in settings.items() if name not in _STATED_APART}
    if not is_first:  # third-party modules may keep settings in any attribute
        settings = [settings, [[name, _attributes(part)] for name, part in module.named_modules()]]
    return json.loads(json.dumps(settings, default=str))


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, list, tuple, torch.Tensor, np.ndarray)
    found = {name: value for name, value in vars(module).items() if isinstance(value, kinds) and name != "training"}
    return {
        name: value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value
        for name, value in found.items()
    }


def _tokenizer(tokenizer: Any) -> Any:
    """Returns everything that determines tokenization except the template, which is a separate entry."""
    ours = isinstance(tokenizer, TemplateTokenizer)
    backend = tokenizer.plain if ours else getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        content.pop("truncation"), content.pop("padding")  # set by the last call
    else:
        content = [type(tokenizer).__name__, tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None]
    names = ("chat_template", "padding_side", "truncation_side", "split_special_tokens", "special_tokens_map", "bos")
    return content, {name: getattr(tokenizer, name, None) for name in names}


def _plain(config: Any) -> Any:
    return config.to_dict() if hasattr(config, "to_dict") else config
