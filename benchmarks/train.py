"""A training step of this project against the reference's way of computing, in one run: time and peak memory.

python benchmarks/train.py --threads 1 --output docs/benchmarks.md     # OPT-125M-shaped, on a CPU: about half an hour
python benchmarks/train.py --cached                                    # memory of gradient caching at batch 256
python benchmarks/train.py --gpu --output docs/benchmarks.md           # OPT-2.7B- and LLaMA-7B-shaped in nf4

Weights are random and so are tokens; the lengths are drawn like those of the SNLI and MNLI triplets that the paper
trained on. Model, data, LoRA and batch are the same in all rows. Every row is a process of its own. Time is that of
the process (user and system), so that a machine with other work gives the same ratios, or wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are run from a checkout

import numpy as np
import torch

HEAD, TAIL = 5, 6  # tokens of the template around a sentence, by OPT's tokenizer
LENGTHS = ((17, 9), (9, 4), (9, 4))  # mean and deviation of tokens: premise, entailment, contradiction
SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "ffn_dim": 128, "num_attention_heads": 4},  # to try it out
    "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12},
    "opt-2.7b": {"hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240, "num_attention_heads": 32},
    "llama-7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
    },
}

Columns = list[dict[str, torch.Tensor]]


def draw_lengths(batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Returns the tokens of each triplet's rendered sentences, the sentence cut to 32: `(batch_size, 3)`."""
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


def build_config(shape: str) -> Any:
    """Returns the shape's configuration; OPT's vocabulary of 50,272 tokens, LLaMA's of 32,000."""
    from transformers import LlamaConfig, OPTConfig

    sizes = SHAPES[shape]
    if shape.startswith("llama"):
        return LlamaConfig(vocab_size=32_000, use_cache=False, **sizes)
    return OPTConfig(vocab_size=50_272, word_embed_proj_dim=sizes["hidden_size"], use_cache=False, **sizes)


def reference_step(shape: str, lengths: Iterator[list[list[int]]], device: str) -> Callable[[], None]:
    """The reference's way: causal LM, logits over the vocabulary, all hidden states, checkpointing, float32.

    The columns are one batch, padded on the left to a multiple of 8 of the longest of all.
    """
    from peft import inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    from st_prompteol import lora_config

    lm = AutoModelForCausalLM.from_config(build_config(shape)).to(device)
    layers = {name.rpartition(".")[2] for name, part in lm.named_modules() if isinstance(part, torch.nn.Linear)}
    inject_adapter_in_model(lora_config(target_modules=sorted(layers - {"lm_head"})), lm)
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    lm.train()
    update = updater(lm)

    def step() -> None:
        rows = next(lengths)
        width = -(-max(map(max, rows)) // 8) * 8
        batch = pad([row[column] for column in range(3) for row in rows], width, "left")
        output = lm(**{key: value.to(device) for key, value in batch.items()}, output_hidden_states=True)
        anchors, *others = output.hidden_states[-1][:, -1].view(3, len(rows), -1)
        cosines = torch.cosine_similarity(anchors[:, None], torch.cat(others)[None], dim=-1)
        update(torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(len(rows), device=device)))

    return step


