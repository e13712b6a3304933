"""LoRA adapters: configuration, loading with a check of every tensor, and merging."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import isclose
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from st_prompteol.llm.adapter_files import adapter_tensors, check_kind, embedding_name, name_as_body, read_adapter
from st_prompteol.llm.loaded import adapters_of, commit_of, is_quantized

_PROBED = 24  # tokens for comparing the outputs before and after a merge


def lora_config(
    *,
    r: int = 64,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    target_modules: str | Sequence[str] = "all-linear",
    **kwargs: Any,
) -> LoraConfig:
    """Returns peft's `LoraConfig` with the paper's values: LoRA on every linear layer, no bias.

    The language-model head is not adapted, because it is not part of the body that `PromptEOL` trains. In 8 and 16 bit
    the paper's code adapts `["q_proj", "v_proj"]` only; pass them as `target_modules` to match it.

    Args:
        r: The rank. Defaults to 64.
        lora_alpha: Updates are scaled by `lora_alpha / r`. Defaults to 16.
        lora_dropout: The dropout probability of the adapter's input during training. Defaults to 0.05.
        target_modules: Names of the layers to adapt, or `"all-linear"`. Defaults to `"all-linear"`.
        **kwargs: Other arguments of `LoraConfig`.

    Example:
        >>> model = PromptEOL("tiny")
        >>> model.add_adapter(lora_config(r=16))
        >>> model.adapters
        ['default']
    """
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    options = {"bias": "none", "task_type": "FEATURE_EXTRACTION", **kwargs}
    return LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets, **options)


def prepare_config(config: PeftConfig, model: PreTrainedModel) -> PeftConfig:
    """Returns the configuration of a new adapter with the layer names of this body.

    Replaces `"all-linear"` by layer names if peft does not recognize the model's linear layers (GPTQ, AWQ).

    Raises:
        ValueError: If adapters of this type cannot be saved for sentence-transformers.
    """
    check_kind("new", config)
    config = copy.deepcopy(config)
    name_as_body(config, model, (f"{model.base_model_prefix}.", ""))
    if getattr(config, "target_modules", None) != "all-linear":
        return config
    linear = linear_layers(model)
    if any(isinstance(module, torch.nn.Linear | Conv1D) for module in linear.values()):
        return config
    return replace(config, target_modules=list(linear))


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Returns the layers that LoRA can adapt, by the last part of their names; one layer per name."""
    return {
        path.rpartition(".")[2]: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "in_features", None), int) or isinstance(module, Conv1D)  # GPT-2's
    }


def load_adapter(
    model: PreTrainedModel,
    adapter_name_or_path: str,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    **hub_kwargs: Any,
) -> None:
    """Loads a published adapter into the body of a decoder LLM and activates it.

    The adapter may have been trained on the body or on the causal LM, and may be stored as
    `adapter_model.safetensors` or `adapter_model.bin` (loaded with `weights_only=True`, so no code is executed).

    Args:
        model: The body, as returned by `AutoModel`.
        adapter_name_or_path: A folder or a Hub repository with an `adapter_config.json`.
        adapter_name: The name of the adapter in the model. Defaults to `"default"`.
        is_trainable: Whether the adapter's weights require gradients. Defaults to False.
        **hub_kwargs: `revision`, `token`, `cache_dir` and `local_files_only` of `hf_hub_download`.

    Raises:
        ValueError: If the adapter has unexpected or missing tensors, or shapes differ; the model is then unchanged.
    """
    config, tensors = read_adapter(adapter_name_or_path, model, **hub_kwargs)
    if adapter_name in adapters_of(model):
        raise ValueError(f"The model has an adapter {adapter_name!r} already: pass another adapter_name.")
    config.inference_mode = not is_trainable
    rows = len(model.get_input_embeddings().weight)
    _resize(model, next((len(tensors[name]) for name in _embeddings(model) if name in tensors), rows))
    try:
        inject_adapter_in_model(config, model, adapter_name)
    except NoMatchingPeftModuleError as error:
        raise ValueError(_misfit(adapter_name_or_path, model, str(error))) from error
    model._hf_peft_config_loaded = True
    problem = _difference(adapter_tensors(model, adapter_name), tensors)
    if problem is None:
        try:
            set_peft_model_state_dict(model, tensors, adapter_name)
        except RuntimeError:
            shapes = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model, adapter_name).items()}
            odd = [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if shapes.get(name) != tuple(t.shape)]
            if not odd:
                raise
            problem = f"shapes differ: {_some(odd)}"
    if problem:
        _remove(model, adapter_name)
        _resize(model, rows)
        raise ValueError(_misfit(adapter_name_or_path, model, problem))
    model.set_adapter(adapter_name)
    model.eval()


