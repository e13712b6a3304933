"""Reading sentences: lines of text, CSV, JSONL and Parquet, a whole file or a span of it, as batches of rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
_LINES_LOOKED_AT = 100  # of JSONL, for the columns that there are
_UNDECODED = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are no UTF-8


@dataclass(frozen=True)
class Batch:
    """Rows that follow each other: their sentences, None where there is no text, and the columns that are kept.

    A kept column is an Arrow array of the file's own type from Parquet, a list of texts from everything else.
    """

    sentences: list[str | None]
    kept: dict[str, Any]


def refuse(problem: str) -> NoReturn:
    """What a reader does with a row without text where every row must have one: ValueError."""
    raise ValueError(problem)


def leave_null(problem: str) -> None:
    """What a reader does with a row without text where it may stay one without embedding: nothing."""


def read_batches(
    file: BinaryIO,
    name: str,
    rows: int,
    *,
    column: str | None = None,
    keep: Sequence[str] = (),
    span: tuple[int, int] | None = None,
    bad: Callable[[str], None] = refuse,
) -> Iterator[Batch]:
    """Reads a file, which `name` tells the format of, or a span of it, in batches.

    Args:
        file: The open file; it can seek.
        name: Its name, for its suffix and for messages.
        rows: Rows of a batch; the last one may have fewer.
        column: The column that holds the sentences. Defaults to None: the only one there is.
        keep: Columns to read beside it. Defaults to none.
        span: First row and row behind the last of a Parquet file; first byte and byte behind the last of `.jsonl` and
            text files, where the lines belong to the span that begin in it. A `.csv` file is read whole. Defaults to
            None: the whole file.
        bad: Called with what is wrong with a row that has no text. Defaults to `refuse`.

    Raises:
        ValueError: If a column is missing, or `bad` raises it; the message names file and line.
        OSError: If the file cannot be read.
        ImportError: If it is Parquet and pyarrow is not installed.
    """
    suffix = Path(name).suffix
    if suffix == ".parquet":
        yield from _read_parquet(file, name, rows, column, keep, span, bad)
        return
    if suffix in (".csv", ".tsv"):
        names, records = _read_csv(file, name, column, keep, bad)
    elif suffix == ".jsonl":
        names, records = [column or "", *keep], _read_jsonl(file, name, column, keep, span or (0, None), bad)
    else:
        if column is not None or keep:
            wanted = column if column is not None else keep[0]
            raise ValueError(f"{name!r} is read as one sentence a line, so it has no column {wanted!r}: drop it.")
        names, records = [""], ([line] for line in _decoded(file, name, span or (0, None), bad))
    while chunk := list(islice(records, rows)):
        columns = list(zip(*chunk, strict=True))
        yield Batch(list(columns[0]), dict(zip(names[1:], map(list, columns[1:]), strict=True)))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file with their numbers; ValueError names a line that is not UTF-8."""
    with open(path, "rb") as file:
        lines = _decoded(file, str(path), (0, None), refuse)
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line is not None)


def columns_of(file: BinaryIO, name: str) -> list[str]:
    """Returns the names of the columns of a CSV file, or those of the first rows of JSONL."""
    suffix = Path(name).suffix
    if suffix in (".csv", ".tsv"):
        lines = (f"{line}\n" for line in _decoded(file, name, (0, None), refuse))
        return next(csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ","), [])
    first = islice(_decoded(file, name, (0, None), leave_null), _LINES_LOOKED_AT)
    rows = (_parse(number, line, name, leave_null) for number, line in enumerate(first, start=1))
    return list(dict.fromkeys(key for row in rows for key in row or ()))


def known(name: str, column: str | None, columns: Sequence[str]) -> str:
    """Returns the column that is meant; ValueError names those there are if it is none of them."""
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None or column not in columns:
        raise ValueError(
            f"{name!r} has no column {column!r}: choose one of {', '.join(map(repr, columns)) or 'none at all'}."
        )
    return column


