"""The saved form: module names, files and keys that sentence-transformers 3 to 6 and transformers 4 and 5 read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedModel

from st_prompteol.spelling import spell_for_all
from st_prompteol.tokens import TemplateTokenizer

# Where every version of sentence-transformers finds its own modules
_CLASSIC = "sentence_transformers.models"
_CLASSIC_NAMES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout", "LayerNorm", "WeightedLayerPooling")
_STOCK_NAMES = {"PromptEOLTransformer": "Transformer", "LastTokenPooling": "Pooling"}
# In the order in which the switches put the vectors of several modes together
_POOLING_SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_OF_QWEN2 = ("model_type", "architectures", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_SAMPLED = 1024  # numbers of a tensor that mostly show that it needs float32
_PROBES = ("A jockey riding a horse", 'He said "no"?', "</s>")
_DENSE_DEFAULTS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def write_stock_form(folder: Path) -> None:
    """Rewrites what sentence-transformers has just saved to `folder` with the names that older versions know too.

    Args:
        folder: One that nobody reads yet.
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
    if (folder / "config.json").exists():  # not of an adapter
        _write(folder / "config.json", spell_for_all(_read(folder / "config.json")))


def stock_body(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the body to save: a Qwen2 as the Llama that it is, every other one as it is.

    transformers 5 opens the tokenizer of every Qwen2, whatever its files say, as a class that makes its own
    normaliser, without the template. As a Llama with biases, that of the output being zero, it computes the same.
    """
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    changed = getattr(model, "is_quantized", False) or hasattr(model, "peft_config")
    if config.model_type != "qwen2" or windows or changed:
        return model
    values = {key: value for key, value in config.to_dict().items() if key not in _OF_QWEN2}
    llama = LlamaConfig(**values, attention_bias=True, head_dim=config.hidden_size // config.num_attention_heads)
    with torch.device("meta"):
        body = LlamaModel(llama)
    tensors = model.state_dict()
    for name, tensor in body.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros(tensor.shape, dtype=model.dtype, device=model.device)
    body.load_state_dict(tensors, assign=True)
    return body


def stored_tensors(model: PreTrainedModel) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the `state_dict` to save, by that name, in half the bytes where that loses nothing.

    A bfloat16 or float16 checkpoint that computes in float32 is stored as it came, and `config.json` states float32.
    It counts as one if most of its numbers are exact in that dtype; tensors that are not, as after training, stay
    float32.

    Args:
        model: The body. Adapters and quantized weights are stored as they are in memory.
    """
    handed_over = "save_pretrained" in vars(model)  # a trainer's, whose parameters here are one process's shards
    if handed_over or hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
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
    narrow: dict[tuple[Any, ...], torch.Tensor] = {}  # tensors that share memory go on sharing it
    for name in exact[dtype]:
        place = wide[name].data_ptr(), wide[name].shape
        tensors[name] = narrow.setdefault(place, wide[name].to(dtype))
    return {"state_dict": tensors}


def _is_exact_in(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    some = tensor.flatten()[:_SAMPLED]
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in (some, tensor))


def check_tokenizer(folder: Path, tokenizer: TemplateTokenizer) -> None:
    """Opens a saved tokenizer as everybody does, whatever the model beside it makes of its class.

    Raises:
        ValueError: If that gives other token ids.
    """
    opened = AutoTokenizer.from_pretrained(folder)
    if any(opened(probe)["input_ids"] != tokenizer(probe)["input_ids"] for probe in _PROBES):
        raise ValueError(
            f"transformers opens the tokenizer of {tokenizer.name_or_path!r} as its own {type(opened).__name__}, "
            "which drops the template, so plain SentenceTransformer would embed other text: save an adapter on this "
            "base instead (model.add_adapter), whose folder opens right, or take a base of another family."
        )


def _classic_pooling(config: dict[str, Any]) -> dict[str, Any]:
    """Spells a pooling by a switch per mode: without one that a reader knows, it takes the mean of all tokens."""
    modes = [config["pooling_mode"]] if isinstance(config["pooling_mode"], str) else list(config["pooling_mode"])
    if modes != [mode for mode in _POOLING_SWITCHES if mode in modes]:
        return config  # switches could not say this order
    return {
        "word_embedding_dimension": config["embedding_dimension"],
        **{switch: mode in modes for mode, switch in _POOLING_SWITCHES.items()},
        "include_prompt": config["include_prompt"],
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
