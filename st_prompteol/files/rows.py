"""Reads the rows of a file of any kind, and its contents: kind, columns and header."""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from st_prompteol.files.content import KINDS, Kind, opened, suffix_of, unpacked
from st_prompteol.files.lines import LINE, Bad, Row, bad, check_text, is_utf_8, lines, not_utf_8
from st_prompteol.files.parquet import open_parquet, read_tables, values_of
from st_prompteol.files.separated import names_of, read_separated

logger = logging.getLogger(__name__)

_LINES_LOOKED_AT = 100  # rows of JSON from which its columns are collected
_ROWS = 1000  # rows per batch of Parquet


@dataclass(frozen=True)
class Contents:
    """The contents of a file.

    Args:
        name: Name of the file.
        kind: Kind of the file.
        columns: Its columns: for JSON those of its first rows, for plain sentences only `LINE`.
        header: Whether the first row of a CSV or TSV file is a header.
        packing: Its compression: `gzip`, `zstd` or an empty string.
        is_detected: Whether the header was detected from the content, not stated. Defaults to False.
    """

    name: str
    kind: Kind
    columns: list[str]
    header: bool
    packing: str
    is_detected: bool = False

    @property
    def hint(self) -> str:
        """What to do if a detected header that looks like sentences is a row of data, else empty."""
        is_doubtful = self.is_detected and self.header and any(map(_looks_like_a_sentence, self.columns))
        return " (if they are the first row of data: --no-header)" * is_doubtful

    @property
    def is_lines(self) -> bool:
        """Whether the file has plain sentences, without columns."""
        return self.columns == [LINE]

    @property
    def is_whole(self) -> bool:
        """Whether the file can only be read as a whole, not in spans."""
        return self.kind in ("CSV", "TSV", "JSON") or bool(self.packing)

    @property
    def outline(self) -> str:
        """Kind and columns, e.g. `of TSV, columns sentence, score`."""
        shown = [column or "''" for column in self.columns[:10]] + ["…"] * (len(self.columns) > 10)
        return (
            f"of {self.kind}"
            + ", no header" * (not self.header)
            + f", column{'s' * (len(shown) != 1)} {', '.join(shown)}" * (bool(shown) and not self.is_lines)
            + self.hint
        )

    def describe(self, rows: int) -> str:
        """Returns a one-line summary, e.g. `sentences.tsv: 3 rows, columns sentence, score`."""
        what, outline = "line" if self.kind == "text" else "row", self.outline
        if self.kind in ("text", KINDS.get(suffix_of(self.name))):
            outline = outline.removeprefix(f"of {self.kind}")
        return f"{self.name}: {rows:,} {what}{'s' * (rows != 1)} {outline}".rstrip().replace(" ,", ",")


def look_into(
    path: str | os.PathLike[str],
    file: BinaryIO | None = None,
    *,
    columns: Sequence[str] = (),
    header: bool | Sequence[str] | None = None,
) -> Contents:
    """Returns the contents of a file.

    Args:
        path: The file.
        file: The file, already open and seekable. Defaults to None: `path` is opened.
        columns: The columns that will be read. Defaults to none: the only column.
        header: Whether a CSV or TSV file has a header, or the columns of one without. Defaults to None: detected from
            its content.

    Raises:
        ValueError: If the file as a whole is invalid, or a header can be neither confirmed nor ruled out.
        OSError: If the file cannot be read.
        ImportError: If the file is Parquet or compressed with zstd and pyarrow is not installed.
    """
    name = os.fspath(path)
    with opened(path, file) as source, unpacked(source, name) as (stream, kind, packing):
        has_header, names, is_separated = True, [LINE], kind in ("CSV", "TSV")
        if kind == "Parquet":
            with open_parquet(source, name) as parquet:
                names = list(parquet.schema_arrow.names)
        elif is_separated:
            names, has_header = names_of(stream, name, kind, columns, header)
        elif kind != "text":
            rows = list(islice(_read_json(stream, name, kind, None), _LINES_LOOKED_AT))
            names = list(dict.fromkeys(key for row in rows for key in row.cells))
    return Contents(name, kind, names, has_header, packing, is_detected=is_separated and header is None)


