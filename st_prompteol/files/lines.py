"""Rows, and lines of text files."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LINE = ""  # name of the only column of a file of plain sentences

_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, decoded by `surrogateescape`


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Args:
        place: Place of the row: `line 3`, or `row 2` in Parquet and JSON arrays, whose rows are counted from 0.
        cells: Values by column: text from text files, CSV and TSV, any value from JSON and Parquet.
    """

    place: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """An invalid row.

    Args:
        place: Place of the row, as in `Row`.
        problem: Error message, which names the file.
        cells: The cells that could be read. Defaults to none.
    """

    place: str
    problem: str
    cells: dict[str, Any] = field(default_factory=dict)


def raw_lines(file: io.BufferedReader, name: str, span: tuple[int, int] | None = None) -> Iterator[tuple[int, str]]:
    """Yields the lines that begin in a span of bytes, including line ends, with their numbers.

    Bytes that are not UTF-8 are decoded by `surrogateescape`.

    Args:
        file: The open file, at its beginning.
        name: Its name, for messages.
        span: First byte, and byte after the last; the file must be seekable. Defaults to None: the whole file.

    Raises:
        ValueError: If lines end with a carriage return only.
    """
    start, stop = span or (0, None)
    place = max(start - 1, 0)
    if place:
        file.seek(place)
    if start > 0:  # the line with the byte before the span belongs to the previous span
        place += len(file.readline())
    number = 0
    while (stop is None or place < stop) and (line := file.readline()):
        if place == 0 and not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
            raise ValueError(
                f"The lines of {name!r} end in a carriage return alone, which ends no line here: convert it, for "
                "example with `tr '\\r' '\\n'`."
            )
        codec = "utf-8-sig" if place == 0 else "utf-8"
        place, number = place + len(line), number + 1
        yield number, line.decode(codec, "surrogateescape")


def lines(file: io.BufferedReader, name: str, span: tuple[int, int] | None = None) -> Iterator[tuple[int, str]]:
    """Yields lines without line ends. See `raw_lines`."""
    return ((number, line.rstrip("\r\n")) for number, line in raw_lines(file, name, span))


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file with their numbers; raises ValueError for a line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in lines(file, os.fspath(path)):
            if not is_utf_8(line):
                raise ValueError(not_utf_8(number, os.fspath(path)).problem)
            yield number, line


def is_utf_8(text: str) -> bool:
    """Returns whether a line of `raw_lines` was valid UTF-8."""
    return _UNDECODED.search(text) is None


def not_utf_8(number: int, name: str, cells: dict[str, Any] | None = None) -> Bad:
    """Returns the `Bad` row for a line that is not UTF-8."""
    return bad(number, name, "is not UTF-8: convert the file, for example with iconv.", cells)


def check_text(number: int, name: str, line: str) -> Bad | None:
    """Returns the `Bad` row for a line that is not UTF-8 or contains a carriage return; None if it is valid."""
    if not is_utf_8(line):
        return not_utf_8(number, name)
    if "\r" in line:
        return bad(number, name, "holds a carriage return alone, which ends no line here: convert or drop it.")
    return None


def bad(number: int, name: str, problem: str, cells: dict[str, Any] | None = None) -> Bad:
    """Returns the `Bad` row for a line."""
    return Bad(f"line {number}", f"Line {number} of {name!r} {problem}", cells or {})
