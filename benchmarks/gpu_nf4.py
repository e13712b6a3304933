"""4-bit weights on a GPU: whether a row's result depends on its neighbours, and what a shared head brings."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from gpu_encode import SECONDS
from gpu_setup import Options, Rows, Ways, open_ways, peak_of, seconds_of
from train import quantise

from st_prompteol.fast import check, path

NUMBERS_OF_ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 64, 128)
BATCH_SIZE = 256


def rows(options: Options) -> Rows:
    """Yields what is measured."""
    shape = "tiny" if options.trial else "llama-7b"
    yield f"{shape}, rows", partial(compare_rows, options, shape)
    for count in (0, 1, 16):
        yield f"{shape}, {count} demonstrations", partial(measure, options, shape, count)


def quantised(options: Options, shape: str) -> Ways:
    """Returns the ways of a shape with its linear layers in nf4."""
    ways = open_ways(options, shape)
    body = ways.ours[0].model
    if not getattr(body, "is_quantized", False):
        ways.ours.fast = False
        quantise(body, options.device, torch.bfloat16)
        body.is_quantized = True
        ways.lm = ways.reference = None  # type: ignore[assignment] - whose weights would count as memory
        ways.ours.fast = True
    return ways


@torch.no_grad()
def compare_rows(options: Options, shape: str) -> dict[str, Any]:
    """Compares rows that a layer computes together, by their number, with the same rows among 256."""
    body = quantised(options, shape).ours[0].model
    layers = {
        f"{part.in_features} x {part.out_features}": part
        for part in body.modules()
        if type(part).__name__ == "Linear4bit"
    }
    result: dict[str, Any] = {"mixes rows": check.mixes_rows(body)}
    for name, layer in layers.items():
        inputs = torch.randn(256, layer.in_features, device=options.device, dtype=body.dtype)
        whole = layer(inputs)
        differences = {number: (layer(inputs[:number]) - whole[:number]).abs().max() for number in NUMBERS_OF_ROWS}
        result[name] = {number: float(each / whole.abs().max()) for number, each in differences.items()}
    return result


def measure(options: Options, shape: str, demonstrations: int) -> dict[str, Any]:
    """Measures sentences/s and peak bytes, whole and behind a shared head, that too where the check refuses it."""
    ours, sentences = quantised(options, shape).ours, options.sentences(4096)
    quantised(options, shape).set_demonstrations(demonstrations)
    result: dict[str, Any] = {}
    embeddings: dict[str, torch.Tensor] = {}
    for name, fast in (("whole", False), ("behind a shared head", True)):
        ours.fast = False
        with patch.object(path, "mixes_rows", lambda model: False):
            ours.fast = fast
            encode = partial(ours.encode, batch_size=8 if options.trial else BATCH_SIZE)
            embeddings[name] = torch.as_tensor(encode(sentences[:512])).float()
            count = SECONDS / seconds_of(partial(encode, sentences[:512])) * min(512, len(sentences))
            chosen = sentences[: max(512, round(2 * count))]
            peak = peak_of(partial(encode, chosen))
            result[name] = {"per_second": len(chosen) / seconds_of(partial(encode, chosen)), "peak": peak}
    whole, shared = embeddings.values()
    return {**result, "difference": float((whole - shared).abs().max() / whole.abs().max())}