def record_base_revision(model: PreTrainedModel) -> None:
    """Records the commit of a base model from the Hub in the configuration of every adapter.

    peft's field for it is `revision`, so that the adapter is later loaded with the same base.
    """
    commit = commit_of(model)
    for config in adapters_of(model).values():
        config.revision = commit or config.revision


def check_saving_adapters(model: PreTrainedModel) -> None:
    """Raises ValueError if the model differs from its base plus the single adapter that would be saved."""
    if not adapters_of(model):
        return
    layers: list[Any] = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    active = list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))
    problem = None
    if not all(map(_is_in_use, layers)):
        problem = f"adapters are switched off ({', '.join(adapters_of(model))})"
    elif len(active) > 1:
        problem = f"{len(active)} adapters are in use ({', '.join(active)})"
    elif others := sorted({name for layer in layers for name in layer.merged_adapters} - set(active)):
        problem = f"another adapter is in the weights ({', '.join(others)})"
    elif any(_is_scaled(layer, name) for layer in layers for name in active):
        problem = f"the adapter {active[0]!r} is scaled otherwise than its configuration says"
    if problem:
        raise ValueError(
            f"Saved as an adapter, {model.name_or_path!r} would be opened as another model, since {problem}: undo "
            "that first (enable_adapters(), set_adapter(name)), or call merge_adapter() and save the whole."
        )


def _is_scaled(layer: Any, name: str) -> bool:
    """Whether the LoRA scaling was changed after the adapter was created, e.g. by `scale_layer`."""
    if name not in getattr(layer, "lora_alpha", {}):
        return False
    rank, alpha = layer.r[name], layer.lora_alpha[name]
    if isinstance(layer, AdaLoraLayer):
        stated = alpha if alpha > 0 else rank
    else:
        stated = alpha / (rank**0.5 if layer.use_rslora.get(name) else rank)
    return not isclose(layer.scaling[name], stated, rel_tol=1e-6)


def load_adapter_weights(model: PreTrainedModel, path: str, adapter_name: str = "default") -> None:
    """Copies the tensors of a saved adapter into the loaded adapter, whose parameters stay the same objects.

    A resumed optimizer needs the same objects; and for a quantized base there may be no memory for a second copy.

    Args:
        model: The body with the adapter.
        path: The folder of the saved adapter.
        adapter_name: The name of the adapter in the model. Defaults to `"default"`.

    Raises:
        ValueError: If tensors differ in names or shapes; the model is then unchanged.
    """
    _, saved = read_adapter(path, model)
    own = adapter_tensors(model, adapter_name)
    odd = saved.keys() ^ own.keys() or {key for key in own if own[key].shape != saved[key].shape}
    if odd:
        raise ValueError(_misfit(path, model, f"it differs from the adapter {adapter_name!r} in {_some(odd)}"))
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(saved[key])


def _embeddings(model: PreTrainedModel) -> list[str]:
    """Returns the possible names of the token embeddings in the file of an adapter with a resized vocabulary."""
    name = embedding_name(model)
    return [f"{name}{part}.weight" for part in ("", ".base_layer", ".token_adapter.base_layer")]


def _resize(model: PreTrainedModel, rows: int) -> None:
    if rows != len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(rows, mean_resizing=False)


def _remove(model: PreTrainedModel, adapter_name: str) -> None:
    """Removes an adapter; with the last one, also peft's wrappers around the layers."""
    model.delete_adapter(adapter_name)
    for path, module in list(model.named_modules()):
        if adapters_of(model) or not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        parent, _, child = path.rpartition(".")
        is_layer = isinstance(module, BaseTunerLayer)
        setattr(model.get_submodule(parent), child, module.get_base_layer() if is_layer else module.original_module)


