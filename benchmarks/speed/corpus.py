"""Corpus encoding: `model.encode`, `--engine local` and Ray with one worker or several, and memory by corpus size.

    python -m benchmarks.speed.corpus --tokenizer TOKENIZER --sentences FILE --rows 10000 --fragment-rows 32768
    python -m benchmarks.speed.corpus --tokenizer TOKENIZER --sentences FILE --ways ray --workers 1 2
    python -m benchmarks.speed.corpus --model MODEL --sentences FILE --ways ray --rows 10000 500000

Uses random weights in the shape of OPT-125M with a real tokenizer, or a real model; and real sentences, one per line,
repeated as needed. Each measurement runs in a separate process, on a CPU with one thread per worker. Times are of the
whole call, including Ray's start and loading the model; of `encode` alone for `encode`, and of tokenizing for
`preprocess`. With `--output` the rows are added to a `.jsonl` file; the table lies beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.speed.measuring import Row, in_a_process, measure_rows, peak_memory, report, seconds_of, table
from benchmarks.speed.reference import model_folder
from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus

ENGINES = ("local", "ray")


def encode_plainly(model: str, way: str, options: dict[str, Any], texts: list[str], batch_size: int) -> dict[str, Any]:
    """Calls `encode`, or only `preprocess`, with all sentences; the time is without loading the model."""
    opened = PromptEOL(model, **options)
    if opened.device.type == "cpu":
        torch.set_num_threads(1)
        os.environ["RAYON_NUM_THREADS"] = "1"
    opened.encode(texts[:64])
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    ways = {
        "encode": lambda: opened.encode(texts, batch_size=batch_size),
        "preprocess": lambda: [opened.preprocess(batch) for batch in batches],
    }
    return {"seconds": seconds_of(ways[way]), "peak": peak_memory()}


def encode_file(model: str, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Calls `encode_corpus`; memory is the peak of the driver and of the largest worker."""
    peaks: dict[int, int] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, done), daemon=True)
    watcher.start()
    with TemporaryDirectory() as destination:
        result = encode_corpus(model, source, destination, column="text", **options)
        totals = json.loads((Path(destination) / "_manifest.json").read_text(encoding="utf-8"))["totals"]
    done.set()
    watcher.join()
    largest = max(peaks.values(), default=0)
    return {"seconds": result.seconds, "work": totals["seconds"], "peak": peak_memory(), "worker": largest}


def _watch(peaks: dict[int, int], done: threading.Event) -> None:
    """Records the peak memory of every actor of a pool while it is running."""
    while not done.wait(0.5):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if b"MapWorker" in path.read_bytes():
                    peaks[int(path.parent.name)] = peak_memory(path.parent.name)
            except (OSError, IndexError):
                continue  # it has ended


def plan(args: argparse.Namespace, model: str, folder: str) -> Iterator[tuple[Row, Callable[[], Any]]]:
    """Yields the rows with their measurements; corpora are written into the folder."""
    options = {"device": args.device, "model_kwargs": {"dtype": getattr(torch, args.dtype)}}
    for count, way in product(args.rows, args.ways):
        texts = list(islice(cycle(args.texts), count))
        source = str(Path(folder) / f"{count}.parquet")
        pq.write_table(pa.table({"text": texts}), source)
        for workers in args.workers if way == "ray" else [1]:
            labels = {"model": args.model, "way": way, "workers": workers, "rows": count, "dtype": args.dtype}
            run = partial(in_a_process, encode_plainly, model, way, options, texts, args.batch_size)
            if way in ENGINES:
                how = {"engine": way, "workers": workers if way == "ray" else None, "model_options": options}
                how |= {"batch_size": args.batch_size, "fragment_rows": args.fragment_rows}
                run = partial(in_a_process, encode_file, model, source, how)
            yield labels, run


def to_markdown(rows: list[Row]) -> str:
    """Formats the measurements; in parentheses the seconds that workers spent on fragments, and rows per such second.

    Seconds in parentheses are those of all workers together.
    """
    lines = []
    for row in rows:
        result, count, workers = row["result"], row["rows"], row["workers"]
        work = result.get("work")
        seconds = f"{result['seconds']:.1f}" + (f" ({work:.1f})" if work else "")
        rate = f"{count / result['seconds']:.1f}" + (f" ({count * workers / work:.1f})" if work else "")
        memory = [f"{result[name] / 2**20:,.0f}" if result.get(name) else None for name in ("peak", "worker")]
        lines.append([row["model"], row["dtype"], row["way"], workers, f"{count:,}", seconds, rate, *memory])
    header = "model | dtype | way | workers | sentences | seconds | sentences/s | driver, MiB | worker, MiB"
    return table(header, lines, texts=3)


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="opt-125m", help="a shape, a folder or a Hub id")
    parser.add_argument("--tokenizer", help="folder or repository of a tokenizer, for a shape")
    parser.add_argument("--sentences", required=True, type=Path, help="text file, one sentence a line")
    parser.add_argument("--ways", nargs="+", choices=["encode", "preprocess", *ENGINES], default=["encode", "ray"])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000], help="how many to encode")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="Ray's, at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--fragment-rows", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="where to write, without suffix")
    args = parser.parse_args()
    args.texts = args.sentences.read_text(encoding="utf-8").splitlines()
    dtype = getattr(torch, args.dtype)
    with model_folder(args.model, args.tokenizer, args.device, dtype) as model, TemporaryDirectory() as folder:
        rows = measure_rows(plan(args, model, folder), args.output and args.output.with_suffix(".jsonl"))
    return report(rows, to_markdown, args.output)


if __name__ == "__main__":
    sys.exit(main())
