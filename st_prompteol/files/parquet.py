"""Reads Parquet files in Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, BinaryIO

from st_prompteol.extras import missing_extra


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
        rows: Maximum number of rows per batch.
        columns: The columns to read. Defaults to None: all.
        span: First row, and row after the last. Defaults to None: the whole file.

    Yields:
        The number of a batch's first row, and the batch.

    Raises:
        ValueError: If the file is not Parquet or damaged, or a column is missing or duplicate.
        OSError: If the file cannot be read.
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
            if place >= stop:  # a row group may be much larger than a span
                return


@contextmanager
def open_parquet(file: BinaryIO, name: str) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError: If the file is not Parquet, or damaged.
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
    """Returns the values of an Arrow column, None for text that is not UTF-8."""

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


def known(name: str, column: str | None, columns: Sequence[str], hint: str = "") -> str:
    """Returns the column to read, for None the only one; ValueError, with the hint, if it is missing or duplicate."""
    if column is None and len(columns) == 1:
        return columns[0]
    choices = f"choose one of {', '.join(map(repr, columns)) or 'none at all'}"
    if column is None:
        several = f"{len(columns)} columns: {choices} with column (--column){hint}"
        raise ValueError(f"{name!r} has {several if columns else 'no column: write a header and rows'}.")
    if column not in columns:
        raise ValueError(f"{name!r} has no column {column!r}: {choices}{hint}.")
    check_single(name, [column], columns)
    return column


def check_single(name: str, wanted: Sequence[str], columns: Sequence[str]) -> None:
    """Raises ValueError if a wanted column exists more than once."""
    for column in wanted:
        if list(columns).count(column) > 1:
            raise ValueError(
                f"{name!r} has {list(columns).count(column)} columns {column!r}, of which none is meant: rename them."
            )


def import_pyarrow() -> None:
    """Raises an ImportError with the install command if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise missing_extra("A Parquet file", "pyarrow", "parquet") from error
