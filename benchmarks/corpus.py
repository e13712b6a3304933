"""Corpus encoding: one worker vs. two, Ray vs. plain encoding, and memory by corpus size.

    python benchmarks/corpus.py workers --tokenizer TOKENIZER --sentences FILE
    python benchmarks/corpus.py overhead --tokenizer TOKENIZER --sentences FILE
    python benchmarks/corpus.py memory --model MODEL --sentences FILE

Uses random weights in the shape of OPT-125M with a real tokenizer, or a small real model for memory; and real
sentences, one per line, repeated as needed. Each measurement runs in a separate process. Times are those of the whole
call, including Ray's start and loading the model twice. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from reference import save_random_model, seconds_of

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus


def encode_plainly(model: str, dtype: str, sentences: list[str]) -> dict[str, float]:
    """Encodes with `model.encode` in one thread; returns the time of the call, without loading the model."""
    torch.set_num_threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"
    opened = PromptEOL(model, model_kwargs={"dtype": dtype})
    opened.encode(sentences[:64])
    seconds = seconds_of(lambda: opened.encode(sentences))
    return {"rows": len(sentences), "seconds": seconds, "rows_per_second": len(sentences) / seconds}


def encode_on_ray(model: str, dtype: str, source: str, workers: int, fragment_rows: int) -> dict[str, float]:
    """Encodes a file with single-core workers; memory is the peak of the driver and of the largest worker, in MiB."""
    peaks: dict[int, int] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, done), daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as destination:
        report = encode_corpus(
            model,
            source,
            destination,
            column="text",
            engine="ray",
            workers=workers,
            fragment_rows=fragment_rows,
            model_options={"model_kwargs": {"dtype": dtype}},
        )
        work = json.loads((Path(destination) / "_manifest.json").read_text(encoding="utf-8"))["totals"]["seconds"]
    done.set()
    watcher.join()
    return {
        "workers": workers,
        "rows": report.rows,
        "seconds": report.seconds,
        "rows_per_second": report.rows / report.seconds,
        "worker_seconds": work,
        "padding": report.padding or 0.0,
        "driver_mib": _peak(os.getpid()) / 1024,
        "worker_mib": max(peaks.values()) / 1024,
    }


def _watch(peaks: dict[int, int], done: threading.Event) -> None:
    """Records the peak memory of every actor of a pool, in KiB, while it is running."""
    while not done.wait(0.5):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if b"MapWorker" in path.read_bytes():
                    peaks[int(path.parent.name)] = _peak(int(path.parent.name))
            except (OSError, IndexError):
                continue  # it has ended


def _peak(pid: int) -> int:
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))[0])


def _alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main() -> None:
    """Runs one of the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["workers", "overhead", "memory"])
    parser.add_argument("--tokenizer", help="of the random model in OPT-125M's shape")
    parser.add_argument("--model", help="a model of any kind in its place")
    parser.add_argument("--sentences", required=True, type=Path, help="one a line")
    parser.add_argument("--rows", type=int, nargs="+", help="how many to encode")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many at a time")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--fragment-rows", type=int, default=1000)
    options = parser.parse_args()
    lines = options.sentences.read_text(encoding="utf-8").splitlines()
    rows = (
        options.rows or {"workers": [20_000], "overhead": [10_000], "memory": [10_000, 100_000, 500_000]}[options.what]
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            save_random_model("opt-125m", options.tokenizer, folder)
        model = options.model or folder
        for count in rows:
            sentences = list(islice(cycle(lines), count))
            source = os.path.join(folder, f"{count}.parquet")
            pq.write_table(pa.table({"text": sentences}), source)
            if options.what == "overhead":
                print(json.dumps({"plain": _alone(encode_plainly, model, options.dtype, sentences)}), flush=True)
            for workers in options.workers if options.what == "workers" else [1]:
                print(
                    json.dumps(
                        {"ray": _alone(encode_on_ray, model, options.dtype, source, workers, options.fragment_rows)}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
