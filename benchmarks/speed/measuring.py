"""Shared by the benchmarks: timing, memory, and rows of measurements that survive an interruption."""

from __future__ import annotations

import json
import multiprocessing
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from st_prompteol.files.output import to_markdown

Row = dict[str, Any]  # its labels, and "result" or "error"


def wait() -> None:
    """Synchronizes with the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any]) -> float:
    """Calls a function and returns its duration in seconds, including its work on a GPU."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def peak_memory(pid: int | str = "self") -> int:
    """Returns the peak memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")  # getrusage returns the parent's peak
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process, whose peak memory is then that of the function."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def machine() -> dict[str, Any]:
    """Returns the date, the machine and the versions for a page of measurements."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def read_rows(log: Path | None) -> list[Row]:
    """Returns the rows of a log, the newest of each; a row is identified by its labels."""
    lines = log.read_text(encoding="utf-8").splitlines() if log is not None and log.exists() else []
    return list({labels_of(row): row for row in map(json.loads, lines)}.values())


def labels_of(row: Row) -> str:
    """Returns the labels of a row as text."""
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("result", "error"))


def measure_rows(rows: Iterable[tuple[Row, Callable[[], Any]]], log: Path | None) -> list[Row]:
    """Measures the rows that have no result in the log yet, those that failed before at last.

    Args:
        rows: Labels and the measurement of each row. An error becomes part of the row, and the next one is measured.
        log: JSON lines, to which rows are appended. None measures all rows.

    Returns:
        All rows of the log.
    """
    before = {labels_of(row): row for row in read_rows(log)}
    missing = [(labels, run) for labels, run in rows if "result" not in before.get(labels_of(labels), {})]
    for labels, run in sorted(missing, key=lambda row: labels_of(row[0]) in before):
        row = before[labels_of(labels)] = {**labels, "error": "the process ended"}
        _append(row, log)  # what remains if it does
        try:
            row["result"] = run()
            del row["error"]
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        _append(row, log)
        print(f"{labels_of(labels)}: {row.get('error') or 'measured'}", file=sys.stderr, flush=True)
    return list(before.values())


def _append(row: Row, log: Path | None) -> None:
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)


def table(header: str, lines: list[list[Any]], texts: int = 1) -> str:
    """Returns a Markdown table, whose first columns are texts. Cells that are None stay empty; empty columns go."""
    names = header.split(" | ")
    filled = [place for place in range(len(names)) if any(line[place] not in (None, "") for line in lines)]
    cells = [["" if line[place] is None else str(line[place]) for place in filled] for line in lines]
    return to_markdown([[names[place] for place in filled], *cells], names[:texts]) + "\n" if lines else ""


def page(rows: list[Row], to_markdown: Callable[[list[Row]], str]) -> str:
    """Returns the tables of the rows with a result, and a list of those that failed."""
    failed = [f"- failed: {labels_of(row)}: {row['error']}\n" for row in rows if "error" in row]
    return to_markdown([row for row in rows if "result" in row]) + "".join(failed)


def report(rows: list[Row], to_markdown: Callable[[list[Row]], str], output: Path | None) -> int:
    """Prints machine and page, also into `output` with the suffix .md; returns an exit code."""
    text = f"{', '.join(f'{name} {value}' for name, value in machine().items())}\n\n{page(rows, to_markdown)}"
    print(text, end="")
    if output is not None:
        output.with_suffix(".md").write_text(text, encoding="utf-8")
    return int(any("error" in row for row in rows))
