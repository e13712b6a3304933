"""Batches of sentences, with the columns that are kept, from the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from st_prompteol.tables import LINE, Bad, Row, columns_of, known, read_rows, read_tables, values_of


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
        span: As `read_rows` takes it. Defaults to None: the whole file.
        bad: Called with what is wrong with a row that has no text. Defaults to `refuse`.

    Raises:
        ValueError: If a column is missing, or `bad` raises it; the message names file and line.
        OSError: If the file cannot be read.
        ImportError: If it is Parquet and pyarrow is not installed.
    """
    suffix = Path(name).suffix
    if suffix in (".parquet", ".csv", ".tsv"):
        names = columns_of(name, file)
        column, keep = known(name, column, names), [known(name, other, names) for other in keep]
    if suffix == ".parquet" and column is not None:
        for first, table in read_tables(file, name, rows, columns=[column, *keep], span=span):
            values = enumerate(values_of(table[column]), start=first)
            sentences = [_text(value, f"row {number}", name, bad) for number, value in values]
            yield Batch(sentences, {other: table[other] for other in keep})
        return
    if suffix not in (".csv", ".tsv", ".jsonl"):
        check_lines(name, column, keep)
        column = LINE
    found = read_rows(name, file=file, columns=None if suffix == ".jsonl" else [column or "", *keep], span=span)
    while chunk := list(islice(found, rows)):
        sentences = []
        for row in chunk:
            if isinstance(row, Row) and suffix == ".jsonl" and (bad is refuse or column is None):
                column = known(name, column, list(row.cells))
            sentences.append(_sentence(row, column or "", name, bad))
        yield Batch(sentences, {other: [_as_text(row.cells.get(other)) for row in chunk] for other in keep})


def check_lines(name: str, column: str | None, keep: Sequence[str]) -> None:
    """Raises ValueError if a column is asked for of a file that is read as lines."""
    if column is not None or keep:
        raise ValueError(
            f"{name!r} is read as one sentence a line, so it has no column {(column or keep[0])!r}: encode it without "
            "one, in a run of its own."
        )


def _sentence(row: Row | Bad, column: str, name: str, bad: Callable[[str], None]) -> str | None:
    if isinstance(row, Bad):
        bad(row.problem)
        return None
    return _text(row.cells.get(column), row.place, name, bad)


def _text(value: Any, place: str, name: str, bad: Callable[[str], None]) -> str | None:
    if isinstance(value, str):
        return value
    bad(f"The sentence in {place} of {name!r} is {value!r}, not text: mend or drop it.")
    return None


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
