"""Corpora in and out of `encode_corpus`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st_prompteol import PromptEOL

from .sentences import WORDS

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TEN: dict[str, Any] = {"column": "text", "fragment_rows": 10}


def sentences(count: int, seed: int = 0) -> list[str]:
    chooser = random.Random(seed)
    words = WORDS.split()
    return [f"{' '.join(chooser.choices(words, k=chooser.randrange(1, 12)))} {number}" for number in range(count)]


def write_parquet(path: Path, texts: list[str | None], row_group_size: int = 1000) -> Path:
    table = pa.table({"id": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def read(folder: Path) -> pa.Table:
    """The output as anyone reads it, in the order of the names of its files."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def embeddings_of(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.array(table["embedding"].to_pylist())


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))


class Counting(PromptEOL):
    """A model that says how often it was asked, and fails when it is told to."""

    calls = 0
    fail_at = -1
    error: BaseException = RuntimeError("the machine broke")

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        return super().encode(*args, **kwargs)
