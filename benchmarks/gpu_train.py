"""Fine-tuning on a GPU: steps of the reference implementation and of ours in nf4, largest batches, recipes' memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu_setup import Options, Rows, free_memory, peak_of
from reference import SHAPES, seconds_of
from train import draw_lengths, our_body, our_step, reference_step

RECIPES = Path(__file__).resolve().parents[1] / "training" / "recipes"
BATCH_SIZES = (32, 128)  # triplets, for the comparison
STEPS = 3
SLOW = 0.25  # steps per second below which no larger batch is tried


class Draws:
    """Draws random lengths for batches of NLI-like triplets.

    Args:
        batch_size: The number of triplets; may be changed at any time.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self._rng, self.tokens = batch_size, np.random.default_rng(0), 0

    def __call__(self) -> list[list[int]]:
        """Returns the number of tokens of each triplet's sentences, `(batch_size, 3)`."""
        rows = draw_lengths(self.batch_size, self._rng)
        self.tokens += int(np.sum(rows))
        return rows


def rows(options: Options) -> Rows:
    """Yields the measurements by name."""
    for shape in ("tiny",) if options.trial else ("llama-7b", "opt-2.7b"):
        for way, measure in (("reference", measure_reference), ("ours", measure_ours)):
            yield f"{shape}, {way}", partial(measure, shape, options)
    for path in sorted(RECIPES.glob("*.yaml"), key=lambda path: (path.stem.endswith("13b"), path.stem)):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem in SHAPES and (path.stem == "tiny") is options.trial:
            yield f"recipe {path.stem}", partial(measure_recipe, path.stem, recipe, options)


def measure_reference(shape: str, options: Options) -> dict[str, Any]:
    """Measures steps of the reference implementation with growing batches, until one does not fit."""
    draws = Draws(2)
    return grow(reference_step(shape, draws, options.device, nf4=True), draws, options)


def measure_ours(shape: str, options: Options) -> dict[str, Any]:
    """Measures our steps with growing batches, then with gradient caching at the paper's global batch size."""
    draws = Draws(2)
    body = our_body(shape, options.device, torch.bfloat16, nf4=True)
    results = grow(our_step(body, draws, None, bf16=True), draws, options)
    for batch_size, mini_batch_size in ((8, 4),) if options.trial else ((32, 8), (128, 16), (128, 32), (256, 64)):
        draws.batch_size = batch_size
        step = our_step(body, draws, mini_batch_size, bf16=True)
        results[f"{batch_size} by {mini_batch_size}"] = steps(step, draws, 1 if options.trial else STEPS)
    return results


def grow(step: Callable[[], None], draws: Draws, options: Options) -> dict[str, Any]:
    """Measures steps at the compared batch sizes, then doubles the last one while it fits and is not slow."""
    results: dict[str, Any] = {}
    for batch_size in (2, 4) if options.trial else (*BATCH_SIZES, *(2**power for power in range(8, 14))):
        draws.batch_size = batch_size
        measured = results[str(batch_size)] = steps(step, draws, 1 if options.trial else STEPS)
        if "error" in measured or measured["steps_per_second"] < SLOW:
            break
    return results


def steps(step: Callable[[], None], draws: Draws, count: int) -> dict[str, Any]:
    """Measures steps per second, tokens per second and peak bytes on the device."""
    try:
        step()  # warm-up, which also creates the optimizer's state
        draws.tokens = 0
        seconds: list[float] = []
        peak = peak_of(lambda: seconds.append(seconds_of(lambda: [step() for _ in range(count)])))
        return {"steps_per_second": count / seconds[0], "tokens_per_second": draws.tokens / seconds[0], "peak": peak}
    except torch.OutOfMemoryError:
        pass  # here the traceback still references tensors
    free_memory()
    return {"error": "does not fit"}


def measure_recipe(name: str, recipe: dict[str, Any], options: Options) -> dict[str, Any]:
    """Measures a recipe's step on one GPU, with its share of the global batch."""
    nf4, batch_size = recipe.get("quantization") == "nf4", recipe["per_device_train_batch_size"]
    mini = recipe.get("mini_batch_size")
    draws = Draws(4 if options.trial else batch_size)
    dtype = torch.bfloat16 if nf4 else getattr(torch, recipe.get("dtype", "float32"))
    step = our_step(our_body(name, options.device, dtype, nf4=nf4), draws, mini, bf16=True)
    return {"batch": batch_size, "mini-batch": mini, **steps(step, draws, 1)}
