"""Whether a model computes rows behind a shared head as it computes them whole, and up to which length."""

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
from st_prompteol.fast.head import compute_head
from st_prompteol.fast.passes import Pass, blocks_of
from st_prompteol.fast.rows import PackedRows

logger = logging.getLogger(__name__)

# Settings that are a number of tokens, from which on some family does something else
_LENGTH = re.compile(
    r"window|chunk|index_topk|block_size|local_attention|position_embeddings|n_positions|max_distance"
)
_NO_LENGTH = re.compile(r"layers|pattern|feed_forward|lm_head|dropout|type|mamba")
# The head's length and those of the rows behind it: one pair on either side of every length at which our attention
# takes another way
_PROBES = ((18, (66, 5)), (4, (7, 3)))
_SHORTEST = 8  # tokens of a probe; a family that changes below is computed whole
_WORK = 2**31  # multiplications that checking may take beside one block of each kind
_ROWS = 9  # of the layers' inputs that are computed together and apart
_OUTLIER = 50.0  # times as large as others, as single activations of LLMs are
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}  # relative to the largest number; 1e-2 in half precision
# Of each token's vector, relative to its own length; 5e-2 in half precision
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
_SHORT = 0.1  # of the median: vectors that are shorter are what is left of longer ones, and rounded like these
_QUANTISED = 1e-2  # likewise: 4-bit weights are multiplied in half precision; activations of 8 bits differ by more


def longest_row(config: PretrainedConfig) -> int:
    """Returns the number of tokens up to which a family does nothing else than for few."""
    return min(_lengths(config.get_text_config().to_dict()), default=sys.maxsize)


def _lengths(settings: dict[str, Any], *, within: bool = False) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, dict) and (within or name in ("rope_parameters", "rope_scaling", "attn_config")):
            yield from _lengths(value, within=True)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value > 1 and _LENGTH.search(name) and not _NO_LENGTH.search(name):
            yield value


def _probed_layer(model: PreTrainedModel, layer: int) -> int:
    """Returns the layer at which a check for `layer` compares: a lower one of a large model.

    Below it is at least one block of each kind that there is below `layer`.
    """
    blocks = list(blocks_of(model))[: (layer + 1) or None]
    kinds = [_kind(model, index, block) for index, block in enumerate(blocks)]
    needed = 1 + max(kinds.index(kind) for kind in kinds)
    tokens = sum(2 * (head + sum(own)) for head, own in _PROBES)
    size = sum(parameter.numel() for parameter in blocks[0].parameters())
    depth = min(len(blocks), max(needed, _WORK // max(1, size * tokens)))
    return layer - len(blocks) + depth


def _kind(model: PreTrainedModel, index: int, block: torch.nn.Module) -> Any:
    """What blocks that compute alike have in common: classes, shapes, settings."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    settings = [
        (type(module), name, value)
        for module in block.modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name not in ("layer_idx", "layer_id", "training")
    ]
    return types[index : index + 1], settings, [parameter.shape for parameter in block.parameters()]


def mixes_rows(model: PreTrainedModel) -> bool:
    """Tries whether a quantised layer's result for a row depends on the rows that it is computed with.

    Activations that are rounded together, as bitsandbytes' int8 does, are one reason; other ways of multiplying for
    few rows than for many another one.

    Args:
        model: The body.
    """
    if not getattr(model, "is_quantized", False):
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
    """Tries on a few rows whether the model computes them behind a head as it computes them whole.

    Blocks that mix tokens otherwise than by attention, attention of another kind, or a cache of another kind make a
    difference, or fail; such a model has to compute every row whole. If our attention was not installed before, it
    is afterwards, unless that makes a difference or the answer is no.

    Args:
        model: The body, with hooks.
        layer: The deepest one that is read.
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
        tolerance = _QUANTISED if getattr(model, "is_quantized", False) else _TOLERANCES.get(expected[0].dtype, 5e-2)
        exact = difference < tolerance
        reason = f"a shared head differs by {difference:.1g}"
    except Exception as error:  # whatever a family trips over, it has a way that works
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
    """Returns by how much hidden states of a token differ at most, relative to their own length.

    The lengths of different tokens are not alike: real LLMs have numbers of 10,000 at the first token, and of 10 at
    others. All tokens are compared, and the last ones where no others are read.
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
