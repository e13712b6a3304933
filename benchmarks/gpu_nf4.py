"""4-bit weights on a GPU: whether a row's result depends on other rows, and the speed-up by the prefix cache."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from gpu_encode import BATCH_SIZES, BATCHES, SECONDS, SENTENCES, Rounds, part
from gpu_setup import Options, Rows, Ways, open_ways
from reference import noting_shared_heads
from train import quantize

from st_prompteol.fast import check, path

NUMBERS_OF_ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 64, 128)


def rows(options: Options) -> Rows:
    """Yields the measurements by name."""
    shape = "tiny" if options.trial else "llama-7b"
    yield f"{shape}, rows", partial(compare_rows, options, shape)
    for count in (0, 1, 16):
        yield f"{shape}, {count} demonstrations", partial(measure, options, shape, count)


def quantized(options: Options, shape: str) -> Ways:
    """Returns the methods for a shape, with its linear layers in nf4."""
    ways = open_ways(options, shape)
    body = ways.ours[0].model
    if not getattr(body, "is_quantized", False):
        ways.ours.fast = False
        quantize(body, options.device, torch.bfloat16)
        body.is_quantized = True
        ways.lm = ways.reference = None  # type: ignore[assignment] - releases their weights
        ways.ours.fast = True
    return ways


@torch.no_grad()
def compare_rows(options: Options, shape: str) -> dict[str, Any]:
    """Compares a layer's results for different numbers of rows with those for the same rows among 256."""
    body = quantized(options, shape).ours[0].model
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
    """Measures sentences/s and peak bytes, without and with prefix cache, even if the check rejects the latter."""
    ways, sentences = quantized(options, shape), options.sentences(SENTENCES)
    ways.set_demonstrations(demonstrations)
    ours = ways.ours
    size = 8 if options.trial else BATCH_SIZES[0]
    result: dict[str, Any] = {}
    embeddings: dict[str, torch.Tensor] = {}
    for name, fast in (("whole", False), ("behind a shared head", True)):
        ours.fast = False
        with (
            patch.object(path, "mixes_rows", lambda model: False),
            patch.object(check, "_QUANTIZED", 5e-2),
            noting_shared_heads() as shared,
        ):
            ours.fast = fast
            embeddings[name] = torch.as_tensor(ours.encode(sentences[:64])).float()
        each = Rounds(ours[0], partial(ours.encode, batch_size=size), part(sentences, size, 1))
        each.run()  # warm-up
        each.sentences = part(sentences, size, max(BATCHES, round(SECONDS * each.run()["per_second"] / size)))
        result[name] = each.run()
    whole, behind = embeddings.values()
    difference = float((whole - behind).abs().max() / whole.abs().max())
    return {**result, "difference": difference, "is behind a shared head": all(shared)}
