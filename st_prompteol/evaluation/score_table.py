"""Tables and plots of scores, with the paper's averages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from st_prompteol.evaluation.senteval import STS_TASKS, TRANSFER_TASKS
from st_prompteol.files.output import FIGURES, check_output, import_figure, save_figure, save_table

# Column names, as papers abbreviate them
SHORT_NAMES = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R", "STSBenchmark-dev": "STS-B dev"}
AVERAGES = {"STS avg": STS_TASKS, "transfer avg": TRANSFER_TASKS}


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table: a model evaluated with one method.

    Args:
        model: The model's repository or folder.
        method: Name of the embedding method.
        scores: Scores by task, x100.
        parameters: Number of parameters. Defaults to None: unknown.
        averages: Averages that are known without the scores of their tasks, for published rows. Defaults to None.

    Example:
        >>> row = ScoreRow("tiny", "PromptEOL", {"STS12": 62.9})
        >>> row.average("STS avg") is None  # the other six tasks are missing
        True
    """

    model: str
    method: str
    scores: Mapping[str, float]
    parameters: int | None = None
    averages: Mapping[str, float] | None = None

    def average(self, name: str) -> float | None:
        """Returns an average of `AVERAGES`: the mean of scores rounded to 2 decimals; None if a task is missing."""
        if self.averages and name in self.averages:
            return self.averages[name]
        tasks = AVERAGES[name]
        if not all(task in self.scores for task in tasks):
            return None
        return sum(round(self.scores[task], 2) for task in tasks) / len(tasks)


def table(rows: Sequence[ScoreRow]) -> list[list[str]]:
    """Formats rows as text, with a header; a local model is shown by the name of its folder or file."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))
    known = [task for tasks_ in AVERAGES.values() for task in tasks_ if task in tasks]
    columns = [*known, *(task for task in tasks if task not in known)]
    averages = [name for name in AVERAGES if any(row.average(name) is not None for row in rows)]
    lines = [["model", "method", *(SHORT_NAMES.get(task, task) for task in columns), *averages]]
    for row in rows:
        values = [row.scores.get(task) for task in columns] + [row.average(name) for name in averages]
        model = Path(row.model).resolve().name if os.path.exists(row.model) else row.model
        lines.append([model, row.method, *("" if value is None else f"{value:.2f}" for value in values)])
    return lines


def write_scores(rows: Sequence[ScoreRow], path: str | os.PathLike[str]) -> None:
    """Writes a table to a file, in the format of its suffix: `.md`, `.csv`, or `.json` with unrounded scores.

    Args:
        rows: Measured or published rows.
        path: The output file.

    Raises:
        ValueError: If the file has another suffix.

    Example:
        >>> write_scores([ScoreRow("tiny", "PromptEOL", {"STS12": 62.9})], "scores.csv")
    """
    records = [
        {
            "model": row.model,
            "method": row.method,
            "parameters": row.parameters,
            "scores": dict(row.scores),
            "averages": {name: row.average(name) for name in AVERAGES if row.average(name) is not None},
        }
        for row in rows
    ]
    save_table(table(rows), path, text_columns=("model", "method"), records=records)


def plot_scaling(rows: Sequence[ScoreRow], path: str | os.PathLike[str]) -> None:
    """Plots the STS average by number of parameters, one line per method, as in the paper's figure.

    Args:
        rows: Measured rows; rows without a number of parameters or the average are skipped. If no row has the average,
            the mean of the tasks that all rows have is plotted.
        path: The output file, `.png` or `.svg`; the other format is written beside it.

    Raises:
        ValueError: If the file has another suffix, or no row can be plotted.
        ImportError: If matplotlib is not installed.

    Example:
        >>> plot_scaling([ScoreRow("tiny", "PromptEOL", {"STS12": 62.9}, parameters=3_000_000)], "scaling.png")
    """
    check_output(path, FIGURES)
    sized = [row for row in rows if row.parameters]
    label, values = "STS avg", [row.average("STS avg") for row in sized]
    if sized and not any(values):
        shared = [task for task in sized[0].scores if all(task in row.scores for row in sized)]
        label = ", ".join(shared) if len(shared) < 4 else f"mean of {len(shared)} tasks"
        values = [sum(row.scores[task] for task in shared) / len(shared) if shared else None for row in sized]
    methods: dict[str, list[tuple[int, float, str]]] = {}
    for row, value in zip(sized, values, strict=True):
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
    save_figure(figure, path)


def _millions(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
