"""Cutting at an inner layer: the blocks above it go, and the last hidden state is what that layer was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from st_prompteol.fast import blocks_of

_PROBES = ["A jockey riding a horse.", "Is it raining?", "x", "The cat sat on the mat, and the dog did not. " * 3]
_EQUAL_LENGTHS = 1e-3  # relative; those of a norm are all alike


@dataclass(frozen=True)
class Cut:
    """What a cut has done.

    Args:
        layer: The layer that is the last one now.
        blocks: How many blocks the model has left.
        removed: How many blocks are gone.
        keeps_lengths: Whether embeddings have the lengths that they had. Their cosines are the same in any case.

    Example:
        >>> model = PromptEOL("tiny", layer=-2)
        >>> cut = model.cut()
        >>> cut.removed, model.layer
        (1, -1)
    """

    layer: int
    blocks: int
    removed: int
    keeps_lengths: bool

    def __str__(self) -> str:
        return (
            f"removed {self.removed} of {self.removed + self.blocks} blocks: the last layer is what layer "
            f"{self.layer} was; cosines are equal, lengths are {'too' if self.keeps_lengths else 'not'}"
        )


def cut_body(model: SentenceTransformer) -> tuple[PreTrainedModel, Cut]:
    """Makes a body without the blocks above the layer, whose last hidden state has the direction of that layer.

    What comes behind the last block must leave directions as they are: it is left out where the configuration of the
    family can say so, or the weight of the norm becomes one number. Sentences are embedded both ways to see whether
    that is enough.

    Args:
        model: A `PromptEOL`. It stays as it is; the new body shares its tensors.

    Returns:
        The new body, and what the cut does.

    Raises:
        ValueError: If there is nothing to cut; if the model has an adapter, is quantised or spread over devices; or if
            embeddings would get other directions, as by a LayerNorm, which subtracts the mean.
    """
    transformer: Any = model[0]
    body, layer = transformer.model, transformer.layer
    _check(body, layer)
    blocks = len(blocks_of(body)) + 1 + layer
    name = body.config.name_or_path

    model.eval()
    features = batch_to_device(transformer.preprocess(_PROBES), body.device)
    try:
        smaller = _with_tensors_of(body, _smaller_config(body.config, blocks))
        behind = _behind_blocks(smaller, features)
        problem = None if behind is None else _keep_directions(smaller, behind)
    except Exception as error:  # whatever a family trips over, it keeps its blocks
        raise ValueError(f"{name!r} cannot be cut to {blocks} blocks: {type(error).__name__}: {error}") from error
    if behind is not None and problem:
        kind = type(smaller.get_submodule(behind)).__name__
        raise ValueError(
            f"{name!r} cannot be cut at layer={layer}: {type(body).__name__} puts its last hidden state through "
            f"{behind} ({kind}), which {problem}: keep the model as it is, for sentence-transformers, which reads "
            "inner layers."
        )
    expected, hidden = _read(body, features, layer), _read(smaller, features, -1)
    tokens = features["attention_mask"].bool()
    if not _are_parallel(expected[tokens], hidden[tokens]):
        raise ValueError(
            f"{name!r} cannot be cut at layer={layer}: a {type(body).__name__} of {blocks} blocks computes something "
            "else than what that layer is."
        )
    expected, embeddings = _embed(model, features, expected), _embed(model, features, hidden)
    if not _are_parallel(expected, embeddings):
        raise ValueError(
            f"{name!r} cannot be cut at layer={layer}: the last hidden state keeps its direction and not its length, "
            f"on which {type(model[-1]).__name__} behind it relies: cut the model without it, then make it anew."
        )
    ratios = embeddings.norm(dim=1) / expected.norm(dim=1)
    return smaller, Cut(layer, blocks, -layer - 1, bool((ratios - 1).abs().max() < _EQUAL_LENGTHS))


def server_note(layer: int) -> str:
    """Returns what whoever gives a model with an inner layer to others should know."""
    return (
        f"layer={layer} is an inner layer, and servers such as vLLM and llama.cpp read the last one: "
        "'st-prompteol export MODEL FOLDER --cut' writes a model whose last layer it is."
    )


def _check(model: PreTrainedModel, layer: int) -> None:
    name = model.config.name_or_path
    if layer == -1:
        raise ValueError("layer=-1 is the last layer, so no block is above it to be cut: choose an inner one, as -2.")
    if adapters := list(getattr(model, "peft_config", {})):
        raise ValueError(f"{name!r} has adapters ({', '.join(adapters)}): call merge_adapter() first, then cut.")
    if getattr(model, "is_quantized", False):
        raise ValueError(f"{name!r} is quantised, and only full weights are cut: open it without quantization.")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ValueError(f"{name!r} is spread over several devices, and is cut on one: open it with device='cpu'.")
    if not blocks_of(model):
        raise ValueError(f"{name!r} cannot be cut: {type(model).__name__} does not keep its blocks in one list.")


def _read(model: PreTrainedModel, features: dict[str, Any], layer: int) -> Tensor:
    """Returns a hidden state `(batch_size, sequence_length, hidden_size)`, by transformers' own way to it."""
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(**inputs, use_cache=False, output_hidden_states=layer != -1)
    return outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]  # type: ignore[no-any-return]


