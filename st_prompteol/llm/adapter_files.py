"""Adapter folders: loads adapters of other tools with the body's layer names, and checks saved adapters for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

from st_prompteol.llm.decoders import find_file
from st_prompteol.llm.loaded import adapters_of

_PEFT_PREFIX = "base_model.model."  # prefix of every tensor name in an adapter file
_INDEX = "adapter_model.safetensors.index.json"
_MERGE = (
    "merge it into its base by peft's merge_and_unload(), save that model and its tokenizer to a folder, and open the "
    "folder"
)
# Tested adapter types that only modify layers of the model; docs/adapters.md has the table
IN_LAYERS = frozenset(
    "LORA ADALORA ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR MISS OFT "
    "OSF PEANUT PSOFT ROAD SHIRA SUPERTUNING TRAINABLE_TOKENS WAVEFT".split()
)
# LoRA options without tests
_UNTRIED = ("kasa_config", "megatron_config", "monteclora_config", "use_bdlora", "velora_config")
_SHARING = ("LILY", "RANDLORA")  # share weights between layers, although peft does not say it of them
# Why other types are not loaded
_REASONS = {
    "POLY": "needs the number of a task with every sentence",
    "SHADOW": "runs a second model beside the base",
    "XLORA": "mixes several adapters by a classifier that reads the whole input",
}


def check_kind(adapter_name_or_path: str, config: PeftConfig) -> None:
    """Raises ValueError if an adapter's type modifies more than the layers of the model."""
    kind, init = PeftType(config.peft_type).value, str(getattr(config, "init_lora_weights", None))
    reason, remedy = None, "train LoRA instead"
    if config.is_prompt_learning or config.is_adaption_prompt:
        reason = "adds virtual tokens to every sentence, which sentence-transformers does not do"
    elif getattr(config, "alora_invocation_tokens", None):
        reason = "is an activated LoRA, which works only behind its invocation tokens"
    elif untried := [option for option in _UNTRIED if getattr(config, option, None)]:
        reason, remedy = f"was made with {untried[0]}, with which adapters were not tried here", _MERGE
    elif init.startswith("pissa_niter"):
        reason = f"changes the base by an SVD that is another one whenever it is opened (init_lora_weights={init!r})"
        remedy = "let peft convert it to LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    elif kind in _REASONS:
        reason = _REASONS[kind]
    elif kind in _SHARING or PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].uses_shared_state:
        reason, remedy = (
            "shares weights between layers, which transformers and sentence-transformers do not open",
            _MERGE,
        )
    elif kind not in IN_LAYERS:
        reason, remedy = "is of a kind that is too new to have been tried", _MERGE
    if reason:
        raise ValueError(f"The adapter {adapter_name_or_path!r} ({kind}) {reason}: {remedy}.")