def our_step(
    shape: str,
    lengths: Iterator[list[list[int]]],
    device: str,
    mini_batch_size: int | None,
    bf16: bool,
    nf4: bool = False,
) -> Callable[[], None]:
    """This project's way: the body alone, columns padded on their own, the loss that training uses."""
    from peft import inject_adapter_in_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module
    from transformers import AutoModel

    from st_prompteol import LastTokenPooling, lora_config
    from training.arguments import RunArguments
    from training.loss import build_loss

    config = build_config(shape)
    body = quantised_body(config, device) if nf4 else AutoModel.from_config(config).to(device)
    inject_adapter_in_model(lora_config(), body)
    for name, parameter in body.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()

    class Body(Module):  # PromptEOLTransformer without its tokenizer, which tokens that are drawn do not need
        def __init__(self) -> None:
            super().__init__()
            self.model = body

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
            autocast = torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext()
            with autocast:
                return {**features, "token_embeddings": self.model(**inputs).last_hidden_state}

        def save(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    model = SentenceTransformer(modules=[Body(), LastTokenPooling(config.hidden_size)], device=device)
    model.train()
    arguments = RunArguments(output_dir="unused", mini_batch_size=mini_batch_size, precision="float32")
    loss, update = build_loss(model, arguments), updater(model)  # type: ignore[arg-type]

    def step() -> None:
        columns: Columns = []
        for column in zip(*next(lengths), strict=True):
            features = pad(list(column), max(column), "right")
            columns.append({key: value.to(device) for key, value in features.items()})
        update(loss(columns, None))

    return step


def quantised_body(config: Any, device: str) -> torch.nn.Module:
    """Returns a random body in nf4, made layer by layer on the device."""
    from transformers import AutoModel

    from st_prompteol import quantization_config

    with torch.device("meta"):
        body = AutoModel.from_config(config)
    from bitsandbytes.nn import Linear4bit

    options = quantization_config("nf4", compute_dtype=torch.bfloat16)
    for name, part in list(body.named_modules()):
        if isinstance(part, torch.nn.Linear):
            layer = Linear4bit(
                part.in_features,
                part.out_features,
                bias=part.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=options.bnb_4bit_use_double_quant,
                quant_type="nf4",
                device="cpu",
            )
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, layer.to(device))
    for part in body.modules():  # norms and embeddings
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                data = torch.nn.init.normal_(torch.empty(parameter.shape, device=device), std=0.02)
                setattr(part, name, torch.nn.Parameter(data, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:
                part.register_buffer(name, torch.zeros_like(buffer, device=device), persistent=False)
    if hasattr(body, "rotary_emb"):
        body.rotary_emb = type(body.rotary_emb)(config).to(device)
    return body


def updater(model: torch.nn.Module) -> Callable[[torch.Tensor], None]:
    """Returns what follows the loss in both ways: backward, clipping, AdamW."""
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
    """Runs one row in this process: seconds a step and peak memory in bytes, with and without the imports."""
    torch.set_num_threads(row["threads"])
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    device = "cuda" if row.get("gpu") else "cpu"
    lengths = iter(lambda: draw_lengths(row["batch_size"], rng), None)
    import training.train  # noqa: F401 - counted as imports in every row

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if row["way"] == "reference":
        step = reference_step(row["shape"], lengths, device)
    else:
        step = our_step(row["shape"], lengths, device, row["mini_batch_size"], row["bf16"], bool(row.get("gpu")))
    clock = time.perf_counter if row.get("gpu") else time.process_time
    step()  # warms up
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    for _ in range(row["steps"]):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (clock() - started) / row["steps"]
    rng = np.random.default_rng(0)
    drawn = [draw_lengths(row["batch_size"], rng) for _ in range(row["steps"] + 1)][1:]
    tokens = float(np.mean([np.sum(lengths) for lengths in drawn]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak, before = torch.cuda.max_memory_allocated(), 0
    return {**row, "seconds": seconds, "tokens_per_second": tokens / seconds, "peak": peak, "imports": before}


def in_a_process(row: dict[str, Any]) -> dict[str, Any]:
    """Runs one row in a process of its own, so that its peak memory is its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--row", json.dumps(row)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {**row, "error": done.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{result['name']}: {result['seconds']:.2f} s, {result['peak'] / 2**30:.2f} GiB", file=sys.stderr)
    return result


def compare(args: argparse.Namespace) -> str:
    """Returns the comparison with the reference as a Markdown table."""
    shared = {"shape": args.shape, "batch_size": 32, "threads": args.threads, "steps": args.steps}
    ours = {**shared, "way": "ours"}
    rows = [
        {**shared, "way": "reference", "name": "reference, float32"},
        {**ours, "name": "mini-batch 8, float32", "mini_batch_size": 8, "bf16": False},
        {**ours, "name": "mini-batch 8, bf16", "mini_batch_size": 8, "bf16": True},
        {**ours, "name": "whole batch, float32", "mini_batch_size": None, "bf16": False},
        {**ours, "name": "whole batch, bf16", "mini_batch_size": None, "bf16": True},
    ]
    results = [in_a_process(row) for row in rows]
    base = results[0]
    lines = ["| way | s a step | steps/s, ratio | peak GiB | peak, ratio |", "|---|---|---|---|---|"]
    for row in results:
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {base['seconds'] / row['seconds']:.2f} "
            f"| {row['peak'] / 2**30:.2f} | {row['peak'] / base['peak']:.2f} |"
        )
    return "\n".join(lines)


def compare_cached(args: argparse.Namespace) -> str:
    """Returns peak memory of the cached loss, mini-batch 16, at batch 256 against a batch of 16."""
    shared = {"shape": args.shape, "way": "ours", "threads": args.threads, "steps": 1, "bf16": False}
    rows = [
        {**shared, "name": "batch 16", "batch_size": 16, "mini_batch_size": None},
        {**shared, "name": "batch 256, mini-batch 16", "batch_size": 256, "mini_batch_size": 16},
    ]
    results = [in_a_process(row) for row in rows]
    lines = ["| batch | s a step | peak GiB | peak, ratio |", "|---|---|---|---|"]
    for row in results:
        ratio = row["peak"] / results[0]["peak"]
        lines.append(f"| {row['name']} | {row['seconds']:.2f} | {row['peak'] / 2**30:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def measure_gpu(args: argparse.Namespace) -> str:
    """Returns speed, memory and the largest batch that fits, in nf4, as a Markdown table with the device's name."""
    lines = [
        f"{torch.cuda.get_device_name()}:\n",
        "| shape | batch | mini-batch | steps/s | tokens/s | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for shape in ("opt-2.7b", "llama-7b"):
        shared = {"shape": shape, "way": "ours", "threads": args.threads, "steps": 3, "bf16": True, "gpu": True}
        cached = {**shared, "name": f"{shape} cached", "batch_size": 256, "mini_batch_size": 64}
        rows, batch_size = [in_a_process(cached)], 32
        while True:
            row = in_a_process({**shared, "name": shape, "batch_size": batch_size, "mini_batch_size": None})
            if "error" in row:
                lines.append(f"| {shape} | {batch_size} | | does not fit | | |")
                break
            rows.append(row)
            batch_size *= 2
        lines += [
            f"| {shape} | {row['batch_size']} | {row['mini_batch_size'] or ''} | {1 / row['seconds']:.2f} "
            f"| {row['tokens_per_second']:,.0f} | {row['peak'] / 2**30:.1f} |"
            for row in rows
            if "error" not in row
        ]
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that warms up")
    parser.add_argument("--cached", action="store_true", help="memory of gradient caching at batch 256")
    parser.add_argument("--gpu", action="store_true", help="nf4 on a GPU")
    parser.add_argument("--output", type=Path, help="Markdown file that the table is appended to")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    table = measure_gpu(args) if args.gpu else compare_cached(args) if args.cached else compare(args)
    print(table)
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(f"\n{table}\n")


if __name__ == "__main__":
    main()
