"""Encoding on a GPU: the reference implementation, plain sentence-transformers with and without padding, and ours."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from gpu_setup import REFERENCE_BATCH_SIZE, Options, Rows, Ways, free_memory, open_ways, peak_of
from reference import flops_per_sentence, latency, noting_shared_heads, seconds_of, wait

SHAPES = ("llama-7b", "opt-125m", "qwen3-0.6b", "opt-2.7b", "smollm2-135m")
DEMONSTRATIONS = (1, 16, 0, 4)
BATCH_SIZES = (256, 32)
SENTENCES = 4096
SECONDS = 0.7  # per method and round: slower methods encode evenly chosen, fewer batches
BATCHES = 4  # minimum number of batches; two if one takes a second
ROUNDS = 3
ENOUGH = 4.0  # seconds of measurement per method, after which no further round begins
PLAIN = {"sdpa": "sdpa", "without padding": "flash_attention_2"}


def rows(options: Options) -> Rows:
    """Yields the measurements by name, the largest shape first."""
    shapes, batch_sizes, counts = SHAPES, BATCH_SIZES, DEMONSTRATIONS
    if options.trial:
        shapes, batch_sizes, counts = ("tiny", "stories260k"), (8,), (1, 0)
    yield "peak", partial(measure_peak, options)
    for shape in shapes:
        for count in counts:
            for batch_size in batch_sizes:
                name = f"{shape}, {count} demonstrations, batch {batch_size}"
                yield name, partial(measure, options, shape, count, batch_size)
        yield f"{shape}, one sentence", partial(measure_latency, options, shape)
        yield f"{shape}, kernels", partial(profile, options, shape, batch_sizes[0])


def measure_peak(options: Options) -> dict[str, float]:
    """Measures the FLOP/s of a product of large matrices in bfloat16."""
    size = 256 if options.trial else 8192
    one, other = (torch.randn(size, size, device=options.device).bfloat16() for _ in range(2))
    products = [seconds_of(lambda: [torch.mm(one, other) for _ in range(10)]) for _ in range(5)]
    return {"flops": 10 * 2 * size**3 / statistics.median(products)}


def measure(options: Options, shape: str, demonstrations: int, batch_size: int) -> dict[str, Any]:
    """Measures all methods interleaved: sentences/s, peak bytes, share of time without a forward pass."""
    ways = open_ways(options, shape)
    ways.set_demonstrations(demonstrations)
    sentences = options.sentences(SENTENCES)
    result: dict[str, Any] = {}
    encoders: dict[str, tuple[Any, Callable[[list[str]], Any]]] = {
        "ours": (ways.ours[0], partial(ways.ours.encode, batch_size=batch_size)),
        "reference": (ways.lm, ways.by_reference),
    }
    for name, attention in PLAIN.items():
        try:
            plain = ways.plain(attention)
        except (ImportError, ValueError) as error:
            result[name] = {"error": " ".join(str(error).split())[:200]}
            continue
        encoders[name] = plain[0], partial(plain.encode, batch_size=batch_size)
    with noting_shared_heads() as shared:
        ours, plain = (torch.as_tensor(encoders[name][1](sentences[:64])).float() for name in ("ours", "sdpa"))
    result["is behind a shared head"] = all(shared)
    result["difference"] = float((ours - plain).abs().max() / plain.abs().max())
    result["flops"] = flops(options, shape, demonstrations)
    sizes = {name: REFERENCE_BATCH_SIZE if name == "reference" else batch_size for name in encoders}
    rounds = {name: Rounds(*encoder, part(sentences, sizes[name], 1)) for name, encoder in encoders.items()}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in rounds}
    for name, each in rounds.items():
        with going_on(name, result):
            once = each.run()  # warm-up
            once = each.run() if once["seconds"] < 1 else once
            least = BATCHES if once["seconds"] < 1 else 2
            count = max(least, round(SECONDS * once["per_second"] / sizes[name]))
            each.sentences = part(sentences, sizes[name], count)
            if name == "reference":  # it does not sort sentences
                random.Random(0).shuffle(each.sentences)
    for _ in range(ROUNDS):
        for name, each in rounds.items():
            if name not in result and sum(round_["seconds"] for round_ in measured[name]) < ENOUGH:
                with going_on(name, result):
                    measured[name].append(each.run())
    for name, done in measured.items():
        if name not in result:
            result[name] = {key: statistics.median(round_[key] for round_ in done) for key in done[0]}
    return result


@contextmanager
def going_on(name: str, result: dict[str, Any]) -> Iterator[None]:
    """Records in the result of a method if it does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        result[name] = {"error": "does not fit"}
    if name in result:
        free_memory()


