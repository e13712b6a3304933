"""Tables and figures as files: Markdown, CSV and JSON; PNG and SVG."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from st_prompteol.extras import missing_extra
from st_prompteol.files import replacing_file

TABLES = (".md", ".csv", ".json")
FIGURES = (".png", ".svg")


def check_output(path: str | os.PathLike[str], formats: Sequence[str]) -> None:
    """Checks where a table or a figure is to be written, before the work whose result it shows.

    Raises:
        ValueError: If the suffix is none of `formats`, `TABLES` or `FIGURES`.
        FileNotFoundError: If the folder does not exist.
    """
    if Path(path).suffix not in formats:
        kind = "picture" if formats == FIGURES else "table"
        *others, last = formats
        raise ValueError(f"Unknown {kind} format {str(path)!r}: end its name in {', '.join(others)} or {last}.")
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(path)!r} does not exist: make it, then run again.")


def to_markdown(lines: Sequence[Sequence[str]], text_columns: Collection[str]) -> str:
    """Writes a Markdown table of texts, the header first; columns that are not in `text_columns` are numbers."""
    header, *body = lines
    rule = ["---" if name in text_columns else "---:" for name in header]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in (header, rule, *body)
    )


def to_csv(lines: Sequence[Sequence[str]]) -> str:
    """Writes comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_table(
    lines: Sequence[Sequence[str]],
    path: str | os.PathLike[str],
    *,
    text_columns: Collection[str] = (),
    records: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes a table to a file, in the format of its suffix.

    Args:
        lines: The table as text, the header first.
        path: A file that ends in `.md`, `.csv` or `.json`.
        text_columns: The columns of text; Markdown shows all others, the numbers, on the right. Defaults to none.
        records: What JSON holds, one object per row. Defaults to None: the text by its header.

    Raises:
        ValueError: If the suffix is another.
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
    """Returns matplotlib's `Figure`, or raises an ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("A plot", "matplotlib", "eval") from error
    return Figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Saves a figure as PNG and as SVG, side by side, whichever of the two `path` names."""
    for suffix in FIGURES:
        with replacing_file(Path(path).with_suffix(suffix)) as staged:
            figure.savefig(staged, format=suffix[1:], dpi=160)
