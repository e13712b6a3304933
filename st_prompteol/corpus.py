"""Encoding files: sentences stream in, embeddings stream out, and memory does not grow with either."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from tqdm.auto import tqdm

from st_prompteol.files import replacing_file

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Array = np.ndarray[Any, Any]

_CHUNK_BATCHES = 64  # batches that are sorted by length and encoded together: the memory that a file takes


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
    if destination.suffix not in _WRITERS:
        raise ValueError(f"Unknown output format {str(destination)!r}: end its name in {', '.join(_WRITERS)}.")
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
        _WRITERS[destination.suffix](staged) as writer,
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
    sentences = _read_sentences(path, column)
    while chunk := list(islice(sentences, _CHUNK_BATCHES * batch_size)):
        yield chunk


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


def _read_sentences(path: Path, column: str | None) -> Iterator[str]:
    if path.suffix in (".csv", ".tsv"):
        yield from _read_csv(path, column)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, column)
    elif path.suffix == ".jsonl":
        for number, line in read_lines(path):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} of {str(path)!r} is not JSON ({error}): mend it.") from None
            if not isinstance(row, dict):
                raise ValueError(f"Line {number} of {str(path)!r} is {line[:80]!r}, but each must be a JSON object.")
            yield _cell(path, f"line {number}", row.get(_known(path, column, list(row))))
    else:
        if column is not None:
            raise ValueError(f"{str(path)!r} is read as one sentence a line, so it has no column {column!r}: drop it.")
        yield from (line for _, line in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file with their numbers; ValueError names a line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Line {number} of {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start}): convert the "
                    "file, for example with iconv."
                ) from None


def _read_csv(path: Path, column: str | None) -> Iterator[str]:
    lines = (f"{line}\n" for _, line in read_lines(path))
    rows = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    header = next(rows, [])
    index = header.index(_known(path, column, header))
    for row in rows:
        if len(row) <= index:
            raise ValueError(f"Line {rows.line_num} of {str(path)!r} has {len(row)} columns, but needs {index + 1}.")
        yield row[index]


def _read_parquet(path: Path, column: str | None) -> Iterator[str]:
    import_pyarrow()
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        name = _known(path, column, file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[name]):
            for value in batch.column(0).to_pylist():
                yield _cell(path, f"row {row}", value)
                row += 1


def _known(path: Path, column: str | None, columns: list[str]) -> str:
    if column is None and len(columns) == 1:
        return columns[0]
    if column not in columns:
        raise ValueError(
            f"{str(path)!r} has no column {column!r}: choose one of {', '.join(map(repr, columns)) or 'none at all'}."
        )
    return column


def _cell(path: Path, place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"The sentence in {place} of {str(path)!r} is {value!r}, not text: mend or drop it.")
    return value


def import_pyarrow() -> None:
    """Raises an ImportError that says what to install if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("Parquet files need the package pyarrow: pip install 'st-prompteol[parquet]'.") from error


class _ArrayWriter:
    """Rows appended behind a header that is written again when the number of rows is known."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = open(path, "wb")
        self.rows, self.dimension = 0, 0
        self.dtype = np.dtype(np.float32)

    def __enter__(self) -> _ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.rows:
            self.file.seek(0)
            self.header()
        self.file.close()

    def write(self, sentences: list[str], embeddings: Array) -> None:
        if not self.rows:
            self.dtype, self.dimension = embeddings.dtype, embeddings.shape[1]
            self.header()
        self.file.write(np.ascontiguousarray(embeddings).tobytes())
        self.rows += len(embeddings)

    def header(self) -> None:
        raise NotImplementedError


class _NpyWriter(_ArrayWriter):
    def header(self) -> None:
        # NumPy pads its header so that the first axis can grow.
        shape = (self.rows, self.dimension)
        array = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, array)


class _SafetensorsWriter(_ArrayWriter):
    def header(self) -> None:
        names = {"float32": "F32", "int8": "I8", "uint8": "U8"}
        size = self.rows * self.dimension * self.dtype.itemsize
        tensor = {"dtype": names[self.dtype.name], "shape": [self.rows, self.dimension], "data_offsets": [0, size]}
        header = json.dumps({"embeddings": tensor}).encode().ljust(248)  # the format allows trailing spaces
        self.file.write(struct.pack("<Q", len(header)) + header)


class _ParquetWriter:
    """One row group per chunk, the sentence beside its embedding."""

    def __init__(self, path: Path) -> None:
        import_pyarrow()
        self.path, self.rows, self.dimension = path, 0, 0
        self.file: Any = None  # opened with the first rows, which tell the schema

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, sentences: list[str], embeddings: Array) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows, self.dimension = self.rows + len(embeddings), embeddings.shape[1]
        rows = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dimension)
        # Text that is no UTF-8, which only an encoder may repair, has no place in a Parquet string.
        texts = [sentence.encode("utf-8", "replace").decode("utf-8") for sentence in sentences]
        table = pa.table({"sentence": texts, "embedding": rows})
        self.file = self.file or pq.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)


_WRITERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _NpyWriter,
    ".safetensors": _SafetensorsWriter,
    ".parquet": _ParquetWriter,
}
