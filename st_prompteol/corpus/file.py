"""Encoding one file to one file, of any size; every row must be a sentence."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from tqdm.auto import tqdm

from st_prompteol.corpus.encoder import CHUNK_BATCHES
from st_prompteol.corpus.formats import read_batches
from st_prompteol.corpus.writers import WRITERS, Array, Precision
from st_prompteol.files import replacing_file


def encode_file(
    model: SentenceTransformer,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    column: str | None = None,
    batch_size: int = 32,
    precision: Precision = "float32",
    normalize_embeddings: bool = False,
    show_progress_bar: bool = False,
) -> tuple[int, int]:
    """Encodes every sentence of a file and writes the embeddings, row `i` that of sentence `i`.

    Args:
        model: Any `SentenceTransformer`.
        source: A text file with one sentence a line, a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, or `-` for lines
            on standard input; UTF-8. An empty line is an empty sentence.
        destination: `.npy` `(rows, dimension)`, `.safetensors` with the tensor `embeddings`, or `.parquet` with the
            columns `sentence` and `embedding`. It appears when it is complete.
        column: The column that holds the sentences, for files with columns. Defaults to None.
        batch_size: Sentences per forward pass. Defaults to 32.
        precision: As in `SentenceTransformer.encode`. `"int8"` and `"uint8"` are scaled by the ranges of all rows,
            which pass through a temporary float32 file beside `destination`. Defaults to `"float32"`.
        normalize_embeddings: Whether to scale embeddings to length 1. Defaults to False.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        The shape of what was written: rows, numbers per row.

    Raises:
        ValueError: If a format is unknown, a column is missing, there is no sentence, or something is not UTF-8 or
            not text; the message names file and line.
        OSError: If a file cannot be read or written.
        ImportError: If Parquet is asked for and pyarrow is not installed.
    """
    destination = Path(destination)
    if destination.suffix not in WRITERS:
        raise ValueError(f"Unknown output format {str(destination)!r}: end its name in {', '.join(WRITERS)}.")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(destination.parent)!r} does not exist: make it, then run again.")

    def encode(sentences: list[str]) -> Array:
        embeddings = model.encode(sentences, batch_size=batch_size, normalize_embeddings=normalize_embeddings)
        progress.update(len(sentences))
        return np.asarray(embeddings, dtype=np.float32)

    with (
        _rereadable(source) as path,
        replacing_file(destination) as staged,
        tqdm(total=_count_lines(path), unit=" sentences", disable=not show_progress_bar) as progress,
        WRITERS[destination.suffix](staged) as writer,
    ):
        for sentences, embeddings in _embed(path, column, batch_size, encode, precision, staged.parent):
            writer.write(sentences, embeddings)
        if writer.rows == 0:
            raise ValueError(f"{str(source)!r} holds no sentence: nothing was written.")
    return writer.rows, writer.dimension


def _embed(
    path: Path,
    column: str | None,
    batch_size: int,
    encode: Callable[[list[str]], Array],
    precision: Precision,
    folder: Path,
) -> Iterator[tuple[list[str], Array]]:
    """Yields sentences with their embeddings `(len(sentences), dimension)`, in `precision`."""
    if precision not in ("int8", "uint8"):
        for sentences in _chunks(path, column, batch_size):
            yield sentences, quantize_embeddings(encode(sentences), precision)
        return
    with tempfile.TemporaryFile(dir=folder) as spool:
        ranges, count = np.empty((0, 0), dtype=np.float32), 0  # (2, dimension)
        for sentences in _chunks(path, column, batch_size):
            rows = encode(sentences)
            spool.write(np.ascontiguousarray(rows).tobytes())
            seen = np.concatenate([ranges, rows]) if count else rows
            ranges, count = np.stack([seen.min(axis=0), seen.max(axis=0)]), count + len(rows)
        if count == 1:
            raise ValueError(
                "int8 and uint8 are scaled by the ranges of all rows, but there is only one: use float32."
            )
        spool.seek(0)
        for sentences in _chunks(path, column, batch_size) if count else ():
            rows = np.frombuffer(spool.read(len(sentences) * ranges[0].nbytes), dtype=np.float32)
            rows = rows.reshape(len(sentences), -1)
            yield sentences, quantize_embeddings(rows, precision, ranges=ranges)


def _chunks(path: Path, column: str | None, batch_size: int) -> Iterator[list[str]]:
    with open(path, "rb") as file:
        for batch in read_batches(file, str(path), CHUNK_BATCHES * batch_size, column=column):
            yield [sentence for sentence in batch.sentences if sentence is not None]


@contextmanager
def _rereadable(source: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of a file; standard input is copied to a temporary one first."""
    if str(source) != "-":
        if not Path(source).is_file():
            raise FileNotFoundError(f"{str(source)!r} is not a file: name one with a sentence a line, or - for stdin.")
        yield Path(source)
        return
    with tempfile.NamedTemporaryFile(suffix=".txt") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def _count_lines(path: Path) -> int | None:
    """Counts the sentences where a line is one; None where only parsing tells."""
    if path.suffix in (".csv", ".tsv", ".parquet"):
        return None
    with open(path, "rb") as file:
        return sum(1 for _ in file)
