"""Reading rows of any format, for everything that reads rows: text, CSV, TSV, JSONL and Parquet, whole or a span.

The rules, the same wherever rows are read (files are UTF-8, a byte order mark is passed over):

- `.txt` and every other name: a line is a row.
- `.tsv`: a line is a row, a tab separates cells, and cells hold quotation marks as they are.
- `.csv`: a comma separates cells; a cell that begins with `"` ends with `"`, may hold commas and line breaks between,
  and `""` for a quotation mark.
- `.jsonl`: a line is an object, whose keys are the columns.
- `.parquet`: the columns are the file's own.

CSV and TSV begin with a header, and every row has as many cells as the header. An empty line is skipped, except where
a line is a sentence or the only cell of a row: there it is an empty sentence.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

from st_prompteol.extras import missing_extra

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
LINE = ""  # what the one column of a text file is called

_Address = str | os.PathLike[str]
_Line = tuple[int, str]  # number, text
_Record = tuple[int, "list[str] | str", bool]  # line, cells or what is wrong, whether it looks read wrongly
_LINES_LOOKED_AT = 100  # of JSONL, for the columns that there are
_ROWS = 1000  # of Parquet that are held at a time
_LONGEST = 2**26  # characters of a CSV row: a quotation mark that nobody closes would take the rest of the file
_UNDECODED = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are not UTF-8


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Args:
        place: Where it stands: `line 3`, or `row 2` of Parquet, whose rows are counted from 0.
        cells: Column -> what it holds: text from text files, CSV and TSV, any value from JSONL and Parquet.
    """

    place: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A row that cannot be read.

    Args:
        place: Where it stands.
        problem: What is wrong with it, in a sentence that names the file.
        cells: What could be read of it. Defaults to nothing.
    """

    place: str
    problem: str
    cells: dict[str, Any] = field(default_factory=dict)


def read_rows(
    path: _Address,
    *,
    file: BinaryIO | None = None,
    columns: Sequence[str] | None = None,
    header: Sequence[str] | None = None,
    span: tuple[int, int] | None = None,
) -> Iterator[Row | Bad]:
    """Yields the rows of a file in order; the end of its name says what format it has.

    Args:
        path: The file.
        file: The file, already open and seekable, if it is not on this machine. Defaults to None: it is opened.
        columns: The columns to read. Of Parquet no others are read. Each may be there only once. Defaults to None:
            all.
        header: The columns of a CSV or TSV file without a header. Defaults to None: it has one.
        span: A half-open range: of rows in Parquet, of bytes in JSONL and text files, where a line belongs to the
            range that it begins in. CSV and TSV are read whole. Defaults to None: the whole file.

    Raises:
        ValueError: If the file as a whole is not what its name says, or a column is there twice.
        OSError: If it cannot be read.
        ImportError: If it is Parquet and pyarrow is not installed.
    """
    name, suffix = os.fspath(path), Path(path).suffix
    with nullcontext(file) if file is not None else open(path, "rb") as file:
        if suffix == ".parquet":
            for first, batch in read_tables(file, name, _ROWS, columns=columns, span=span):
                cells = {column: values_of(batch[column]) for column in batch.schema.names}
                for place, row in enumerate(zip(*cells.values(), strict=True), start=first):
                    yield Row(f"row {place}", dict(zip(cells, row, strict=True)))
        elif suffix in (".csv", ".tsv"):
            yield from _read_separated(file, name, columns, header)
        elif suffix == ".jsonl":
            for number, line in _lines(file, name, span):
                if line.strip():
                    yield _parse(number, line, name)
        else:
            for number, line in _lines(file, name, span):
                yield _not_utf_8(number, name) if _UNDECODED.search(line) else Row(f"line {number}", {LINE: line})


def read_lines(path: _Address) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file with their numbers; ValueError names a line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in _lines(file, os.fspath(path)):
            if _UNDECODED.search(line):
                raise ValueError(_not_utf_8(number, os.fspath(path)).problem)
            yield number, line


def read_tables(
    file: BinaryIO,
    name: str,
    rows: int,
    *,
    columns: Sequence[str] | None = None,
    span: tuple[int, int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yields a Parquet file, or a span of its rows, as Arrow batches.

    Args:
        file: The open file.
        name: Its name, for messages.
        rows: The most rows of a batch.
        columns: The columns to read. Defaults to None: all.
        span: First row and row behind the last. Defaults to None: the whole file.

    Yields:
        The number of a batch's first row, and the batch.

    Raises:
        ValueError: If it is not a Parquet file, is damaged, or a column is missing or there twice.
        OSError: If it cannot be read.
    """
    with open_parquet(file, name) as parquet:
        names = parquet.schema_arrow.names
        columns = [known(name, column, names) for column in (names if columns is None else columns)]
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        starts = [0, *accumulate(sizes)]
        start, stop = span or (0, starts[-1])
        groups = [group for group, size in enumerate(sizes) if starts[group] < stop and starts[group] + size > start]
        if not groups:
            return
        place = starts[groups[0]]
        for batch in parquet.iter_batches(rows, row_groups=groups, columns=list(dict.fromkeys(columns))):
            first, last = max(start - place, 0), min(stop - place, batch.num_rows)
            if first < last:
                yield place + first, batch.slice(first, last - first)
            place += batch.num_rows
            if place >= stop:  # a row group may be far larger than a span
                return


