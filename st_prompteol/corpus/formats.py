"""Reads batches of sentences and kept columns from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from st_prompteol.files import (
    LINE,
    Bad,
    Contents,
    Row,
    known,
    look_into,
    opened,
    read_rows,
    read_tables,
    report,
    values_of,
)


@dataclass(frozen=True)
class Batch:
    """Consecutive rows.

    Args:
        sentences: The sentences, None for rows without text.
        kept: The kept columns: from Parquet an Arrow array of the file's own type, from other formats a list of texts.
        problem: Error message for the first row without text. Defaults to the empty string.
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
    header: bool | None = None,
    span: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Reads a file, or a span of it, in batches.

    Args:
        file: The open file, seekable.
        name: Its name, for its suffix and for messages.
        rows: Maximum number of rows per batch.
        column: The column of the sentences. Defaults to None: the only column.
        keep: Further columns to read. Defaults to none.
        header: Whether a CSV or TSV file has a header. Defaults to None: detected from its content.
        span: See `read_rows`. Defaults to None: the whole file.

    Raises:
        ValueError: If a column is missing, the file as a whole is invalid, or a header can be neither confirmed nor
            ruled out.
        OSError: If the file cannot be read.
        ImportError: If the file is Parquet and pyarrow is not installed.
    """
    contents = look_into(name, file, columns=wanted_columns(column, keep), header=header)
    column, keep = choose_columns(contents, column, keep)
    if contents.kind == "Parquet":
        for first, batch in read_tables(file, name, rows, columns=[column, *keep], span=span):
            found: list[Row | Bad] = [
                Row(f"row {place}", {column: value}) for place, value in enumerate(values_of(batch[column]), first)
            ]
            yield _batch(found, column, name, {other: batch[other] for other in keep})
        return
    every = read_rows(name, file=file, columns=[column, *keep], header=contents.header, span=span)
    while found := list(islice(every, rows)):
        yield _batch(found, column, name, {other: [_as_text(row.cells.get(other)) for row in found] for other in keep})


def read_sentences(
    file: BinaryIO, name: str, rows: int, column: str | None = None, header: bool | None = None
) -> Iterator[list[str]]:
    """Yields the sentences of an open file, at most `rows` at a time.

    Raises:
        ValueError: See `read_batches`; also if a row has no text. The message names file and line.
        OSError: If the file cannot be read.
    """
    for batch in read_batches(file, name, rows, column=column, header=header):
        if batch.problem:
            raise ValueError(batch.problem)
        yield [sentence for sentence in batch.sentences if sentence is not None]


def read_all_sentences(
    path: str | os.PathLike[str],
    column: str | None = None,
    header: bool | None = None,
    *,
    is_column_required: bool = True,
) -> list[str]:
    """Returns the non-empty sentences of a file, and logs a summary of the file.

    Args:
        path: The file.
        column: The column of the sentences. Defaults to None: `sentence` if it exists, as in candidates, else the only
            column.
        header: Whether a CSV or TSV file has a header. Defaults to None: detected from its content.
        is_column_required: Whether a file without `column` is an error; otherwise it is read as if `column` was None.
            Defaults to True.

    Raises:
        ValueError: See `read_sentences`; also if there are no sentences.
        OSError: If the file cannot be read.
    """
    name = os.fspath(path)
    with opened(path) as file:
        contents = look_into(name, file, columns=wanted_columns(column), header=header)
        if column is not None and column not in contents.columns and not is_column_required:
            column, contents = None, look_into(name, file, header=header)
        if column is None and "sentence" in contents.columns:
            column = "sentence"
        found = [text for batch in read_sentences(file, name, 1000, column, header) for text in batch]
    report(contents, len(found))
    if not (sentences := [text for text in found if text.strip()]):
        raise ValueError(f"{name!r} holds no sentence: write one a line.")
    return sentences


def wanted_columns(column: str | None, keep: Sequence[str] = ()) -> list[str]:
    """Returns the requested columns."""
    return [*([] if column is None else [column]), *keep]


def choose_columns(contents: Contents, column: str | None, keep: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the column of the sentences and the kept columns of a file.

    Raises:
        ValueError: If the file lacks one of them.
    """
    if contents.is_lines:
        if column is not None or keep:
            raise ValueError(
                f"{contents.name!r} is read as one sentence a line, so it has no column {(column or keep[0])!r}: "
                "encode it without one, in a run of its own."
            )
        return LINE, []
    if contents.kind in ("JSON lines", "JSON"):  # objects may lack a column, even all of the first ones
        return known(contents.name, column, contents.columns) if contents.columns else column or "", list(keep)
    column = known(contents.name, column, contents.columns, contents.hint)
    return column, [known(contents.name, other, contents.columns, contents.hint) for other in keep]


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
