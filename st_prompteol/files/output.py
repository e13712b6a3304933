"""Tables and figures: as plain text, and as files (Markdown, CSV, JSON; PNG, SVG)."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from st_prompteol.extras import missing_extra
from st_prompteol.files.atomic import replacing_file

TABLES = (".md", ".csv", ".json")
FIGURES = (".png", ".svg")
_JOINERS = "\u200c\u200d"  # for letters and emoji


def check_output(path: str | os.PathLike[str], formats: Sequence[str]) -> None:
    """Checks the output path of a table or a figure before the computation starts.

    Args:
        path: The output path.
        formats: The allowed suffixes, `TABLES` or `FIGURES`.

    Raises:
        ValueError: If the suffix is not in `formats`.
        FileNotFoundError: If the folder does not exist.
    """
    if Path(path).suffix not in formats:
        kind = "picture" if formats == FIGURES else "table"
        *others, last = formats
        raise ValueError(f"Unknown {kind} format {str(path)!r}: end its name in {', '.join(others)} or {last}.")
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(path)!r} does not exist: make it, then run again.")


def one_line(text: str) -> str:
    r"""Returns text as one line that is safe for a terminal; line breaks and control characters are escaped."""
    return "".join(
        letter
        if letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def to_text(lines: Sequence[Sequence[str]], text_columns: int = 1, width: int | None = None) -> list[str]:
    """Formats a table with aligned columns, without truncating cells.

    Args:
        lines: The table as text, the header first.
        text_columns: The number of text columns, which come first and are left-aligned; the others are right-aligned
            numbers. Defaults to 1.
        width: The maximum number of characters per line. Number columns that do not fit are printed below, with the
            text columns repeated. Defaults to None: no limit.

    Returns:
        The lines.

    Example:
        >>> to_text([["model", "STS12"], ["tiny", "62.90"]])
        ['model  STS12', 'tiny   62.90']
    """
    cells = [[one_line(cell) for cell in line] for line in lines]
    widths = [max(map(_cells, column)) for column in zip(*cells, strict=True)]
    texts = list(range(text_columns))
    blocks: list[list[int]] = [[]]
    for column in range(text_columns, len(widths)):
        if width is not None and blocks[-1]:
            taken = sum(widths[one] + 2 for one in (*texts, *blocks[-1], column)) - 2
            if taken > width:
                blocks.append([])
        blocks[-1].append(column)
    laid: list[str] = []
    for block in blocks:
        laid += [""] * bool(laid)
        for line in cells:
            shown = [
                line[column] + _pad(line[column], widths[column])
                if column < text_columns
                else _pad(line[column], widths[column]) + line[column]
                for column in (*texts, *block)
            ]
            laid.append("  ".join(shown).rstrip())
    return laid


def _cells(text: str) -> int:
    """Returns the width of a text in terminal columns: two for a wide character, none for a combining one."""
    from rich.cells import cell_len

    return cell_len(text)


def _pad(text: str, width: int) -> str:
    return " " * (width - _cells(text))


def duration(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours.

    Example:
        >>> [duration(seconds) for seconds in (0.42, 75.2, 3720)]
        ['0.4 s', '1 min 15 s', '1 h 02 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def to_markdown(lines: Sequence[Sequence[str]], text_columns: Collection[str]) -> str:
    """Formats a Markdown table, the header first; columns that are not in `text_columns` are numbers."""
    header, *body = lines
    rule = ["---" if name in text_columns else "---:" for name in header]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in (header, rule, *body)
    )


def to_csv(lines: Sequence[Sequence[str]]) -> str:
    """Formats a table as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def save_table(
    lines: Sequence[Sequence[str]],
    path: str | os.PathLike[str],
    *,
    text_columns: Collection[str] = (),
    records: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes a table to a file, in the format given by its suffix.

    Args:
        lines: The table as text, the header first.
        path: A file that ends in `.md`, `.csv` or `.json`.
        text_columns: The names of the text columns; Markdown right-aligns the others, which are numbers. Defaults to
            none.
        records: The rows for JSON, one object each. Defaults to None: the cells as text, by header.

    Raises:
        ValueError: If the suffix is not one of these.
    """
    check_output(path, TABLES)
    suffix = Path(path).suffix
    if suffix == ".json":
        records = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]] if records is None else records
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    else:
        text = to_csv(lines) if suffix == ".csv" else to_markdown(lines, text_columns)
    with replacing_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def import_figure() -> Any:
    """Imports matplotlib's `Figure`; raises an ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("A plot", "matplotlib", "eval") from error
    return Figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Saves a figure as both PNG and SVG, whichever of the two suffixes `path` has."""
    for suffix in FIGURES:
        with replacing_file(Path(path).with_suffix(suffix)) as staged:
            figure.savefig(staged, format=suffix[1:], dpi=160)
