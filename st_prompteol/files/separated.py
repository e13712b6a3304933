"""Reads rows of CSV and TSV files, and detects whether the first one is a header."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence

from st_prompteol.files.content import Kind
from st_prompteol.files.lines import Bad, Row, bad, check_text, is_utf_8, lines, not_utf_8, raw_lines
from st_prompteol.files.parquet import check_single

logger = logging.getLogger(__name__)

_Record = tuple[int, "list[str] | Bad"]  # number of a row's last line, and its cells

_SAMPLE = 50  # rows to inspect
_LONGEST = 2**26  # maximum characters of a cell, because an unclosed quotation mark would take the rest of the file
_NUMBER = re.compile(r"\s*[-+]?(\d[\d,_]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
# Names of columns of sentences, from which the header of a single column is detected
_NAMES = set(
    "text texts sentence sentences content contents document documents doc docs passage passages paragraph paragraphs "
    "query queries question questions answer answers title titles body abstract description review reviews comment "
    "comments message messages utterance caption headline summary tweet premise hypothesis anchor input inputs".split()
)


class HeaderError(ValueError):
    """Raised if a header of a CSV or TSV file can be neither confirmed nor ruled out."""


def read_separated(
    stream: io.BufferedReader, name: str, kind: Kind, names: Sequence[str], skip: bool
) -> Iterator[Row | Bad]:
    """Yields the rows of a CSV or TSV file.

    Args:
        stream: The file's content, at its beginning.
        name: The file's name, for messages.
        kind: `"CSV"` or `"TSV"`.
        names: The columns.
        skip: Whether the first row is a header.

    Raises:
        ValueError: If invalid quotation marks of a CSV file span several lines.
    """
    records = _records(stream, name, kind)
    if skip:
        next(records, None)
    looks_quoted = False
    for number, cells in records:
        if isinstance(cells, Bad):
            yield cells
            continue
        if not cells:
            if len(names) != 1:
                continue
            cells = [""]
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        found = {column: cell if is_utf_8(cell) else None for column, cell in zip(names, cells, strict=False)}
        if len(cells) != len(names):
            yield bad(number, name, f"has {len(cells)} columns, but its header {len(names)}: mend it.", found)
        elif None in found.values():
            yield not_utf_8(number, name, found)
        else:
            if kind == "TSV" and not looks_quoted and any(re.fullmatch('"[^"]*"".*"', cell) for cell in cells):
                looks_quoted = True
                logger.warning(
                    "Line %d of %r has cells that look quoted, and quotation marks of TSV are text: save it as .csv "
                    "if they are not.",
                    number,
                    name,
                )
            yield Row(f"line {number}", found)


def names_of(
    stream: io.BufferedReader, name: str, kind: Kind, columns: Sequence[str], header: bool | Sequence[str] | None
) -> tuple[list[str], bool]:
    """Returns the columns of a CSV or TSV file, and whether its first row is a header.

    Args:
        stream: The file's content, at its beginning.
        name: The file's name, for messages.
        kind: `"CSV"` or `"TSV"`.
        columns: The columns to read; none for the only column.
        header: Whether the file has a header, or the columns of a file without. None detects it from the content.

    Raises:
        HeaderError: If a header can be neither confirmed nor ruled out.
        ValueError: If the header is invalid, a column is duplicate, or another character separates the cells.
    """
    records = _records(stream, name, kind)
    number, first = next(records, (0, []))
    if isinstance(first, Bad):
        raise ValueError(first.problem)
    if not all(map(is_utf_8, first)):
        raise ValueError(not_utf_8(number, name).problem)
    sample = [first]
    for _, cells in records:
        if isinstance(cells, list) and cells:
            sample.append(cells)
        if len(sample) > _SAMPLE:
            break
    if kind == "CSV":
        _check_separator(name, sample)
    if header is not None and not isinstance(header, bool):
        return list(header), False
    if header is None:
        header = _has_header(sample, columns) if first else True
    if header is None:
        shown = ", ".join(repr(cell[:40]) for cell in first[:5])
        raise HeaderError(
            f"The first row of {name!r} ({shown}) may be a header or the first row of data: say --header or "
            "--no-header (header=True or header=False in Python). Without a header the columns are '1', '2', …"
        )
    names = first if header else [str(place) for place in range(1, len(first) + 1)]
    check_single(name, columns or [column for column in names if column], names)
    return names, header


def _has_header(sample: Sequence[list[str]], columns: Sequence[str]) -> bool | None:
    """Returns whether the first row of a sample is a header; None if that is ambiguous.

    A number above numbers is data, and text above numbers is a name. Without numbers, the first row is a header: a
    requested column is found in it or reported as missing, which loses no row. A single column is a header if its name
    is a common one.
    """
    first, below = sample[0], sample[1:]
    has_numbers = [_are_numbers([row[place] for row in below if place < len(row)]) for place in range(len(first))]
    is_number = [_are_numbers([cell]) for cell in first]
    is_data = any(one and (numbers or not below) for one, numbers in zip(is_number, has_numbers, strict=True))
    is_named = any(numbers and not one for one, numbers in zip(is_number, has_numbers, strict=True))
    is_asked_for = not set(columns).isdisjoint(first)
    if is_data:
        return None if is_named or is_asked_for or not below else False
    if len(first) == 1 and not columns:
        return True if first[0].strip().lower() in _NAMES else None
    by_number = any(column.isdecimal() for column in columns) and not is_asked_for
    return None if by_number and not is_named else True


def _are_numbers(cells: Sequence[str]) -> bool:
    """Returns whether all non-empty cells are numbers, and there is at least one."""
    filled = [cell for cell in cells if cell.strip()]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def _check_separator(name: str, sample: Sequence[list[str]]) -> None:
    """Raises ValueError if the cells of a CSV file seem to be separated by semicolons or tabs."""
    if len(sample) > 1 and all(len(cells) == 1 for cells in sample):
        for mark, called in ((";", "semicolons"), ("\t", "tabs")):
            counts = {cells[0].count(mark) for cells in sample}
            if len(counts) == 1 and counts != {0}:
                raise ValueError(
                    f"The cells of {name!r} seem to be separated by {called}, but those of CSV are by commas: save it "
                    "with commas, or with tabs and without quotation marks as .tsv."
                )


def _records(stream: io.BufferedReader, name: str, kind: Kind) -> Iterator[_Record]:
    if kind == "TSV":
        for number, line in lines(stream, name):
            problem = check_text(number, name, line) if "\r" in line else None
            yield number, problem or (line.split("\t") if line else [])
        return
    # The limit is global to the process, therefore never lowered: another thread may be reading
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    reader = csv.reader((line for _, line in raw_lines(stream, name)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where, end = f"has quotation marks that are not CSV's ({error}", reader.line_num
            if end > start:  # which of these lines begin a row is unknown
                raise ValueError(
                    f"Line {start} of {name!r} {where} at line {end}): double each of them, and quote the cell."
                ) from None
            yield start, bad(start, name, f"{where}): double each of them, and quote the cell.")
            continue
        if cells is None:
            return
        yield reader.line_num, cells
