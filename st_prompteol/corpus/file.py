"""Encodes a file of any size into one file; every row must be a sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from tqdm.auto import tqdm

from st_prompteol.corpus.encoder import CHUNK_BATCHES
from st_prompteol.corpus.formats import Batch, read_sentences, wanted_columns
from st_prompteol.corpus.parts import Array, PartWriter
from st_prompteol.failures import check_whole
from st_prompteol.files import look_into, report
from st_prompteol.files.atomic import replacing_file
from st_prompteol.llm.finite import NotFiniteError, check_finite

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
_Chunk = tuple[list[str], Array]  # sentences and their embeddings (len(sentences), dimension)


def encode_file(
    model: SentenceTransformer,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    column: str | None = None,
    header: bool | None = None,
    batch_size: int = 32,
    precision: Precision = "float32",
    normalize_embeddings: bool = False,
    show_progress_bar: bool = False,
) -> tuple[int, int]:
    """Encodes every sentence of a file and writes the embeddings in the same order.

    Args:
        model: Any `SentenceTransformer`.
        source: A text file with one sentence per line, a `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` file, or `-`
            for standard input; in UTF-8, optionally compressed with gzip or zstd. An empty line is an empty sentence.
            The whole file is validated before encoding, to find rows without text immediately.
        destination: `.npy` `(rows, dimension)`, `.safetensors` with the tensor `embeddings`, or `.parquet` with the
            columns `sentence` and `embedding`. Written atomically.
        column: The column of the sentences, for files with columns; `"1"`, `"2"`, … in a CSV or TSV file without a
            header. Defaults to None: the only column.
        header: Whether a CSV or TSV file has a header. Defaults to None: detected from its content, with an error if
            that is ambiguous.
        batch_size: Number of sentences per forward pass. Defaults to 32.
        precision: See `SentenceTransformer.encode`. `"int8"` and `"uint8"` are scaled by the ranges of all rows, which
            takes a temporary float32 file beside `destination`. Defaults to `"float32"`.
        normalize_embeddings: Whether to scale embeddings to length 1. Defaults to False.
        show_progress_bar: Whether to show a progress bar. Defaults to False.

    Returns:
        The number of rows, and the number of values per row.

    Raises:
        ValueError: If a format is unknown, a column is missing, there are no sentences, or a row is not UTF-8 or not
            text; the message names file and line. Also if an embedding contains NaN or infinity; it names the row.
        OSError: If a file cannot be read or written.
        ImportError: If Parquet is requested and pyarrow is not installed.

    Example:
        >>> encode_file(PromptEOL("tiny"), "examples/sentences.tsv", "embeddings.npy", column="sentence")
        (230, 256)
    """
    check_whole(batch_size=batch_size)
    destination = Path(destination)
    if destination.suffix not in _WRITERS:
        raise ValueError(f"Unknown output format {str(destination)!r}: end its name in {', '.join(_WRITERS)}.")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(destination.parent)!r} does not exist: make it, then run again.")

    def read() -> Iterator[list[str]]:
        return read_sentences(file, str(source), CHUNK_BATCHES * batch_size, column, header)

    def encode() -> Iterator[_Chunk]:
        done = 0
        for sentences in read():
            try:
                rows = model.encode(sentences, batch_size=batch_size, normalize_embeddings=normalize_embeddings)
                check_finite(rows, sentences)
            except NotFiniteError as error:
                raise error.found_in(f"row {done + error.place + 1} of {str(source)!r}") from None
            done += len(sentences)
            progress.update(len(sentences))
            yield sentences, np.asarray(rows, dtype=np.float32)

    with _rereadable(source) as file, replacing_file(destination) as staged:
        count = sum(map(len, read()))
        report(look_into(str(source), file, columns=wanted_columns(column), header=header), count)
        if count == 0:
            raise ValueError(f"{str(source)!r} holds no sentence: nothing was written.")
        if count == 1 and precision in ("int8", "uint8"):
            raise ValueError(
                "int8 and uint8 are scaled by the ranges of all rows, but there is only one: use float32."
            )
        with (
            tqdm(total=count, unit=" sentences", disable=not show_progress_bar) as progress,
            tempfile.TemporaryFile(dir=staged.parent) as spool,
        ):
            if precision in ("int8", "uint8"):
                chunks = _quantize_by_ranges(encode(), read(), precision, spool)
            else:
                chunks = ((sentences, quantize_embeddings(rows, precision)) for sentences, rows in encode())
            first = next(chunks)
            empty = first[1][:0]
            _WRITERS[destination.suffix](staged, count, empty, chain([first], chunks))
    return count, empty.shape[1]


def _quantize_by_ranges(
    chunks: Iterator[_Chunk], again: Iterator[list[str]], precision: Precision, spool: BinaryIO
) -> Iterator[_Chunk]:
    """Yields the chunks quantized by the ranges of all rows; `again` yields their sentences a second time."""
    ranges = np.empty((0, 0), dtype=np.float32)  # finally (2, dimension)
    for _, rows in chunks:
        spool.write(rows.tobytes())
        seen = np.concatenate([ranges, rows]) if ranges.size else rows
        ranges = np.stack([seen.min(axis=0), seen.max(axis=0)])
    spool.seek(0)
    for sentences in again:
        rows = np.frombuffer(spool.read(len(sentences) * ranges[0].nbytes), dtype=np.float32)
        yield sentences, quantize_embeddings(rows.reshape(len(sentences), -1), precision, ranges=ranges)


@contextmanager
def _rereadable(source: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a seekable file; standard input is copied to a temporary file first."""
    if str(source) != "-":
        if not Path(source).is_file():
            raise FileNotFoundError(f"{str(source)!r} is not a file: name one with a sentence a line, or - for stdin.")
        with open(source, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        yield copy


def _write_npy(path: Path, count: int, empty: Array, chunks: Iterator[_Chunk]) -> None:
    with open(path, "wb") as file:
        header = {"shape": (count, empty.shape[1]), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "descr": np.lib.format.dtype_to_descr(empty.dtype)})
        for _, embeddings in chunks:
            file.write(embeddings.tobytes())


def _write_safetensors(path: Path, count: int, empty: Array, chunks: Iterator[_Chunk]) -> None:
    name = {"float32": "F32", "int8": "I8", "uint8": "U8"}[empty.dtype.name]
    dimension = empty.shape[1]
    size = count * dimension * empty.dtype.itemsize
    tensor = {"dtype": name, "shape": [count, dimension], "data_offsets": [0, size]}
    header = json.dumps({"embeddings": tensor}).encode()
    header = header.ljust(-len(header) % 8 + len(header))  # padded with spaces, as the format requires aligned data
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, embeddings in chunks:
            file.write(embeddings.tobytes())


def _write_parquet(path: Path, count: int, empty: Array, chunks: Iterator[_Chunk]) -> None:
    with PartWriter(path, empty, ["sentence"]) as writer:
        for sentences, embeddings in chunks:
            writer.write(Batch([*sentences], {"sentence": sentences}), embeddings)
        writer.close()


_WRITERS: dict[str, Callable[[Path, int, Array, Iterator[_Chunk]], None]] = {
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
