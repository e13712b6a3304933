"""Corpora on one GPU: `--engine local` and `ray` vs. `model.encode`, tokenization alone, and writing alone."""

from __future__ import annotations

import json
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gpu_setup import Options, Rows, free_memory
from reference import save_random_model, seconds_of

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus

SHAPES = {"qwen3-0.6b": 65_536, "opt-2.7b": 32_768}
"""The number of rows to encode by shape."""
BATCH_SIZE = 256


def rows(options: Options) -> Rows:
    """Yields the measurements by name."""
    for shape, count in ({"tiny": 64} if options.trial else SHAPES).items():
        yield f"{shape}, model.encode", partial(measure_encode, options, shape, count)
        for engine in ("local", "ray"):
            yield f"{shape}, {engine}", partial(measure_engine, options, shape, count, engine)
        yield f"{shape}, tokenising", partial(measure_tokenising, options, shape)


@cache
def model_folder(options: Options, shape: str) -> str:
    """Saves a random model of a shape in bfloat16."""
    folder = mkdtemp()
    save_random_model(shape, options.tokenizer(shape), folder, device=options.device, dtype=torch.bfloat16)
    free_memory()
    return folder


def corpus(options: Options, count: int) -> list[str]:
    """Returns distinct sentences."""
    return [f"{line} {number}" for number, line in enumerate(islice(cycle(options.sentences(4096)), count))]


def measure_encode(options: Options, shape: str, count: int) -> dict[str, float]:
    """Measures `model.encode`, without loading the model."""
    model = PromptEOL(model_folder(options, shape), device=options.device)
    sentences = corpus(options, count)
    model.encode(sentences[:1024], batch_size=BATCH_SIZE)
    seconds = seconds_of(partial(model.encode, sentences, batch_size=BATCH_SIZE))
    del model
    free_memory()
    return {"rows": count, "seconds": seconds, "per_second": count / seconds}


def measure_engine(options: Options, shape: str, count: int, engine: str) -> dict[str, float]:
    """Measures `encode_corpus` as a whole, including start-up and loading the model, and encoding alone."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "corpus.parquet"
        pq.write_table(pa.table({"text": corpus(options, count)}), source)
        destination = Path(folder) / "embedded"
        report = encode_corpus(
            model_folder(options, shape),
            source,
            destination,
            engine=engine,
            batch_size=BATCH_SIZE,
            precision="float16",
            model_options={"device": options.device},
        )
        totals = json.loads((destination / "_manifest.json").read_text(encoding="utf-8"))["totals"]
    free_memory()
    work = float(totals["seconds"])
    return {
        "rows": report.rows,
        "seconds": report.seconds,
        "per_second": report.rows / report.seconds,
        "work": work,
        "per_second_of_work": report.rows / work,
    }


def measure_tokenising(options: Options, shape: str) -> dict[str, Any]:
    """Measures tokenization alone, in seconds per sentence, with as many cores as tokenizers uses."""
    model = PromptEOL(model_folder(options, shape), device="cpu")
    sentences = corpus(options, 64 if options.trial else 8192)
    batches = [sentences[start : start + BATCH_SIZE] for start in range(0, len(sentences), BATCH_SIZE)]
    seconds = seconds_of(lambda: [model.preprocess(batch) for batch in batches])
    tokens = sum(int(model.preprocess(batch)["attention_mask"].sum()) for batch in batches[:4])
    return {"seconds": seconds / len(sentences), "tokens": tokens / sum(map(len, batches[:4]))}
