"""Checks whether a model gives the same results with a shared prefix (head), and up to which sequence length."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from st_prompteol.fast import attention
from st_prompteol.fast.passes import Pass, compute_head
from st_prompteol.fast.rows import PackedRows
from st_prompteol.llm.loaded import blocks_of, is_quantized

logger = logging.getLogger(__name__)

# Settings that hold a number of tokens above which some architecture behaves differently
_LENGTH = re.compile(
    r"window|chunk|index_topk|block_size|local_attention|position_embeddings|n_positions|max_distance"
)
_NO_LENGTH = re.compile(r"layers|pattern|feed_forward|lm_head|dropout|type|mamba")
# Lengths of the head and of the rows after it: one pair on either side of every threshold of our attention
_PROBES = ((18, (66, 5)), (4, (7, 3)))
_SHORTEST = 8  # minimum probe length in tokens; architectures with a smaller limit do not use the fast path
_WORK = 2**31  # maximum number of multiplications for a check, beyond one block of each kind
_ROWS = 9  # input rows that are computed both together and in parts
_OUTLIER = 50.0  # factor of outlier activations, as LLMs have them
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}  # relative to the largest value; 1e-2 in half precision
# Maximum difference of a token's vector, relative to its norm; 5e-2 in half precision
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
_SHORT = 0.1  # of the median norm: shorter vectors are remainders of longer ones and carry their rounding errors
_QUANTIZED = 1e-2  # the same if quantized: 4-bit weights compute in half precision, 8-bit activations differ by more


def longest_row(config: PretrainedConfig) -> int:
    """Returns the longest sequence, in tokens, for which the architecture behaves as for short ones.

    Windows, chunks and the range of positions in the configuration limit it.
    """
    return min(_lengths(config.get_text_config().to_dict()), default=sys.maxsize)


def _lengths(settings: dict[str, Any], *, within: bool = False) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, dict) and (within or name in ("rope_parameters", "rope_scaling", "attn_config")):
            yield from _lengths(value, within=True)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value > 1 and _LENGTH.search(name) and not _NO_LENGTH.search(name):
            yield value


def _probed_layer(model: PreTrainedModel, layer: int) -> int:
    """Returns the layer at which a check for `layer` compares hidden states: a lower one in a large model.

    The blocks below it include at least one of each kind found below `layer`.
    """
    blocks = list(blocks_of(model))[: (layer + 1) or None]
    kinds = [_kind(model, index, block) for index, block in enumerate(blocks)]
    needed = 1 + max(kinds.index(kind) for kind in kinds)
    tokens = sum(2 * (head + sum(own)) for head, own in _PROBES)
    size = sum(parameter.numel() for parameter in blocks[0].parameters())
    depth = min(len(blocks), max(needed, _WORK // max(1, size * tokens)))
    return layer - len(blocks) + depth


def _kind(model: PreTrainedModel, index: int, block: torch.nn.Module) -> Any:
    """Returns a key that is equal for blocks of the same kind: their classes, settings and shapes."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    settings = [
        (type(module), name, value)
        for module in block.modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name not in ("layer_idx", "layer_id", "training")
    ]
    return types[index : index + 1], settings, [parameter.shape for parameter in block.parameters()]


def mixes_rows(model: PreTrainedModel) -> bool:
    """Checks whether a quantized layer's output depends on the other rows of the batch.

    Possible causes are activations quantized together, as in bitsandbytes' int8, and kernels that differ between
    small and large batches.

    Args:
        model: The transformers model.
    """
    if not is_quantized(model):
        return False
    layers = {
        (type(layer), layer.in_features, layer.out_features): layer
        for layer in model.modules()
        if isinstance(getattr(layer, "in_features", None), int) and isinstance(layer.out_features, int)
    }
    with torch.no_grad():
        return any(_mixes_rows(layer, width, model) for (_, width, _), layer in layers.items())


