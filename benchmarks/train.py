"""Time and peak memory of a training step of this project and of the reference implementation, in one run.

python benchmarks/train.py --threads 1 --output docs/benchmarks.md     # OPT-125M-shaped, on a CPU: about half an hour
python benchmarks/train.py --cached                                    # memory of gradient caching at batch 256

Weights and tokens are random; the lengths are drawn like those of the SNLI and MNLI triplets in the paper's training
data. Model, data, LoRA and batch are the same in all rows. Every row runs in a separate process. The time is the
process time (user and system), so that other work on the machine does not change the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are not installed

import numpy as np
import torch
from reference import SHAPES, config_of, reference_embeddings

from st_prompteol.output import to_markdown

HEAD, TAIL = 5, 6  # tokens of the template around a sentence, with OPT's tokenizer
LENGTHS = ((17, 9), (9, 4), (9, 4))  # mean and standard deviation of tokens: premise, entailment, contradiction
Columns = list[dict[str, torch.Tensor]]


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


def reference_step(
    shape: str, draw: Callable[[], list[list[int]]], device: str = "cpu", *, nf4: bool = False
) -> Callable[[], None]:
    """The reference's step: causal LM, logits over the vocabulary, all hidden states, checkpointing, float32.

    The columns are one batch, padded on the left to the longest row, rounded up to a multiple of 8. With nf4 weights
    their outputs are in float32, under autocast to float16.
    """
    from peft import inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    from st_prompteol import lora_config

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

    def step() -> None:
        rows = draw()
        width = -(-max(map(max, rows)) // 8) * 8
        batch = pad([row[column] for column in range(3) for row in rows], width, "left")
        with torch.autocast(torch.device(device).type, torch.float16) if nf4 else nullcontext():
            embeddings = reference_embeddings(lm, {key: value.to(device) for key, value in batch.items()})
        anchors, *others = embeddings.float().view(3, len(rows), -1)
        cosines = torch.cosine_similarity(anchors[:, None], torch.cat(others)[None], dim=-1)
        update(torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(len(rows), device=device)))

    return step


def our_body(shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32, *, nf4: bool = False) -> Any:
    """Returns a body with LoRA on every linear layer, the adapter in float32."""
    from peft import inject_adapter_in_model
    from transformers import AutoModel

    from st_prompteol import lora_config

    with torch.device(device):
        body = AutoModel.from_config(random_config(shape), dtype=dtype)
    if nf4:
        quantize(body, device, torch.bfloat16)
    inject_adapter_in_model(lora_config(), body)
    for name, parameter in body.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return body


def our_step(
    body: Any, draw: Callable[[], list[list[int]]], mini_batch_size: int | None, *, bf16: bool
) -> Callable[[], None]:
    """This project's step: the body alone, columns padded separately, the loss of `training`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module

    from st_prompteol import LastTokenPooling
    from training.arguments import RunArguments
    from training.loss import build_loss

    device = body.device

    class Body(Module):  # PromptEOLTransformer without tokenizer, not needed for random tokens
        def __init__(self) -> None:
            super().__init__()
            self.model = body

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                return {**features, "token_embeddings": self.model(**inputs).last_hidden_state}

        def save(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    model = SentenceTransformer(modules=[Body(), LastTokenPooling(body.config.hidden_size)], device=str(device))
    model.train()
    arguments = RunArguments(output_dir="unused", mini_batch_size=mini_batch_size, precision="float32")
    loss, update = build_loss(model, arguments), updater(model)  # type: ignore[arg-type]

    def step() -> None:
        columns: Columns = []
        for column in zip(*draw(), strict=True):
            features = pad(list(column), max(column), "right")
            columns.append({key: value.to(device) for key, value in features.items()})
        update(loss(columns, None))

    return step


def quantize(body: torch.nn.Module, device: str, compute_dtype: torch.dtype) -> None:
    """Replaces the linear layers with nf4 layers on a device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    from st_prompteol import quantization_config

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


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Runs one row in this process; returns seconds per step and peak memory in bytes."""
    torch.set_num_threads(row["threads"])
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def draw() -> list[list[int]]:
        return draw_lengths(row["batch_size"], rng)

    import training.train  # noqa: F401 - its memory counts in every row

    if row["way"] == "reference":
        step = reference_step(row["shape"], draw)
    else:
        step = our_step(our_body(row["shape"]), draw, row["mini_batch_size"], bf16=row["bf16"])
    step()  # warm-up
    started = time.process_time()
    for _ in range(row["steps"]):
        step()
    seconds = (time.process_time() - started) / row["steps"]
    return {**row, "seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_a_process(row: dict[str, Any]) -> dict[str, Any]:
    """Runs one row in a separate process, so that the peak memory is that of the row."""
    done = subprocess.run(
        [sys.executable, __file__, "--row", json.dumps(row)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{row['name']} failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{result['name']}: {result['seconds']:.2f} s, {result['peak'] / 2**30:.2f} GiB", file=sys.stderr)
    return result


def compare(args: argparse.Namespace) -> str:
    """Returns the comparison with the reference as a Markdown table."""
    shared = {"shape": args.shape, "batch_size": 32, "threads": args.threads, "steps": args.steps}
    rows = [{**shared, "way": "reference", "name": "reference, float32"}]
    for name, mini_batch_size in (("mini-batch 8", 8), ("whole batch", None)):
        for precision in ("float32", "bf16"):
            ours = {"way": "ours", "mini_batch_size": mini_batch_size, "bf16": precision == "bf16"}
            rows.append({**shared, **ours, "name": f"{name}, {precision}"})
    results = [in_a_process(row) for row in rows]
    first = results[0]
    lines = [["way", "s a step", "steps/s, ratio", "peak GiB", "peak, ratio"]]
    for row in results:
        ratios = first["seconds"] / row["seconds"], row["peak"] / first["peak"]
        numbers = row["seconds"], ratios[0], row["peak"] / 2**30, ratios[1]
        lines.append([row["name"], *(f"{number:.2f}" for number in numbers)])
    return to_markdown(lines, text_columns=("way",))


def compare_cached(args: argparse.Namespace) -> str:
    """Returns the peak memory of the cached loss with mini-batches of 16 at batch size 256 and at batch size 16."""
    shared = {"shape": args.shape, "way": "ours", "threads": args.threads, "steps": 1, "bf16": False}
    results = [
        in_a_process({**shared, "name": name, "batch_size": batch_size, "mini_batch_size": mini_batch_size})
        for name, batch_size, mini_batch_size in (("batch 16", 16, None), ("batch 256, mini-batch 16", 256, 16))
    ]
    first = results[0]
    lines = [["batch", "s a step", "peak GiB", "peak, ratio"]]
    for row in results:
        numbers = row["seconds"], row["peak"] / 2**30, row["peak"] / first["peak"]
        lines.append([row["name"], *(f"{number:.2f}" for number in numbers)])
    return to_markdown(lines, text_columns=("batch",))


def main() -> None:
    """Runs the requested comparison and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-125m", choices=list(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that warms up")
    parser.add_argument("--cached", action="store_true", help="memory of gradient caching at batch 256")
    parser.add_argument("--output", type=Path, help="Markdown file that the table is appended to")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    table = compare_cached(args) if args.cached else compare(args)
    print(table, end="")
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(f"\n{table}")


if __name__ == "__main__":
    main()