def _embed(model: SentenceTransformer, features: dict[str, Any], hidden: Tensor) -> Tensor:
    """Returns the embeddings `(batch_size, embedding_dimension)` that the modules behind the body make of it."""
    features = {**features, "token_embeddings": hidden}
    with torch.no_grad():
        for module in list(model)[1:]:
            features = module(features)
    return features["sentence_embedding"]  # type: ignore[no-any-return]


def _are_parallel(one: Tensor, other: Tensor) -> bool:
    """Whether rows have cosines of 1, but for rounding; rows of zeros have none."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-6 if other.dtype == torch.float32 else 1e-4
    cosines = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1, eps=0)
    return bool((cosines > 1 - tolerance).all())


def _smaller_config(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """Returns the configuration of the first blocks, with whatever it lists for each of them."""
    config = copy.deepcopy(config)
    text_config: Any = config.get_text_config()
    before = text_config.num_hidden_layers
    for name, value in list(vars(text_config).items()):
        # as long as a list of blocks by chance: tokens that end a text
        if isinstance(value, list | tuple) and len(value) == before and "token" not in name:
            setattr(text_config, name, value[:blocks])
    text_config.num_hidden_layers = blocks
    if hasattr(text_config, "_remove_final_layer_norm"):  # OPT's way to have none
        text_config._remove_final_layer_norm = True
    if getattr(text_config, "max_window_layers", None):  # the first block with a window, by Qwen
        text_config.max_window_layers = min(text_config.max_window_layers, blocks)
    return config


def _with_tensors_of(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Builds a body from a configuration, as whoever opens its files does, on the tensors of `model`: no copies."""
    with torch.device("meta"):
        body: PreTrainedModel = type(model)(config)
    tensors = model.state_dict()
    body.load_state_dict({name: tensors[name] for name in body.state_dict()}, assign=True)
    for name, buffer in list(body.named_buffers()):
        if buffer.is_meta:  # made by the family's code, never saved
            parent, _, own_name = name.rpartition(".")
            setattr(body.get_submodule(parent), own_name, model.get_buffer(name))
    if hasattr(model, "_weight_conversions"):  # transformers' note of the names that weights are saved under
        body._weight_conversions = model._weight_conversions
    return body.eval()


def _behind_blocks(model: PreTrainedModel, features: dict[str, Any]) -> str | None:
    """Returns the name of the module that the output of the last block goes through, None if there is none."""
    order: list[torch.nn.Module] = []

    def note(module: torch.nn.Module, *_: Any) -> None:
        order.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        _read(model, features, -1)
    finally:
        for hook in hooks:
            hook.remove()
    last = blocks_of(model)[-1]
    behind = order[order.index(last) + 1]
    if last in set(behind.modules()):  # what holds the blocks has ended
        return None
    names: dict[torch.nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[behind]


def _keep_directions(model: PreTrainedModel, name: str) -> str | None:
    """Makes a norm keep directions, by one number for all of its weights; returns what is in the way, None if it does.

    Both are tried on vectors whose mean is not 0.
    """
    norm = model.get_submodule(name)
    size, generator = model.config.get_text_config().hidden_size, torch.Generator().manual_seed(0)
    vectors = (1 + torch.randn(8, size, generator=generator)).to(model.device, model.dtype)
    for number in (0, 1):  # Gemma's weights count from one
        for key, weight in list(norm.named_parameters(recurse=False)):
            setattr(norm, key, torch.nn.Parameter(torch.full_like(weight, number)))  # the old one is shared
        with torch.no_grad():
            outputs, shifted = norm(vectors), norm(vectors + 1)
        if _are_parallel(vectors, outputs):
            return None
    subtracts_mean = torch.allclose(outputs, shifted, atol=0.1)
    return "subtracts the mean, and so changes its direction" if subtracts_mean else "changes its direction"