def _mixes_rows(layer: torch.nn.Module, width: int, model: PreTrainedModel) -> bool:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, width, generator=generator)
    rows[0, ::7] *= _OUTLIER
    rows = rows.to(model.device, model.dtype)
    together = layer(rows)
    parts = torch.cat([layer(rows[:1]), layer(rows[1:3]), layer(rows[3:])])
    difference = (parts - together).abs().max() / together.abs().max()
    return bool(difference > _ROUNDING.get(together.dtype, 1e-2))


def is_exact(model: PreTrainedModel, layer: int) -> bool:
    """Checks on a few rows whether the model gives the same hidden states with and without a shared head.

    Blocks that mix tokens other than by attention, or another kind of attention or cache, lead to a difference or an
    error; such a model has to compute every row whole. Side effect: installs the shared-head attention if the check
    passes.

    Args:
        model: The transformers model, with the hooks of `add_hooks`.
        layer: The deepest layer that is read.
    """
    was_installed = attention.is_installed(model)
    limit = longest_row(model.config)
    if limit < _SHORTEST:
        return False
    try:
        layer = _probed_layer(model, layer)
        with torch.no_grad():
            probes = [_fit(model, head, own, limit) for head, own in _PROBES]
            expected = [_whole(model, *probe[:2], layer) for probe in probes]
            attention.install(model)
            difference = max(
                _difference(model, probe, whole, layer) for probe, whole in zip(probes, expected, strict=True)
            )
        tolerance = _QUANTIZED if is_quantized(model) else _TOLERANCES.get(expected[0].dtype, 5e-2)
        exact = difference < tolerance
        reason = f"a shared head differs by {difference:.1g}"
    except Exception as error:  # after any error here, the model's own forward pass still works
        exact, reason = False, f"{type(error).__name__}: {error}"
    if not exact:
        logger.info("%s computes every sentence whole: %s", type(model).__name__, reason)
        if not was_installed:
            attention.put_back(model)
    return exact


def _fit(model: PreTrainedModel, head: int, own: tuple[int, int], limit: int) -> tuple[Tensor, Tensor, int]:
    """Returns ids and mask `(2, sequence_length)` of two rows within the limit, and the length of their head."""
    if head + own[0] > limit:
        head = min(head, limit // 2)
        own = (limit - head, min(own[1], limit - head - 1))
    ids = torch.arange(2 * (head + own[0])).view(2, -1) * 7 % (model.config.get_text_config().vocab_size - 11) + 11
    ids[1, :head] = ids[0, :head]
    mask = torch.ones_like(ids)
    mask[1, head + own[1] :] = 0
    return ids, mask, head


def _whole(model: PreTrainedModel, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return Pass(model, [layer]).run(use_cache=False, **inputs)[layer]


def _difference(model: PreTrainedModel, probe: tuple[Tensor, Tensor, int], whole: Tensor, layer: int) -> float:
    """Returns the largest difference of a token's hidden states, relative to their norm.

    Norms differ between tokens: trained LLMs have values of 10,000 at the first token, and of 10 at others. Compares
    all tokens, and the last tokens as computed with `last_only`.
    """
    ids, mask, head_length = probe
    lengths = mask.sum(dim=1) - head_length
    head = compute_head(model, ids[0, :head_length], layer)
    states = [_whole(model, ids, mask, layer)[mask.bool()], head.hidden[0]]
    expected = [whole[mask.bool()], whole[0, :head_length]]
    for last_only in (False, True):
        rows = PackedRows(ids[:, head_length:], lengths, head_length, fill=False).to(model.device)
        inputs = {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}
        states.append(Pass(model, [layer], rows, head, last_only=last_only).run(**inputs)[layer][0])
        own = whole[:, head_length:]
        expected.append(own[[0, 1], lengths - 1] if last_only else own[mask[:, head_length:].bool()])
    got, wanted = torch.cat(states).float(), torch.cat(expected).float()
    lengths = wanted.norm(dim=-1)
    return float(((got - wanted).norm(dim=-1) / lengths.clamp(min=_SHORT * lengths.median())).max())
