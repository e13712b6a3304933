"""Fragments: the pieces of a corpus that are encoded one by one, each into its own part of the output."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

from st_prompteol.corpus.formats import choose_columns, wanted_columns
from st_prompteol.corpus.storage import Storage
from st_prompteol.files import (
    SUFFIXES,
    Contents,
    HeaderError,
    check_single,
    look_into,
    open_parquet,
    report_kinds,
    suffix_of,
)

logger = logging.getLogger(__name__)

_LINE_BYTES = 128  # assumed length of a line of text or JSONL, as fragments are cut without reading
_TEXT = r"(large_)?string(_view)?|null|dictionary<values=(large_)?string.*"  # Arrow types of text columns
_THREADS = 16  # concurrent inspections of files, each of which waits for a few requests


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus: address of its source, number in the listing, path, size in bytes, time of change."""

    source: str
    number: int
    path: str
    size: int
    modified: float | None

    def open(self) -> Any:
        """Opens the file for reading; fsspec keeps one client per storage."""
        storage = Storage(self.source)
        return open(self.path, "rb") if storage.is_local else storage.filesystem.open(self.path, "rb")


@dataclass(frozen=True)
class Fragment:
    """A span of a file: rows in Parquet, bytes in other formats; a file without spans is one fragment."""

    file: SourceFile
    number: int
    start: int
    stop: int

    @property
    def part(self) -> str:
        """Name of its output file; parts sorted by name are in the order of the input."""
        return f"part-{self.file.number:06d}-{self.number:06d}.parquet"

    def name_row(self, place: int) -> str:
        """Returns the description of a row, counted from 0, for messages."""
        if suffix_of(self.file.path) == ".parquet":
            return f"row {self.start + place} of {self.file.path!r}"
        behind = f" behind byte {self.start}" if self.start else ""
        return f"row {place + 1}{behind} of {self.file.path!r}"


def list_sources(sources: Sequence[str]) -> list[SourceFile]:
    """Returns the files of a corpus, in the order of the sources; those in and below a folder sorted by name.

    Raises:
        FileNotFoundError: If a source does not exist, or no file has a known format.
    """
    files: list[SourceFile] = []
    for address in sources:
        storage = Storage(address)
        found = storage.files()
        is_folder = not (len(found) == 1 and found[0].path == storage.path)
        others = [file.path for file in found if is_folder and suffix_of(file.path) not in SUFFIXES]
        if others:
            logger.warning(
                "%d files like %r are left out: their names end in none of %s.",
                len(others),
                others[0],
                ", ".join(SUFFIXES),
            )
        for file in found:
            if file.path not in others:
                files.append(SourceFile(storage.address, len(files), file.path, file.size, file.modified))
    if not files:
        raise FileNotFoundError(
            f"There is no file in {', '.join(map(repr, sources))} that ends in {', '.join(SUFFIXES)}."
        )
    return files


def cut(
    files: Sequence[SourceFile], rows: int, column: str | None, keep: Sequence[str], header: bool | None = None
) -> list[Fragment]:
    """Cuts files into fragments of about `rows` rows, checks their columns, and logs a summary of the files.

    Only the footer of Parquet files and the beginning of other files is read. An unreadable file becomes one fragment,
    and fails when that is encoded.

    Raises:
        ValueError: If a file lacks a column, the column is not text, or a header of a CSV or TSV file can be neither
            confirmed nor ruled out; the message names the existing columns.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        looked = list(threads.map(partial(_look_into, column=column, keep=keep, header=header), files))
    report_kinds(contents for contents, _, _ in looked if contents is not None)
    return [
        Fragment(file, number, *span)
        for file, found in zip(files, looked, strict=True)
        for number, span in enumerate(_spans(file, rows, *found, column=column, keep=keep))
    ]


def _spans(
    file: SourceFile,
    rows: int,
    contents: Contents | None,
    types: dict[str, Any],
    groups: list[int],
    *,
    column: str | None,
    keep: Sequence[str],
) -> list[tuple[int, int]]:
    if contents is None:
        return [(0, file.size)]
    if contents.columns:  # an empty file lacks no columns
        name, _ = choose_columns(contents, column, keep)
        if not re.fullmatch(_TEXT, str(types.get(name, "string"))):
            raise ValueError(
                f"The column {name!r} of {file.path!r} holds {types[name]}, not text: choose another one."
            )
    if contents.kind == "Parquet":
        return _cut_row_groups(groups, rows)
    step = max(file.size, 1) if contents.is_whole else rows * _LINE_BYTES
    return [(start, min(start + step, file.size)) for start in range(0, file.size, step)]


def _look_into(
    file: SourceFile, column: str | None, keep: Sequence[str], header: bool | None
) -> tuple[Contents | None, dict[str, Any], list[int]]:
    """Returns the contents of a file, None if unreadable, and for Parquet column types and row group sizes.

    Raises:
        HeaderError: If a header can be neither confirmed nor ruled out.
    """
    wanted = wanted_columns(column, keep)
    try:
        with file.open() as opened:
            contents = look_into(file.path, opened, columns=wanted, header=header)
            check_single(file.path, wanted or contents.columns[:1], contents.columns)
            if contents.kind != "Parquet":
                return contents, {}, []
            with open_parquet(opened, file.path) as parquet:
                metadata = parquet.metadata
                groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                return contents, {field.name: field.type for field in parquet.schema_arrow}, groups
    except HeaderError:
        raise
    except (OSError, ValueError) as error:
        logger.warning("%r cannot be read: %s", file.path, error)
        return None, {}, []


def _cut_row_groups(groups: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Merges small row groups, and cuts large ones into equal pieces."""
    ends = [0]
    for end, size in zip(accumulate(groups), groups, strict=True):
        start = end - size
        if size >= 2 * rows:
            pieces = ceil(size / rows)
            ends += [start] * (start > ends[-1]) + [start + size * piece // pieces for piece in range(1, pieces)]
        if end - ends[-1] >= rows:
            ends.append(end)
    total = sum(groups)
    return list(pairwise(ends + [total] * (total > ends[-1])))