def import_pyarrow() -> None:
    """Raises an ImportError that says what to install if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("Parquet files need the package pyarrow: pip install 'st-prompteol[parquet]'.") from error


def _lines(file: BinaryIO, span: tuple[int, int | None]) -> Iterator[bytes]:
    """Yields the lines that begin in a span of bytes."""
    start, stop = span
    if not isinstance(file, io.BufferedReader):  # pyarrow's files read no lines by themselves
        file = io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]
    place = max(start - 1, 0)
    file.seek(place)
    if start > 0:  # the line that holds the byte in front of the span began before it
        place += len(file.readline())
    while (stop is None or place < stop) and (line := file.readline()):
        place += len(line)
        yield line


def _decoded(
    file: BinaryIO, name: str, span: tuple[int, int | None], bad: Callable[[str], None], errors: str | None = None
) -> Iterator[str | None]:
    """Yields lines; those that are not UTF-8 as None, or decoded by `errors` where that is given."""
    for number, line in enumerate(_lines(file, span), start=1):
        codec = "utf-8-sig" if number == 1 and span[0] == 0 else "utf-8"
        try:
            yield line.decode(codec).rstrip("\r\n")
        except UnicodeDecodeError as error:
            bad(
                f"Line {number} of {name!r} is not UTF-8 ({error.reason} at byte {error.start}): convert the file, "
                "for example with iconv."
            )
            yield line.decode(codec, errors).rstrip("\r\n") if errors else None


def _parse(number: int, line: str | None, name: str, bad: Callable[[str], None]) -> dict[str, Any] | None:
    if line is None:
        return None
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        bad(f"Line {number} of {name!r} is not JSON ({error}): mend it.")
        return None
    if not isinstance(row, dict):
        bad(f"Line {number} of {name!r} is {line[:80]!r}, but each must be a JSON object.")
        return None
    return row


def _read_jsonl(
    file: BinaryIO,
    name: str,
    column: str | None,
    keep: Sequence[str],
    span: tuple[int, int | None],
    bad: Callable[[str], None],
) -> Iterator[list[str | None]]:
    for number, line in enumerate(_decoded(file, name, span, bad), start=1):
        row = _parse(number, line, name, bad)
        if row is None:
            yield [None] * (1 + len(keep))
            continue
        if bad is refuse or column is None:
            column = known(name, column, list(row))
        sentence = row.get(column)
        kept = [row.get(other) for other in keep]
        yield [
            _text(sentence, f"line {number}", name, bad),
            *(value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False) for value in kept),
        ]


def _read_csv(
    file: BinaryIO, name: str, column: str | None, keep: Sequence[str], bad: Callable[[str], None]
) -> tuple[list[str], Iterator[list[str | None]]]:
    lines = (f"{line}\n" for line in _decoded(file, name, (0, None), bad, errors="surrogateescape"))
    rows = csv.reader(lines, delimiter="\t" if Path(name).suffix == ".tsv" else ",")
    header = next(rows, [])
    names = [known(name, column, header), *(known(name, other, header) for other in keep)]
    places = [header.index(each) for each in names]

    def records() -> Iterator[list[str | None]]:
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"Line {rows.line_num} of {name!r} is no CSV ({error}): mend it.") from None
            if row is None:
                return
            if len(row) <= places[0]:
                bad(f"Line {rows.line_num} of {name!r} has {len(row)} columns, but needs {places[0] + 1}.")
            cells = (row[place] if place < len(row) else None for place in places)
            yield [None if cell is None or _UNDECODED.search(cell) else cell for cell in cells]

    return names, records()


def _read_parquet(
    file: BinaryIO,
    name: str,
    rows: int,
    column: str | None,
    keep: Sequence[str],
    span: tuple[int, int] | None,
    bad: Callable[[str], None],
) -> Iterator[Batch]:
    import_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        column, keep = known(name, column, names), [known(name, other, names) for other in keep]
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = [sum(sizes[: group + 1]) for group in range(len(sizes))]
        start, stop = span or (0, sum(sizes))
        groups = [group for group, end in enumerate(ends) if end > start and end - sizes[group] < stop]
        if not groups:
            return
        place, row = ends[groups[0]] - sizes[groups[0]], start
        held: list[Any] = []

        def take() -> Batch:
            table = pa.Table.from_batches(held)
            values = enumerate(table[column].to_pylist(), start=row)
            sentences = [_text(value, f"row {number}", name, bad) for number, value in values]
            return Batch(sentences, {other: table[other] for other in keep})

        for batch in parquet.iter_batches(rows, row_groups=groups, columns=list(dict.fromkeys([column, *keep]))):
            first, last = max(start - place, 0), min(stop - place, batch.num_rows)
            place += batch.num_rows
            if first < last:
                held.append(batch.slice(first, last - first))
            if sum(part.num_rows for part in held) >= rows:  # row groups may be small
                yield take()
                row, held = min(place, stop), []
            if place >= stop:
                break
        if held:
            yield take()


def _text(value: Any, place: str, name: str, bad: Callable[[str], None]) -> str | None:
    if isinstance(value, str):
        return value
    bad(f"The sentence in {place} of {name!r} is {value!r}, not text: mend or drop it.")
    return None