@contextmanager
def open_parquet(file: BinaryIO, name: str) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`; ValueError if it is not one or is damaged.

    Raises:
        ValueError: As above.
        ImportError: If pyarrow is not installed.
    """
    import_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except pa.ArrowException as error:
        raise ValueError(f"{name!r} is not a Parquet file that can be read ({error}): write it anew.") from error


def values_of(column: Any) -> list[Any]:
    """Returns what an Arrow column holds, None for text that is not UTF-8."""

    def value_of(value: Any) -> Any:
        try:
            return value.as_py()
        except UnicodeDecodeError:
            return None

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return list(map(value_of, column))
    return values


def columns_of(path: _Address, file: BinaryIO | None = None) -> list[str]:
    """Returns the names of the columns: of JSONL those of its first rows, of a text file only `LINE`.

    Raises:
        ValueError: If the file as a whole is not what its name says.
        OSError: If it cannot be read.
    """
    name, suffix = os.fspath(path), Path(path).suffix
    with nullcontext(file) if file is not None else open(path, "rb") as file:
        if suffix == ".parquet":
            with open_parquet(file, name) as parquet:
                return list(parquet.schema_arrow.names)
        if suffix in (".csv", ".tsv"):
            return _header(_records(file, name), name)
        if suffix == ".jsonl":
            first = (_parse(number, line, name) for number, line in islice(_lines(file, name), _LINES_LOOKED_AT))
            return list(dict.fromkeys(key for row in first for key in row.cells))
        return [LINE]


def known(name: str, column: str | None, columns: Sequence[str]) -> str:
    """Returns the column to read, for None the only one there is; ValueError if it is missing or there twice."""
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None or column not in columns:
        raise ValueError(
            f"{name!r} has no column {column!r}: choose one of {', '.join(map(repr, columns)) or 'none at all'}."
        )
    check_single(name, [column], columns)
    return column


def check_single(name: str, wanted: Sequence[str], columns: Sequence[str]) -> None:
    """Raises ValueError if a column that is wanted is there more than once."""
    for column in wanted:
        if list(columns).count(column) > 1:
            raise ValueError(
                f"{name!r} has {list(columns).count(column)} columns {column!r}, of which none is meant: rename them."
            )


def import_pyarrow() -> None:
    """Raises an ImportError that says what to install if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise missing_extra("A Parquet file", "pyarrow", "parquet") from error


def _lines(file: BinaryIO, name: str, span: tuple[int, int] | None = None) -> Iterator[_Line]:
    """Yields the lines that begin in a span of bytes, with their numbers; what is not UTF-8 by `surrogateescape`."""
    start, stop = span or (0, None)
    # pyarrow's files read no lines by themselves
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]
    place = max(start - 1, 0)
    buffered.seek(place)
    if start > 0:  # the line that holds the byte in front of the span began before it
        place += len(buffered.readline())
    number = 0
    try:
        while (stop is None or place < stop) and (line := buffered.readline()):
            if place == 0 and not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
                raise ValueError(
                    f"The lines of {name!r} end in a carriage return alone, which ends no line here: convert it, for "
                    "example with `tr '\\r' '\\n'`."
                )
            codec = "utf-8-sig" if place == 0 else "utf-8"
            place, number = place + len(line), number + 1
            yield number, line.decode(codec, "surrogateescape").rstrip("\r\n")
    finally:
        if buffered is not file:
            buffered.detach()  # or the file would be closed with it


def _not_utf_8(number: int, name: str, cells: dict[str, Any] | None = None) -> Bad:
    return Bad(
        f"line {number}",
        f"Line {number} of {name!r} is not UTF-8: convert the file, for example with iconv.",
        cells or {},
    )


def _parse(number: int, line: str, name: str) -> Row | Bad:
    if _UNDECODED.search(line):
        return _not_utf_8(number, name)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also of numbers with thousands of digits
        problem = f"Line {number} of {name!r} is not JSON that can be read ({error}): mend it."
        return Bad(f"line {number}", problem)
    if not isinstance(row, dict):
        return Bad(f"line {number}", f"Line {number} of {name!r} is {line[:80]!r}, but each must be a JSON object.")
    return Row(f"line {number}", row)


def _read_separated(
    file: BinaryIO, name: str, columns: Sequence[str] | None, header: Sequence[str] | None
) -> Iterator[Row | Bad]:
    records = _records(file, name)
    names = list(_header(records, name) if header is None else header)
    check_single(name, [column for column in names if column] if columns is None else columns, names)
    strange, first = 0, 0
    for number, cells, is_strange in records:
        if isinstance(cells, str):
            yield Bad(f"line {number}", f"Line {number} of {name!r} {cells}")
            continue
        if not cells:
            if len(names) != 1:
                continue
            cells = [""]
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        found = {column: None if _UNDECODED.search(cell) else cell for column, cell in zip(names, cells, strict=False)}
        if len(cells) != len(names):
            problem = f"has {len(cells)} columns, but its header {len(names)}: mend it."
            yield Bad(f"line {number}", f"Line {number} of {name!r} {problem}", found)
        elif None in found.values():
            yield _not_utf_8(number, name, found)
        else:
            if is_strange and not strange:
                first = number
            strange += is_strange
            yield Row(f"line {number}", found)
    if strange:
        logger.warning(
            "%d rows of %r, the first at line %d, %s: look whether they are meant so.",
            strange,
            name,
            first,
            "have cells that look quoted, and quotation marks of a .tsv file are text"
            if Path(name).suffix == ".tsv"
            else "hold line breaks in quotation marks, and every line of them looks like a row",
        )


def _header(records: Iterator[_Record], name: str) -> list[str]:
    number, cells, _ = next(records, (0, [], False))
    if isinstance(cells, str):
        raise ValueError(f"Line {number} of {name!r}, its header, {cells}")
    if any(_UNDECODED.search(cell) for cell in cells):
        raise ValueError(_not_utf_8(number, name).problem)
    return cells


def _records(file: BinaryIO, name: str) -> Iterator[_Record]:
    """Yields the rows of a CSV or TSV file with the line they end in: their cells, or what is wrong with them."""
    lines = _lines(file, name)
    if Path(name).suffix == ".tsv":
        for number, line in lines:
            cells = line.split("\t") if line else []
            yield number, cells, '""' in line and any(re.fullmatch('"[^"]*"".*"', cell) for cell in cells)
        return
    again: deque[_Line] = deque()  # lines that a quotation mark had taken in

    def following() -> Iterator[_Line]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            yield line

    width = None
    for first in following():
        taken = [first]
        if '"' in first[1]:
            cells, problem = _split_quoted(taken, following())
        else:
            cells, problem = first[1].split(",") if first[1] else [], ""
        if problem:  # the lines behind it are rows of their own
            again.extendleft(reversed(taken[1:]))
            yield first[0], problem, False
            continue
        width = len(cells) if width is None else width
        alone = len(taken) > 1 and all(line.count(",") + 1 == width for _, line in taken)
        yield taken[-1][0], cells, alone


def _split_quoted(taken: list[_Line], following: Iterator[_Line]) -> tuple[list[str], str]:
    """Returns the cells of the row that begins with the line in `taken`, to which its other lines are appended.

    Returns:
        The cells, and what is wrong with the row, nothing if it is right.
    """

    def texts() -> Iterator[str]:
        size = 0
        yield f"{taken[0][1]}\n"
        for line in following:
            taken.append(line)
            size += len(line[1])
            yield f"{line[1]}\n"
            if size > _LONGEST:
                return

    limit = csv.field_size_limit(2 * _LONGEST)
    try:
        return next(csv.reader(texts(), strict=True)), ""
    except csv.Error as error:
        return [], f"has quotation marks that are not CSV's ({error}): double each of them, and quote the cell."
    finally:
        csv.field_size_limit(limit)
