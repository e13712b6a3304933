"""Batches of sentences, with the columns that are kept, from the rows of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from st_prompteol.tables import LINE, SUFFIXES, Bad, Row, columns_of, known, read_rows, read_tables, values_of


@dataclass(frozen=True)
class Batch:
    """Rows that follow each other.

    Args:
        sentences: Their sentences, None where there is no text.
        kept: The columns that are kept: an Arrow array of the file's own type from Parquet, a list of texts from
            everything else.
        problem: What is wrong with the first row without text. Defaults to nothing.
    """

    sentences: list[str | None]
    kept: dict[str, Any]
    problem: str = ""


def read_batches(
    file: BinaryIO,
    name: str,
    rows: int,
    *,
    column: str | None = None,
    keep: Sequence[str] = (),
    span: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Reads a file, which `name` tells the format of, or a span of it, in batches.

    Args:
        file: The open file; it can seek.
        name: Its name, for its suffix and for messages.
        rows: The most rows of a batch.
        column: The column that holds the sentences. Defaults to None: the only one there is.
        keep: Columns to read beside it. Defaults to none.
        span: As `read_rows` takes it. Defaults to None: the whole file.

    Raises:
        ValueError: If a column is missing, or the file as a whole cannot be read.
        OSError: If the file cannot be read.
        ImportError: If it is Parquet and pyarrow is not installed.
    """
    suffix = Path(name).suffix
    if is_lines(name):
        check_lines(name, column, keep)
        column = LINE
    elif suffix != ".jsonl":
        names = columns_of(name, file)
        column, keep = known(name, column, names), [known(name, other, names) for other in keep]
    elif (column is None or span is None) and (names := columns_of(name, file)):  # none if the first rows are all bad
        column = known(name, column, names)
    column = column or ""
    if suffix == ".parquet":
        for first, batch in read_tables(file, name, rows, columns=[column, *keep], span=span):
            found: list[Row | Bad] = [
                Row(f"row {place}", {column: value}) for place, value in enumerate(values_of(batch[column]), first)
            ]
            yield _batch(found, column, name, {other: batch[other] for other in keep})
        return
    every = read_rows(name, file=file, columns=None if suffix == ".jsonl" else [column, *keep], span=span)
    while found := list(islice(every, rows)):
        yield _batch(found, column, name, {other: [_as_text(row.cells.get(other)) for row in found] for other in keep})


def read_sentences(path: str | os.PathLike[str], rows: int, column: str | None = None) -> Iterator[list[str]]:
    """Yields the sentences of a file, at most `rows` at a time.

    Raises:
        ValueError: As `read_batches`, and if a row has no text; the message names file and line.
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        for batch in read_batches(file, os.fspath(path), rows, column=column):
            if batch.problem:
                raise ValueError(batch.problem)
            yield [sentence for sentence in batch.sentences if sentence is not None]


def is_lines(name: str) -> bool:
    """Whether a file is read as one sentence a line."""
    return Path(name).suffix not in SUFFIXES[:-1]


def check_lines(name: str, column: str | None, keep: Sequence[str]) -> None:
    """Raises ValueError if a column is asked for of a file that is read as lines."""
    if column is not None or keep:
        raise ValueError(
            f"{name!r} is read as one sentence a line, so it has no column {(column or keep[0])!r}: encode it without "
            "one, in a run of its own."
        )


def _batch(rows: Sequence[Row | Bad], column: str, name: str, kept: dict[str, Any]) -> Batch:
    problems = [_problem(row, column, name) for row in rows]
    sentences = [None if problem else row.cells[column] for row, problem in zip(rows, problems, strict=True)]
    return Batch(sentences, kept, next(filter(None, problems), ""))


def _problem(row: Row | Bad, column: str, name: str) -> str:
    if isinstance(row, Bad):
        return row.problem
    value = row.cells.get(column)
    if isinstance(value, str):
        return ""
    return f"The sentence in {row.place} of {name!r} is {value!r}, not text: mend or drop it."


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