def _looks_like_a_sentence(column: str) -> bool:
    return len(column.split()) > 3 or column.rstrip().endswith((".", "?", "!", "。", "？", "！"))


def read_rows(
    path: str | os.PathLike[str],
    *,
    file: BinaryIO | None = None,
    columns: Sequence[str] | None = None,
    header: bool | Sequence[str] | None = None,
    span: tuple[int, int] | None = None,
) -> Iterator[Row | Bad]:
    """Yields the rows of a file in order.

    Args:
        path: The file.
        file: The file, already open and seekable, if it is not local. Defaults to None: `path` is opened.
        columns: The columns to read, each of which may exist only once; only from Parquet the others are not read.
            Defaults to None: all.
        header: Whether a CSV or TSV file has a header, or the columns of one without. Defaults to None: detected from
            its content.
        span: A half-open range: of rows in Parquet, of bytes in JSON lines and text files, where a line belongs to
            the range in which it begins. Other formats and compressed files are read whole. Defaults to None: the
            whole file.

    Raises:
        ValueError: If the file as a whole is invalid, a column is duplicate, or a header can be neither confirmed nor
            ruled out.
        OSError: If the file cannot be read.
        ImportError: If the file is Parquet or compressed with zstd and pyarrow is not installed.
    """
    name = os.fspath(path)
    with opened(path, file) as source:
        with unpacked(source, name) as (stream, kind, packing):
            if kind in ("CSV", "TSV"):
                names, has_header = names_of(stream, name, kind, columns or (), header)
        with unpacked(source, name) as (stream, kind, packing):
            span = None if packing else span
            if kind == "Parquet":
                yield from _read_parquet(source, name, columns, span)
            elif kind in ("CSV", "TSV"):
                yield from read_separated(stream, name, kind, names, has_header)
            elif kind == "text":
                for number, line in lines(stream, name, span):
                    yield check_text(number, name, line) or Row(f"line {number}", {LINE: line})
            else:
                yield from _read_json(stream, name, kind, span)


def report(contents: Contents, rows: int) -> None:
    """Logs a summary of a file that was read."""
    logger.info("%s", contents.describe(rows))


def report_kinds(found: Iterable[Contents]) -> None:
    """Logs the number of files of each kind and set of columns."""
    for outline, count in Counter(contents.outline for contents in found).items():
        logger.info("%d file%s %s", count, "s" * (count != 1), outline)


def _read_parquet(
    file: BinaryIO, name: str, columns: Sequence[str] | None, span: tuple[int, int] | None
) -> Iterator[Row]:
    for first, batch in read_tables(file, name, _ROWS, columns=columns, span=span):
        cells = {column: values_of(batch[column]) for column in batch.schema.names}
        for place, row in enumerate(zip(*cells.values(), strict=True), start=first):
            yield Row(f"row {place}", dict(zip(cells, row, strict=True)))


def _read_json(stream: io.BufferedReader, name: str, kind: Kind, span: tuple[int, int] | None) -> Iterator[Row | Bad]:
    if kind == "JSON lines":
        for number, line in lines(stream, name, span):
            if line.strip():
                yield _parse(number, line, name)
        return
    content = stream.read()
    try:
        values = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} is not JSON that can be read ({error}): mend it.") from None
    for place, value in enumerate(values):
        if isinstance(value, dict | str):
            yield Row(f"row {place}", value if isinstance(value, dict) else {LINE: value})
        else:
            problem = f"Row {place} of {name!r} is {str(value)[:80]!r}, but each must be a JSON object or a string."
            yield Bad(f"row {place}", problem)


def _parse(number: int, line: str, name: str) -> Row | Bad:
    if not is_utf_8(line):
        return not_utf_8(number, name)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits also raise ValueError
        return bad(number, name, f"is not JSON that can be read ({error}): mend it.")
    if not isinstance(row, dict):
        return bad(number, name, f"is {line[:80]!r}, but each must be a JSON object.")
    return Row(f"line {number}", row)