def read_adapter(
    adapter_name_or_path: str, model: PreTrainedModel, **hub_kwargs: Any
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Reads a published adapter, trained on the body or a causal LM, and renames its layers to those of the body.

    Layers that the body does not have and embeddings do not need (a language-model head) are left out.

    Args:
        adapter_name_or_path: A folder or a Hub repository.
        model: The body.
        **hub_kwargs: As in `load_adapter`.

    Returns:
        The adapter's configuration, and its tensors by their names in the body.

    Raises:
        ValueError: If the adapter's type is not supported, or it only adapts layers that are left out.
    """
    config = PeftConfig.from_pretrained(adapter_name_or_path, **hub_kwargs)
    check_kind(adapter_name_or_path, config)
    raw = {
        name.removeprefix(_PEFT_PREFIX).replace("_orig_mod.", ""): tensor  # torch.compile's
        for name, tensor in _read_tensors(adapter_name_or_path, hub_kwargs).items()
    }
    prefix = _prefix(raw, model)
    tensors = {
        _plain(name.removeprefix(prefix)): tensor
        for name, tensor in raw.items()
        if name.startswith(prefix) and ".modules_to_save." not in name and ".original_module." not in name  # copies
    }
    if not tensors:
        parts = {part for name in raw for part in name.split(".")}
        layers = {name for name, _ in model.named_children()}
        if not raw or parts & layers or any(map(str.isdigit, parts)) or not all(map(torch.is_tensor, raw.values())):
            raise ValueError(
                f"No tensor of the adapter {adapter_name_or_path!r} ({', '.join(sorted(raw)[:2]) or 'it has none'}) "
                f"belongs to a layer of {model.name_or_path!r} ({type(model).__name__}): save it again by peft's "
                "save_pretrained(), and open it on the base model that it was trained on."
            )
        raise ValueError(
            f"The adapter {adapter_name_or_path!r} adapts nothing that an embedding reads ("
            f"{', '.join(sorted(raw)[:2])}): its embeddings are those of {model.name_or_path!r}, so open that."
        )
    name_as_body(config, model, (prefix,))
    config.task_type = "FEATURE_EXTRACTION"  # the task type with which peft loads it on the body
    embeddings = embedding_name(model)
    if f"{embeddings}.weight" in tensors and hasattr(config, "modules_to_save"):
        # saved as a whole beside the adapter, e.g. after the vocabulary was resized
        config.modules_to_save = sorted({*(config.modules_to_save or ()), embeddings})
    return config, tensors


def name_as_body(config: PeftConfig, model: PreTrainedModel, prefixes: Iterable[str]) -> None:
    """Replaces the layer names in an adapter configuration by those of the body, in place.

    Args:
        config: The configuration of an adapter for the causal LM or the body.
        model: The body.
        prefixes: Possible prefixes of the body's names, such as `"model."`.
    """
    names = {f"{prefix}{name}": name for name, _ in model.named_modules() if name for prefix in prefixes}
    targets = getattr(config, "target_modules", None)
    if targets and targets != "all-linear" and _depends_on_prefix(config):
        adapted = {name for full, name in names.items() if check_target_module_exists(config, full)}
        if adapted:  # otherwise peft raises its own error that nothing was found
            config.target_modules = _shorten(adapted, names.values())
            for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
                if hasattr(config, field):
                    setattr(config, field, None)
    for field in ("rank_pattern", "alpha_pattern"):
        if pattern := getattr(config, field, None):
            keys = {name: get_pattern_key(pattern, full) for full, name in names.items()}
            if any(get_pattern_key(pattern, name) != key for name, key in keys.items() if key in pattern):
                setattr(config, field, {name: pattern[key] for name, key in keys.items() if key in pattern})

    def strip(name: str) -> str:
        return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)

    if saved := getattr(config, "modules_to_save", None):
        kept = {strip(name) for name in saved}
        config.modules_to_save = sorted(name for name in kept if any(own.endswith(name) for own in names.values()))
    if isinstance(tokens := getattr(config, "trainable_token_indices", None), dict):
        stripped = {strip(name): indices for name, indices in tokens.items()}
        own = {name: indices for name, indices in stripped.items() if any(n.endswith(name) for n in names.values())}
        config.trainable_token_indices = own
    for field, kind in (("target_parameters", list), ("feedforward_modules", set)):
        if isinstance(listed := getattr(config, field, None), list | set | tuple):
            setattr(config, field, kind(map(strip, listed)))


def _depends_on_prefix(config: PeftConfig) -> bool:
    listed = (getattr(config, field, None) for field in ("target_modules", "exclude_modules"))
    spelled = any(isinstance(names, str) or any("." in name for name in names) for names in listed if names)
    return spelled or getattr(config, "layers_to_transform", None) is not None


def _shorten(adapted: set[str], names: Iterable[str]) -> list[str]:
    """Shortens layer names to their last part where it is unambiguous; the others stay whole."""
    last = {name.rpartition(".")[2] for name in adapted}
    return sorted(last if {name for name in names if name.rpartition(".")[2] in last} == adapted else adapted)


def _prefix(raw: Iterable[str], model: PreTrainedModel) -> str:
    """Returns the prefix of the body's names in an adapter file."""
    body = model.base_model_prefix
    children = tuple(f"{name}." for name, _ in model.named_children())
    for prefix in (f"{body}.language_model.", f"language_model.{body}.", f"{body}.", "language_model.", ""):
        if any(name.startswith(prefix) and name.removeprefix(prefix).startswith(children) for name in raw):
            return prefix
    return f"{body}."


def _read_tensors(adapter_name_or_path: str, hub_kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    if (index := find_file(adapter_name_or_path, _INDEX, hub_kwargs)) is None:
        tensors: dict[str, torch.Tensor] = load_peft_weights(adapter_name_or_path, device="cpu", **hub_kwargs)
        return tensors
    tensors = {}
    for shard in sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())):
        if (path := find_file(adapter_name_or_path, shard, hub_kwargs)) is None:
            raise FileNotFoundError(f"The adapter {adapter_name_or_path!r} has no {shard}, which its index names.")
        tensors |= load_file(path)
    return tensors