@cache
def flops(options: Options, shape: str, demonstrations: int) -> float:
    """Counts the FLOPs of a sentence, once for all batches because counting is slow."""
    ways = open_ways(options, shape)
    ways.set_demonstrations(demonstrations)
    sentences = options.sentences(SENTENCES)
    return flops_per_sentence(ways.ours, sentences[:: max(1, len(sentences) // 8)])


def part(sentences: list[str], batch_size: int, batches: int) -> list[str]:
    """Returns evenly chosen whole batches of the sentences sorted by length, the longest first."""
    ordered = sorted(sentences, key=len, reverse=True)
    starts = range(0, len(ordered), batch_size)
    step = len(starts) / min(batches, len(starts))
    chosen = [starts[int(step * (number + 0.5))] for number in range(min(batches, len(starts)))]
    return [sentence for start in chosen for sentence in ordered[start : start + batch_size]]


@dataclass
class Rounds:
    """Repeated measurements of one method of encoding.

    Args:
        module: The module whose forward passes are timed.
        encode: Encodes sentences.
        sentences: The sentences to encode.
    """

    module: torch.nn.Module
    encode: Callable[[list[str]], Any]
    sentences: list[str]

    def run(self) -> dict[str, float]:
        """Measures sentences/s, peak bytes on the device, and the share of time without a forward pass."""
        seconds = 0.0

        def encode() -> None:
            nonlocal seconds
            seconds = seconds_of(partial(self.encode, self.sentences))

        with timing_forward(self.module) as passes:
            peak = peak_of(encode)
        count = len(self.sentences)
        waiting = 1 - sum(passes) / seconds
        return {
            "sentences": count,
            "seconds": seconds,
            "per_second": count / seconds,
            "peak": peak,
            "waiting": waiting,
        }


@contextmanager
def timing_forward(module: torch.nn.Module) -> Any:
    """Yields a list that afterwards contains the device seconds of each forward pass."""
    events: list[Any] = []
    seconds: list[float] = []

    def note(*_: Any) -> None:
        event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_available() else _Clock()
        event.record()
        events.append(event)

    hooks = module.register_forward_pre_hook(note), module.register_forward_hook(note)
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
    wait()
    seconds += [begin.elapsed_time(end) / 1e3 for begin, end in zip(events[::2], events[1::2], strict=True)]


class _Clock:
    """Replaces a device event on the CPU."""

    def record(self) -> None:
        self.now = time.perf_counter()

    def elapsed_time(self, end: _Clock) -> float:
        return 1e3 * (end.now - self.now)


def measure_latency(options: Options, shape: str) -> dict[str, float]:
    """Encodes one sentence at a time with one demonstration: seconds of `encode` and of the forward pass alone."""
    ways = open_ways(options, shape)
    ways.set_demonstrations(1)
    ways.ours.encode("It warms up.")
    return latency(ways.ours, "A man is playing a guitar.", calls=5 if options.trial else 50)


def profile(options: Options, shape: str, batch_size: int) -> dict[str, Any]:
    """Profiles our method with one demonstration: the kernels' shares of the time; the rest is idle."""
    ways: Ways = open_ways(options, shape)
    ways.set_demonstrations(1)
    sentences = options.sentences(4 * batch_size)
    ways.ours.encode(sentences, batch_size=batch_size)
    activity = torch.profiler.ProfilerActivity
    which, time_of = (activity.CUDA, "device") if torch.cuda.is_available() else (activity.CPU, "cpu")
    with torch.profiler.profile(activities=[which]) as profiler:
        seconds = seconds_of(partial(ways.ours.encode, sentences, batch_size=batch_size))
    kernels = {
        event.key: getattr(event, f"self_{time_of}_time_total") / 1e6 / seconds for event in profiler.key_averages()
    }
    most = sorted(kernels, key=kernels.__getitem__, reverse=True)[:15]
    return {"busy": sum(kernels.values()), "kernels": {key[:100]: kernels[key] for key in most}}