def _difference(own: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> str | None:
    if missing := own.keys() - saved.keys():
        return f"it has no tensor for {_some(missing)}"
    if unexpected := {name for name in saved.keys() - own.keys() if not name.endswith(".base_layer.weight")}:
        return f"the model has no place for {_some(unexpected)}"
    return None


def _misfit(adapter_name_or_path: str, model: PreTrainedModel, problem: str) -> str:
    return (
        f"The adapter {adapter_name_or_path!r} does not fit {model.name_or_path!r} ({type(model).__name__}): "
        f"{problem}. Open it on the base model that its adapter_config.json was trained on."
    )


def _some(names: Any, limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _is_in_use(layer: Any) -> bool:
    layer = getattr(layer, "token_adapter", layer)  # its state decides for its wrapper
    return bool(layer.active_adapters) and not layer.disable_adapters


def _merged(layer: Any) -> torch.nn.Module:
    """Returns a plain layer that computes the same as the layer with its adapters in their current state.

    Adapters in use are merged, disabled ones removed. A layer that was merged before keeps only the merged adapters,
    unless it is disabled.
    """
    plain: torch.nn.Module
    if isinstance(layer, TrainableTokensWrapper):
        return _merged(layer.token_adapter)
    if isinstance(layer, ModulesToSaveWrapper):
        is_on = _is_in_use(layer) and all(name in layer.modules_to_save for name in layer.active_adapters)
        plain = layer.original_module
        if is_on:
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        return plain
    if layer.disable_adapters:
        if layer.merged:
            layer.unmerge()
    elif not layer.merged:
        layer.merge(safe_merge=True)
    plain = layer.get_base_layer()
    return plain


def merge_adapter(model: PreTrainedModel) -> None:
    """Merges the active adapters into the weights and removes all adapters, in place; embeddings stay the same.

    Raises:
        ValueError: If the model has no adapter, all are disabled, or the weights are quantized, which would round the
            sum. Also if the outputs differ after merging; the model then keeps the merged weights.
    """
    if not adapters_of(model):
        raise ValueError(f"{model.name_or_path!r} has no adapter to merge: it is a full model already.")
    if is_quantized(model):
        raise ValueError(
            f"{model.name_or_path!r} is quantized, and merging would round the adapter away: open it without "
            "quantization, then merge."
        )
    if any(getattr(config, "layer_replication", None) for config in adapters_of(model).values()):
        raise ValueError(
            f"The adapter on {model.name_or_path!r} repeats layers (layer_replication), which share their weights, so "
            "it cannot be merged: save the adapter."
        )
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
    }
    if not any(_is_in_use(layer) for layer in layers.values()):
        raise ValueError(
            f"All adapters of {model.name_or_path!r} are switched off ({', '.join(adapters_of(model))}), so there is "
            "nothing to merge: call enable_adapters() first, or delete_adapter() to remove them."
        )
    expected = _probe(model)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        if any(parent == outer or parent.startswith(f"{outer}.") for outer in layers):
            continue
        setattr(model.get_submodule(parent), child, _merged(layer))
    del model.peft_config
    model._hf_peft_config_loaded = False
    # transformers saves with the tensor names of the last load, here the adapter's; without this record, it uses the
    # architecture's own.
    model.__dict__.pop("_weight_conversions", None)
    difference = ((_probe(model) - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)).max()
    if not difference <= (1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(
            f"Merged into the weights of {model.name_or_path!r}, the adapters compute something else (by "
            f"{float(difference):.1g} of the largest number): open it again, and save the adapter as it is."
        )


def _probe(model: PreTrainedModel) -> torch.Tensor:
    """Returns the last hidden states of a few tokens, `(1, sequence_length, hidden_size)`, in float32."""
    ids = torch.arange(_PROBED, device=model.device)[None] * 7 % model.config.get_text_config().vocab_size
    was_training = model.training
    with torch.no_grad():
        hidden: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).last_hidden_state
    model.train(was_training)
    return hidden.float()
