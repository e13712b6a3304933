"""The saved format: module names, files and keys that sentence-transformers 3 to 6 and transformers 4 and 5 read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedModel

from st_prompteol.llm.loaded import adapters_of, is_quantized
from st_prompteol.prompt.tokenizer import TemplateTokenizer
from st_prompteol.saved.spelling import spell_for_all

# The package in which every version of sentence-transformers finds its modules
_CLASSIC = "sentence_transformers.models"
_CLASSIC_NAMES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout", "LayerNorm", "WeightedLayerPooling")
_STOCK_NAMES = {"PromptEOLTransformer": "Transformer", "LastTokenPooling": "Pooling"}
# In the order in which the vectors of several modes are concatenated
_POOLING_SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_OF_QWEN2 = ("model_type", "architectures", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_SAMPLED = 1024  # values of a tensor to check first; they usually show whether it needs float32
_PROBES = ("A jockey riding a horse", 'He said "no"?', "</s>")
_DENSE_DEFAULTS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def write_stock_form(folder: Path) -> None:
    """Rewrites a model just saved by sentence-transformers with names that older versions also know.

    Args:
        folder: The folder of the model, before anyone reads it.
    """
    modules = _read(folder / "modules.json")
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if name in _STOCK_NAMES and package.startswith("st_prompteol"):
            stock = _STOCK_NAMES[name]
            path = module["path"].replace(name, stock)
            (folder / module["path"]).rename(folder / path)
            module |= {"path": path, "type": f"{_CLASSIC}.{stock}"}
        elif name in _CLASSIC_NAMES and package.startswith("sentence_transformers."):
            module["type"] = f"{_CLASSIC}.{name}"
        config = folder / module["path"] / "config.json"
        if module["type"] == f"{_CLASSIC}.Pooling":
            _write(config, _classic_pooling(_read(config)))
        elif module["type"] == f"{_CLASSIC}.Dense":
            values = _read(config)
            _write(config, {key: value for key, value in values.items() if _DENSE_DEFAULTS.get(key) != value})
    _write(folder / "modules.json", modules)
    if (folder / "config.json").exists():  # missing for an adapter
        _write(folder / "config.json", spell_for_all(_read(folder / "config.json")))


def stock_body(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the body to save: a Qwen2 model as an equivalent Llama model, any other model unchanged.

    For every Qwen2 model, transformers 5 ignores the saved tokenizer class and loads one with a normalizer of its own,
    without the template. A Llama model with biases, the output bias being zero, computes the same.
    """
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    changed = is_quantized(model) or adapters_of(model)
    if config.model_type != "qwen2" or windows or changed:
        return model
    values = {key: value for key, value in config.to_dict().items() if key not in _OF_QWEN2}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    llama = LlamaConfig(**{**values, "attention_bias": True, "head_dim": head_dim})
    with torch.device("meta"):
        body = LlamaModel(llama)
    tensors = model.state_dict()
    for name, tensor in body.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros(tensor.shape, dtype=model.dtype, device=model.device)
    body.load_state_dict(tensors, assign=True)
    return body


def stored_tensors(model: PreTrainedModel) -> dict[str, dict[str, torch.Tensor]]:
    """Returns `{"state_dict": …}` with tensors in half precision where that is lossless, or an empty dictionary.

    A bfloat16 or float16 checkpoint that was loaded in float32 is saved in its original dtype, and `config.json`
    states float32. A checkpoint counts as half precision if most of its values are exact in that dtype; the other
    tensors, e.g. after training, stay float32.

    Args:
        model: The body. Adapters and quantized weights are saved in their dtype in memory.
    """
    handed_over = "save_pretrained" in vars(model)  # set by a trainer; parameters here are shards of one process
    if handed_over or adapters_of(model) or is_quantized(model):
        return {}
    tensors = model.state_dict()
    wide = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.float32 and not tensor.is_meta}

    def count(names: Iterable[str]) -> int:
        return sum(wide[name].numel() for name in names)

    exact = {
        dtype: [name for name, tensor in wide.items() if _is_exact_in(dtype, tensor)]
        for dtype in (torch.bfloat16, torch.float16)
    }
    dtype = max(exact, key=lambda dtype: count(exact[dtype]))
    if count(exact[dtype]) * 2 <= count(wide):
        return {}
    narrow: dict[tuple[Any, ...], torch.Tensor] = {}  # tensors that share memory keep sharing it
    for name in exact[dtype]:
        place = wide[name].data_ptr(), wide[name].shape
        tensors[name] = narrow.setdefault(place, wide[name].to(dtype))
    return {"state_dict": tensors}


def _is_exact_in(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    some = tensor.flatten()[:_SAMPLED]
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in (some, tensor))


def check_tokenizer(folder: Path, tokenizer: TemplateTokenizer) -> None:
    """Checks that `AutoTokenizer` loads a saved tokenizer correctly; a model's type may override the tokenizer class.

    Raises:
        ValueError: If the token ids differ.
    """
    opened = AutoTokenizer.from_pretrained(folder)
    if any(opened(probe)["input_ids"] != tokenizer(probe)["input_ids"] for probe in _PROBES):
        raise ValueError(
            f"transformers opens the tokenizer of {tokenizer.name_or_path!r} as its own {type(opened).__name__}, "
            "which drops the template, so plain SentenceTransformer would embed other text: save an adapter on this "
            "base instead (model.add_adapter), whose folder opens right, or take a base of another family."
        )


def _classic_pooling(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a pooling configuration with one switch per mode; old versions use mean pooling if they find none."""
    modes = [config["pooling_mode"]] if isinstance(config["pooling_mode"], str) else list(config["pooling_mode"])
    if modes != [mode for mode in _POOLING_SWITCHES if mode in modes]:
        return config  # switches cannot express this order
    return {
        "word_embedding_dimension": config["embedding_dimension"],
        **{switch: mode in modes for mode, switch in _POOLING_SWITCHES.items()},
        "include_prompt": config["include_prompt"],
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
