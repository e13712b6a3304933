"""Time and peak memory of a training step of this project and of the reference implementation, in one run.

    python -m benchmarks.speed.train --threads 1                 # OPT-125M-shaped, on a CPU: about half an hour
    python -m benchmarks.speed.train --device cuda --model llama-7b --precision nf4 --batches 32 128 128/16 256/64
    python -m benchmarks.speed.train --device cuda --recipes     # the step of each recipe in training/recipes

Weights and tokens are random; the lengths are drawn like those of the SNLI and MNLI triplets in the paper's training
data. Model, data, LoRA and batch are the same in all rows. Every row runs in a separate process. On a CPU the time is
the process time (user and system), so that other work on the machine does not change the ratios. With `--output` the
rows are added to a `.jsonl` file, and the same command goes on after an interruption; the table lies beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import inject_adapter_in_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.speed.measuring import Row, in_a_process, measure_rows, peak_memory, report, table, wait
from benchmarks.speed.reference import SHAPES, config_of, reference_embeddings
from st_prompteol import LastTokenPooling, lora_config, quantization_config

RECIPES = Path(__file__).resolve().parents[2] / "training/recipes"
HEAD, TAIL = 5, 6  # tokens of the template around a sentence, with OPT's tokenizer
LENGTHS = ((17, 9), (9, 4), (9, 4))  # mean and standard deviation of tokens: premise, entailment, contradiction
Step = Callable[[list[list[int]]], None]  # trains on triplets with these numbers of tokens, `(batch_size, 3)`


def draw_lengths(batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Returns the token counts of each triplet's sentences, cut to 32, plus template: `(batch_size, 3)`."""
    columns = []
    for mean, deviation in LENGTHS:
        variance = np.log(1 + (deviation / mean) ** 2)
        tokens = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), batch_size)
        columns.append(np.clip(tokens.round().astype(int), 3, 32) + HEAD + TAIL)
    return [list(map(int, row)) for row in zip(*columns, strict=True)]


def pad(lengths: list[int], width: int, side: str) -> dict[str, torch.Tensor]:
    """Returns random tokens in rows of `lengths`, padded to `width`."""
    columns = torch.arange(width)[None]  # (1, width)
    rows = torch.tensor(lengths)[:, None]
    mask = columns < rows if side == "right" else columns >= width - rows
    ids = torch.randint(4, 32_000, (len(lengths), width))
    return {"input_ids": ids.where(mask, 1), "attention_mask": mask.long()}


def random_config(shape: str) -> Any:
    """Returns the shape's configuration with OPT's vocabulary of 50,272 tokens, or LLaMA's of 32,000."""
    return config_of(shape, 32_000 if shape.startswith("llama") else 50_272, use_cache=False)


def reference_step(shape: str, device: str, *, precision: str, mini_batch_size: None) -> Step:
    """The reference's step: causal LM, logits over the vocabulary, all hidden states, checkpointing, float32.

    The columns are one batch, padded on the left to the longest row, rounded up to a multiple of 8. With nf4 weights
    their outputs are in float32, under autocast to float16.
    """
    nf4 = precision == "nf4"
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(random_config(shape), dtype=torch.bfloat16 if nf4 else torch.float32)
    if nf4:
        quantize(lm.base_model, device, torch.float32)
    layers = {name.rpartition(".")[2] for name, part in lm.named_modules() if isinstance(part, torch.nn.Linear)}
    inject_adapter_in_model(lora_config(target_modules=sorted(layers - {"lm_head"})), lm)
    for parameter in lm.parameters():  # also norms, embeddings and head, like peft's preparation of 4-bit models
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    lm.train()
    update = updater(lm)

    def step(rows: list[list[int]]) -> None:
        width = -(-max(map(max, rows)) // 8) * 8
        batch = pad([row[column] for column in range(3) for row in rows], width, "left")
        with torch.autocast(torch.device(device).type, torch.float16) if nf4 else nullcontext():
            embeddings = reference_embeddings(lm, {key: value.to(device) for key, value in batch.items()})
        anchors, *others = embeddings.float().view(3, len(rows), -1)
        cosines = torch.cosine_similarity(anchors[:, None], torch.cat(others)[None], dim=-1)
        update(torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(len(rows), device=device)))

    return step