def _plain(name: str) -> str:
    """Returns a tensor name that peft and transformers both read: adds `.weight`, missing in peft's DoRA names."""
    return f"{name}.weight" if name.endswith(".lora_magnitude_vector") else name


def embedding_name(model: PreTrainedModel) -> str:
    """Returns the name of a body's input embeddings."""
    embeddings = model.get_input_embeddings()
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    return names[embeddings]


def adapter_tensors(model: PreTrainedModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a loaded adapter by their names in its file; they share the model's memory."""
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {_plain(name): tensor for name, tensor in tensors.items()}


def check_base(model: PreTrainedModel, base: PretrainedConfig | None) -> None:
    """Raises ValueError if the base model named in an adapter is not the one that others would load.

    Args:
        model: The body with the adapter.
        base: The published configuration of the base; None if the weights below the adapter have changed since.
    """
    if not adapters_of(model):
        return
    rows, problem = len(model.get_input_embeddings().weight), None
    if base is None:
        problem = "the weights below it have changed since that was opened"
    elif base.model_type != model.config.model_type:
        problem = f"its layers have other names there (model_type {base.model_type!r})"
    elif base.vocab_size != rows:
        problem = f"the vocabulary has {base.vocab_size} rows there and {rows} here"
    if problem:
        raise ValueError(_not_saved(model, problem))


def _not_saved(model: PreTrainedModel, problem: str) -> str:
    base = adapters_of(model)[model.active_adapters()[0]].base_model_name_or_path
    return (
        f"The adapter is not saved, because SentenceTransformer would open it on {base!r}, and {problem}: call "
        "merge_adapter() and save the full model."
    )


def finish_saved_adapter(folder: Path, model: PreTrainedModel, base: PretrainedConfig) -> None:
    """Rewrites a just saved adapter for all readers, and checks that plain `SentenceTransformer` loads it correctly.

    The check loads it on a base model without weights, which is fast and takes no memory.

    Args:
        folder: The folder that transformers saved it to.
        model: The body with the adapter.
        base: The published configuration of the base.

    Raises:
        ValueError: If plain `SentenceTransformer` would load a different adapter; the message names the remedy.
    """
    (name,) = model.active_adapters()
    config = adapters_of(model)[name]
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    spelled = {_plain(key): tensor for key, tensor in tensors.items()}
    if spelled.keys() != tensors.keys():
        save_file(spelled, path, metadata={"format": "pt"})
    if problem := _problem_of_readers(config, model, base, spelled):
        raise ValueError(_not_saved(model, problem))


def _problem_of_readers(
    config: PeftConfig, model: PreTrainedModel, base: PretrainedConfig, tensors: dict[str, torch.Tensor]
) -> str | None:
    """Returns how an adapter with these tensors would differ when loaded on its base, None if it would not."""
    config, name = copy.deepcopy(config), "opened"
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # no SVD without weights; the tensors are loaded anyway
    with torch.device("meta"):
        bare = type(model)(base)
    try:
        report = bare.load_adapter(peft_config=config, adapter_state_dict=dict(tensors), adapter_name=name)
    except NotImplementedError:  # SHiRA and AdaMSS initialize from the base's weights
        return None
    except (RuntimeError, ValueError) as error:
        return f"it does not fit there ({' '.join(str(error).split())})"
    expected = {f"{_PEFT_PREFIX}{key}" for key in adapter_tensors(bare, name)}
    lost = {f"{_PEFT_PREFIX}{key}".replace(f".{name}", "") for key in report.missing_keys} & expected
    if odd := sorted({*lost, *(expected - tensors.keys()), *report.unexpected_keys}):
        return f"its tensors do not all find their places there ({', '.join(odd[:3])})"
    if _scalings(bare, name) != _scalings(model, model.active_adapters()[0]):
        return "other layers are adapted there, or by another scaling"
    return None


def _scalings(model: PreTrainedModel, adapter_name: str) -> dict[str, Any]:
    """Returns the adapter's scaling in each adapted layer, None for adapter types without scaling."""
    return {
        path.replace("_fsdp_wrapped_module.", ""): getattr(layer, "scaling", {}).get(adapter_name)
        for path, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer.active_adapters
    }
