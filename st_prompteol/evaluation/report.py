"""Tables and the scaling plot: measured rows, published ones beside them, averages as the paper takes them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_prompteol.evaluation.published import PUBLISHED
from st_prompteol.evaluation.senteval import STS_TASKS, TRANSFER_TASKS
from st_prompteol.files import replacing_file

# What columns are called: the short names that papers use
SHORT_NAMES = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R", "STSBenchmark-dev": "STS-B dev"}
AVERAGES = {"STS avg": STS_TASKS, "transfer avg": TRANSFER_TASKS}


@dataclass(frozen=True)
class Row:
    """One line of a table: a model evaluated in one way.

    Args:
        model: Its repository or folder.
        method: The way the vector was taken.
        scores: Task -> score, x100.
        parameters: Number of parameters. Defaults to None: not known.
        averages: Averages that are known without their tasks, for published rows. Defaults to none.
    """

    model: str
    method: str
    scores: Mapping[str, float]
    parameters: int | None = None
    averages: Mapping[str, float] | None = None

    def average(self, name: str) -> float | None:
        """Returns an average of `AVERAGES`: each task rounded to 2 decimals, then the mean; None if one is missing."""
        if self.averages and name in self.averages:
            return self.averages[name]
        tasks = AVERAGES[name]
        if not all(task in self.scores for task in tasks):
            return None
        return sum(round(self.scores[task], 2) for task in tasks) / len(tasks)


def published_rows(rows: Iterable[Row]) -> list[Row]:
    """Returns the published rows of the models among `rows`."""
    models = {row.model for row in rows}
    return [
        Row(
            entry.model,
            entry.method,
            {},
            averages={"STS avg": entry.sts} | ({"transfer avg": entry.transfer} if entry.transfer is not None else {}),
        )
        for entry in PUBLISHED
        if entry.model in models
    ]


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Lays rows out as text, the header first; a model in a folder goes by the folder's name."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))
    known = [task for tasks_ in AVERAGES.values() for task in tasks_ if task in tasks]
    columns = [*known, *(task for task in tasks if task not in known)]
    averages = [name for name in AVERAGES if any(row.average(name) is not None for row in rows)]
    lines = [["model", "method", *(SHORT_NAMES.get(task, task) for task in columns), *averages]]
    for row in rows:
        values = [row.scores.get(task) for task in columns] + [row.average(name) for name in averages]
        model = Path(row.model).resolve().name if os.path.isdir(row.model) else row.model
        lines.append([model, row.method, *("" if value is None else f"{value:.2f}" for value in values)])
    return lines


def to_markdown(rows: Sequence[Row]) -> str:
    """Writes a Markdown table."""
    header, *body = table(rows)
    lines = [header, ["---", "---", *("---:" for _ in header[2:])], *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def to_csv(rows: Sequence[Row]) -> str:
    """Writes comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table(rows))
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """Writes JSON, scores unrounded."""
    content = [
        {
            "model": row.model,
            "method": row.method,
            "parameters": row.parameters,
            "scores": dict(row.scores),
            "averages": {name: row.average(name) for name in AVERAGES if row.average(name) is not None},
        }
        for row in rows
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


FORMATS = {".md": to_markdown, ".csv": to_csv, ".json": to_json}


def write_table(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Writes a table to a file, in the format of its suffix.

    Raises:
        ValueError: If the suffix is none of `.md`, `.csv`, `.json`.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f"Unknown table format {str(path)!r}: end its name in {', '.join(FORMATS)}.")
    with replacing_file(path) as staged:
        staged.write_text(FORMATS[suffix](rows), encoding="utf-8")


def plot_scaling(rows: Sequence[Row], path: str | os.PathLike[str], average: str = "STS avg") -> None:
    """Draws score against number of parameters, one line per method, as the paper's figure does.

    Args:
        rows: Measured rows; those without a number of parameters or the average are left out. Where no row has the
            average, the mean of the tasks that all rows have is drawn.
        path: The picture, `.png` or `.svg`; the other one is written beside it.
        average: `"STS avg"` or `"transfer avg"`. Defaults to `"STS avg"`.

    Raises:
        ValueError: If the suffix is another, or no row can be drawn.
        ImportError: If matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"Unknown picture format {str(path)!r}: end its name in .png or .svg.")
    sized = [row for row in rows if row.parameters]
    if any(row.average(average) is not None for row in sized):
        label, values = average, {id(row): row.average(average) for row in sized}
    else:
        shared = [task for task in (sized[0].scores if sized else ()) if all(task in row.scores for row in sized)]
        label = ", ".join(shared) if len(shared) < 4 else f"mean of {len(shared)} tasks"
        values = {id(row): sum(row.scores[task] for task in shared) / len(shared) for row in sized if shared}
    methods: dict[str, list[tuple[int, float, str]]] = {}
    for row in sized:
        value = values.get(id(row))
        if value is not None and row.parameters:
            methods.setdefault(row.method, []).append((row.parameters, value, row.model.rstrip("/").split("/")[-1]))
    if not methods:
        raise ValueError(
            "There is nothing to plot: no row has both a number of parameters and a score that others have."
        )

    figure = import_figure()(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    markers = "osD^vPX*<>"
    for (method, points), marker in zip(methods.items(), markers * len(methods), strict=False):
        parameters, scores, _ = zip(*sorted(points), strict=True)
        axes.plot(parameters, scores, marker=marker, label=method)
    names = {parameters: name for points in methods.values() for parameters, _, name in points}
    axes.set_xscale("log")
    axes.set_xticks(sorted(names), [f"{names[n]}\n{_millions(n)}" for n in sorted(names)], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("parameters (log scale)")
    axes.set_ylabel(f"{label} (x100)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    for suffix in (".png", ".svg"):
        with replacing_file(path.with_suffix(suffix)) as staged:
            figure.savefig(staged, format=suffix[1:], dpi=160)


def import_figure() -> Any:
    """Returns matplotlib's `Figure`, or raises an ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need the package matplotlib: pip install 'st-prompteol[eval]'.") from error
    return Figure


def _millions(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