class Body(Module):
    """A `PromptEOLTransformer` without tokenizer, which random tokens do not need.

    Args:
        model: The body of a decoder LLM.
        bf16: Whether to compute under autocast to bfloat16.
    """

    def __init__(self, model: torch.nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings`."""
        inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
        with torch.autocast(self.model.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return {**features, "token_embeddings": self.model(**inputs).last_hidden_state}

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Is required by the base class."""
        raise NotImplementedError


def our_step(shape: str, device: str, *, precision: str, mini_batch_size: int | None) -> Step:
    """This project's step: the body alone, columns padded separately, the loss of `training`, the adapter in float32.

    The weights are float32, also for `"bf16"`, whose computation is autocast; `"bf16 weights"` and nf4 are bfloat16.
    """
    from training.arguments import RunArguments
    from training.loss import build_loss

    with torch.device(device):
        body = AutoModel.from_config(
            random_config(shape), dtype=torch.float32 if precision in ("float32", "bf16") else torch.bfloat16
        )
    if precision == "nf4":
        quantize(body, device, torch.bfloat16)
    inject_adapter_in_model(lora_config(), body)
    for name, parameter in body.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    modules = [Body(body, bf16=precision != "float32"), LastTokenPooling(body.config.hidden_size)]
    model = SentenceTransformer(modules=modules, device=device)
    model.train()
    arguments = RunArguments(output_dir="unused", mini_batch_size=mini_batch_size, precision="float32")
    loss, update = build_loss(model, arguments), updater(model)

    def step(rows: list[list[int]]) -> None:
        columns = [pad(list(column), max(column), "right") for column in zip(*rows, strict=True)]
        update(loss([{key: value.to(device) for key, value in column.items()} for column in columns], None))

    return step


def quantize(body: torch.nn.Module, device: str, compute_dtype: torch.dtype) -> None:
    """Replaces the linear layers with nf4 layers on a device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    options = quantization_config("nf4", compute_dtype=compute_dtype)
    stored = {
        "compress_statistics": options.bnb_4bit_use_double_quant,
        "quant_type": options.bnb_4bit_quant_type,
    }
    for name, part in list(body.named_modules()):
        if isinstance(part, torch.nn.Linear):
            sizes = part.in_features, part.out_features, part.bias is not None
            layer = Linear4bit(*sizes, compute_dtype=compute_dtype, device="meta", **stored)
            layer.weight = Params4bit(part.weight.data, requires_grad=False, module=layer, **stored)
            layer.bias = part.bias
            body.set_submodule(name, layer.to(device))  # moving it quantizes it


def updater(model: torch.nn.Module) -> Callable[[torch.Tensor], None]:
    """Returns the update after the loss, the same for both methods: backward, clipping, AdamW."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


STEPS = {"reference": reference_step, "ours": our_step}
LABELS = ("model", "way", "precision", "batch")


def measure(labels: Row, device: str, threads: int, steps: int) -> tuple[float, float]:
    """Returns seconds per step and peak bytes; infinity if it does not fit."""
    import training.train  # noqa: F401 - its memory counts in every row

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch_size, _, mini_batch_size = labels["batch"].partition("/")
    rng = np.random.default_rng(0)
    clock = time.process_time if device == "cpu" else time.perf_counter
    try:
        options = {"precision": labels["precision"], "mini_batch_size": int(mini_batch_size or 0) or None}
        run = STEPS[labels["way"]](labels["model"], device, **options)
        seconds = []
        for _ in range(1 + steps):  # the first one warms up
            lengths = draw_lengths(int(batch_size), rng)
            wait()
            start = clock()
            run(lengths)
            wait()
            seconds.append(clock() - start)
    except torch.OutOfMemoryError:
        return math.inf, math.inf
    peak = peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated()
    return sum(seconds[1:]) / steps, peak


def plan(args: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Any]]]:
    """Yields the rows with their measurements."""
    every = product(args.model, args.ways, args.batches, args.precision)
    rows = [(model, way, precision, batch) for model, way, batch, precision in every]
    if args.recipes:
        paths = sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem.endswith("13b"))  # the largest at last
        rows = [of_recipe(path) for path in paths if path.stem in SHAPES]
    for row in rows:
        _, way, precision, batch = row
        if way == "ours" or ("/" not in batch and precision != "bf16"):  # the reference has neither
            labels = dict(zip(LABELS, row, strict=True))
            yield labels, partial(in_a_process, measure, labels, args.device, args.threads, args.steps)


def of_recipe(path: Path) -> tuple[str, str, str, str]:
    """Returns the labels of a recipe on one GPU, with its share of the global batch."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    batch, mini_batch = recipe["per_device_train_batch_size"], recipe.get("mini_batch_size")
    weights = "nf4" if recipe.get("quantization") == "nf4" else recipe.get("dtype", "float32")
    precision = {"bfloat16": "bf16 weights", "float32": "bf16"}.get(weights, weights)
    return path.stem, "ours", precision, f"{batch}/{mini_batch}" if mini_batch else str(batch)


def to_markdown(rows: list[Row]) -> str:
    """Formats the measurements, compared with the reference's with the same batch or the first row of a model."""
    lines = []
    for row in rows:
        seconds, peak = row["result"]
        same = [other for other in rows if other["model"] == row["model"]]
        whole = row["batch"].split("/")[0]
        reference = [other for other in same if (other["way"], other["batch"]) == ("reference", whole)]
        alike = [other for other in reference if other["precision"] == row["precision"]]
        base_seconds, base_peak = (alike or reference or same)[0]["result"]
        numbers = seconds, base_seconds / seconds, peak / 2**30, peak / base_peak
        cells = [f"{number:.2f}" if math.isfinite(number) else "does not fit" for number in numbers]
        lines.append([*(row[name] for name in LABELS), *cells])
    return table(f"{' | '.join(LABELS)} | s a step | steps/s, ratio | peak GiB | peak, ratio", lines, texts=4)


def main() -> int:
    """Runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["opt-125m"], choices=list(SHAPES))
    parser.add_argument("--ways", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16", "nf4"])
    parser.add_argument("--batches", nargs="+", default=["32/8", "32"], help="triplets, or triplets/mini-batch size")
    parser.add_argument("--recipes", action="store_true", help="measure these instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that warms up")
    parser.add_argument("--output", type=Path, help="where to write, without suffix")
    args = parser.parse_args()
    rows = measure_rows(plan(args), args.output and args.output.with_suffix(".jsonl"))
    return report(rows, to_markdown, args.output)


if __name__ == "__main__":
    sys.exit(main())
