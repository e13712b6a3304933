"""Detects the kind of a file, from its content, then from its name; decompresses gzip and zstd."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from st_prompteol.extras import missing_extra

Kind = Literal["text", "CSV", "TSV", "JSON lines", "JSON", "Parquet"]

KINDS: dict[str, Kind] = {
    ".parquet": "Parquet",
    ".jsonl": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".txt": "text",
}
SUFFIXES = tuple(KINDS)
_PACKED = (".gz", ".zst", ".zstd")
_HEAD = 2**16  # bytes at the beginning from which the kind is detected
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1\x15"  # 15: the first field of every Parquet file
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive, as Excel writes them: export it as .csv",
    b"\xfd7zXZ": "packed by xz: unpack it",
    b"BZh91AY&SY": "packed by bzip2: unpack it",
    b"%PDF-": "a PDF: convert it to text",
    b"ARROW1": "an Arrow file: convert it to Parquet",
    b"version https://git-lfs": "a pointer to a file of Git LFS: fetch the file, for example with `git lfs pull`",
    _GZIP: "packed twice: unpack it",
    _ZSTD: "packed twice: unpack it",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_MOST_NULS = 0.1  # fraction of NUL bytes; UTF-16 text has about 0.5
_OBJECT, _ARRAY = re.compile(rb"\s*\{\s*[\"}]"), re.compile(rb"\s*\[\s*[{\"\]]")
_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*\{\s*\"")  # never the beginning of a text


def suffix_of(name: str | os.PathLike[str]) -> str:
    """Returns the suffix of a name in lower case, without a compression's: `.csv` for `A.CSV.gz`."""
    path = Path(os.fspath(name).lower())
    return path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix


@contextmanager
def opened(path: str | os.PathLike[str], file: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """Yields the open file; opens `path` without one. A file that is not seekable, such as a pipe, is copied first."""
    if file is not None:
        yield file
        return
    with open(path, "rb") as source:
        if source.seekable():
            yield source
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            yield copy


@contextmanager
def unpacked(file: BinaryIO, name: str) -> Iterator[tuple[io.BufferedReader[Any], Kind, str]]:
    """Yields the decompressed content of a file, its kind, and its compression: `gzip`, `zstd` or an empty string.

    Raises:
        ValueError: If the file is not text, JSON or Parquet, or damaged.
        ImportError: If the file is compressed with zstd and pyarrow is not installed.
    """
    file.seek(0)
    head = bytes(file.read(_HEAD))
    file.seek(0)
    packing, read = "", None
    if head.startswith(_GZIP):
        packing, read = "gzip", gzip.GzipFile(fileobj=file).read
    elif head.startswith(_ZSTD):
        packing, read = "zstd", _zstd(file, name).read
    if read is not None:
        with io.BufferedReader(_Stream(_guarded(read, name)), _HEAD) as stream:
            kind = kind_of(stream.peek(_HEAD), name)
            if kind == "Parquet":
                raise ValueError(f"{name!r} is a Parquet file inside {packing}: unpack it, Parquet is packed itself.")
            yield stream, kind, packing
        return
    kind = kind_of(head, name)
    # files of other storages do not all read lines quickly
    stream = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, 1 << 20)  # type: ignore[arg-type]
    try:
        yield stream, kind, ""
    finally:
        if stream is not file:
            stream.detach()  # otherwise closing the stream would close the file


def kind_of(head: bytes, name: str) -> Kind:
    """Returns the kind of a file, from its first bytes if they are unambiguous, else from its name.

    Raises:
        ValueError: If the format is not supported, or contradicts the name.
    """
    suffix = suffix_of(name)
    if head.startswith(_PARQUET) or suffix == ".parquet":
        return "Parquet"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(f"{name!r} is {what}.")
    if head.startswith(_UTF_16) or head.count(0) > _MOST_NULS * len(head):
        raise ValueError(
            f"{name!r} is not UTF-8 but UTF-16 or binary data: convert it, for example with "
            "`iconv -f UTF-16 -t UTF-8`."
        )
    text = head.removeprefix(b"\xef\xbb\xbf")
    is_json = suffix in (".json", ".jsonl") or suffix not in KINDS
    if (_ARRAY if is_json else _ARRAY_OF_OBJECTS).match(text):
        is_lines = suffix == ".jsonl" and _is_json(text, list) and b"\n" in text.strip()
        return "JSON lines" if is_lines else "JSON"
    if suffix == ".jsonl" or (_OBJECT.match(text) and _is_json(text, dict)):
        return "JSON lines"
    if suffix == ".json" and text.strip():
        raise ValueError(
            f"{name!r} is neither a JSON array of objects or strings nor one JSON object a line: write it as one."
        )
    return KINDS.get(suffix, "text")


def _is_json(head: bytes, kind: type) -> bool:
    """Returns whether the first line is a complete JSON value of a type; a line too long to tell counts as a dict."""
    line, end, _ = head.lstrip().partition(b"\n")
    if not end and len(head) >= _HEAD:
        return kind is dict
    try:
        return isinstance(json.loads(line), kind)
    except (ValueError, RecursionError):
        return False


class _Stream(io.RawIOBase):
    """A stream of the bytes that a function reads; closing it does not close their source."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        super().__init__()
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        place = 0
        while place < len(buffer) and (data := self._read(len(buffer) - place)):
            buffer[place : place + len(data)] = data
            place += len(data)
        return place


def _guarded(read: Callable[[int], bytes], name: str) -> Callable[[int], bytes]:
    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(
                f"{name!r} cannot be unpacked to its end ({error}): it is cut off or damaged, so copy it again."
            ) from error

    return guarded


def _zstd(file: BinaryIO, name: str) -> Any:
    try:
        from pyarrow import CompressedInputStream
    except ImportError as error:
        raise missing_extra(f"{name!r}, which is packed by zstd,", "pyarrow", "parquet") from error
    return CompressedInputStream(_Stream(file.read), "zstd")  # wrapped, because closing it would close the file
