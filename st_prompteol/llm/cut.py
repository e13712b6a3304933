"""Cuts a model at an inner layer: removes the blocks above it, so that it becomes the last hidden state."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from st_prompteol.llm.loaded import adapters_of, blocks_of, is_quantized

# Sentences on which two forms of a model are compared
PROBES = ["A jockey riding a horse.", "Is it raining?", "x", "The cat sat on the mat, and the dog did not. " * 3]
_EQUAL_LENGTHS = 1e-3  # relative tolerance for equal norms


@dataclass(frozen=True)
class Cut:
    """The result of a cut.

    Args:
        layer: The former index of the new last layer.
        blocks: The number of remaining blocks.
        removed: The number of removed blocks.
        keeps_lengths: Whether the norms of embeddings are unchanged. Cosine similarities are unchanged in any case.

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
    """Creates a body without the blocks above the layer; its last hidden state has the same direction as that layer.

    The module after the last block must preserve directions. It is removed if the architecture's configuration has an
    option for that; otherwise the weights of the norm are set to a constant. Test sentences are embedded with both
    bodies to verify the result.

    Args:
        model: A `PromptEOL`. It is not changed; the new body shares its tensors.

    Returns:
        The new body, and a description of the cut.

    Raises:
        ValueError: If there is nothing to cut; if the model has an adapter, is quantized or distributed over devices;
            or if directions of embeddings would change, e.g. by a LayerNorm, which subtracts the mean.
    """
    transformer: Any = model[0]
    body, layer = transformer.model, transformer.layer
    _check(body, layer)
    blocks = len(blocks_of(body)) + 1 + layer
    name = body.config.name_or_path

    model.eval()
    features = batch_to_device(transformer.preprocess(PROBES), body.device)
    try:
        smaller = _with_tensors_of(body, _smaller_config(body.config, blocks))
        behind = _behind_blocks(smaller, features)
        problem = None if behind is None else _keep_directions(smaller, behind)
    except Exception as error:  # an architecture that fails for any reason is not cut
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
    """Returns the note to show when publishing a model that uses an inner layer."""
    return (
        f"layer={layer} is an inner layer, and servers such as vLLM and llama.cpp read the last one: "
        "'st-prompteol export MODEL FOLDER --cut' writes a model whose last layer it is."
    )


def _check(model: PreTrainedModel, layer: int) -> None:
    name = model.config.name_or_path
    if layer == -1:
        raise ValueError("layer=-1 is the last layer, so no block is above it to be cut: choose an inner one, as -2.")
    if adapters := adapters_of(model):
        raise ValueError(f"{name!r} has adapters ({', '.join(adapters)}): call merge_adapter() first, then cut.")
    if is_quantized(model):
        raise ValueError(f"{name!r} is quantized, and only full weights are cut: open it without quantization.")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ValueError(f"{name!r} is spread over several devices, and is cut on one: open it with device='cpu'.")
    if not blocks_of(model):
        raise ValueError(f"{name!r} cannot be cut: {type(model).__name__} does not keep its blocks in one list.")


def _read(model: PreTrainedModel, features: dict[str, Any], layer: int) -> Tensor:
    """Returns a hidden state `(batch_size, sequence_length, hidden_size)`, computed by transformers alone."""
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(**inputs, use_cache=False, output_hidden_states=layer != -1)
    return outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]  # type: ignore[no-any-return]


def _embed(model: SentenceTransformer, features: dict[str, Any], hidden: Tensor) -> Tensor:
    """Applies the modules after the body to a hidden state; returns embeddings `(batch_size, embedding_dimension)`."""
    features = {**features, "token_embeddings": hidden}
    with torch.no_grad():
        for module in list(model)[1:]:
            features = module(features)
    return features["sentence_embedding"]  # type: ignore[no-any-return]


def _are_parallel(one: Tensor, other: Tensor) -> bool:
    """Whether the rows have cosine similarities of 1, up to rounding; False for rows of zeros."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-6 if other.dtype == torch.float32 else 1e-4
    cosines = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1, eps=0)
    return bool((cosines > 1 - tolerance).all())


def _smaller_config(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """Returns the configuration for the first blocks; lists with one entry per block are shortened."""
    config = copy.deepcopy(config)
    text_config: Any = config.get_text_config()
    before = text_config.num_hidden_layers
    for name, value in list(vars(text_config).items()):
        # lists of end-of-text tokens may have the same length by chance
        if isinstance(value, list | tuple) and len(value) == before and "token" not in name:
            setattr(text_config, name, value[:blocks])
    text_config.num_hidden_layers = blocks
    if hasattr(text_config, "_remove_final_layer_norm"):  # OPT's option to omit the norm
        text_config._remove_final_layer_norm = True
    if getattr(text_config, "max_window_layers", None):  # Qwen: the first block with a window
        text_config.max_window_layers = min(text_config.max_window_layers, blocks)
    return config


def _with_tensors_of(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Builds a body from a configuration, like `from_pretrained`, that shares the tensors of `model`."""
    with torch.device("meta"):
        body: PreTrainedModel = type(model)(config)
    tensors = model.state_dict()
    body.load_state_dict({name: tensors[name] for name in body.state_dict()}, assign=True)
    for name, buffer in list(body.named_buffers()):
        if buffer.is_meta:  # computed by the model's code, never saved
            parent, _, own_name = name.rpartition(".")
            setattr(body.get_submodule(parent), own_name, model.get_buffer(name))
    if hasattr(model, "_weight_conversions"):  # transformers' record of the tensor names for saving
        body._weight_conversions = model._weight_conversions
    return body.eval()


def _behind_blocks(model: PreTrainedModel, features: dict[str, Any]) -> str | None:
    """Returns the name of the module that processes the output of the last block, None if there is none."""
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
    if last in set(behind.modules()):  # the container of the blocks has ended
        return None
    names: dict[torch.nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[behind]


def _keep_directions(model: PreTrainedModel, name: str) -> str | None:
    """Sets the norm's weights to a constant so that it preserves directions; returns the reason if impossible.

    The constants 0 and 1 are tested on vectors whose mean is not 0.
    """
    norm = model.get_submodule(name)
    size, generator = model.config.get_text_config().hidden_size, torch.Generator().manual_seed(0)
    vectors = (1 + torch.randn(8, size, generator=generator)).to(model.device, model.dtype)
    for number in (0, 1):  # Gemma adds one to its weights
        for key, weight in list(norm.named_parameters(recurse=False)):
            setattr(norm, key, torch.nn.Parameter(torch.full_like(weight, number)))  # the old one is shared
        with torch.no_grad():
            outputs, shifted = norm(vectors), norm(vectors + 1)
        if _are_parallel(vectors, outputs):
            return None
    subtracts_mean = torch.allclose(outputs, shifted, atol=0.1)
    return "subtracts the mean, and so changes its direction" if subtracts_mean else "changes its direction"
