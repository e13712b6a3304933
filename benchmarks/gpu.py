"""All measurements on a GPU in at most 25 minutes: correctness, speed and memory.

    make gpu-kit                                 # with a package registry: all files for the GPU machine in an archive
    make gpu                                     # on the GPU machine: all measurements, into build/gpu
    make gpu GPU="--sections encode nf4 --minutes 9"
    python benchmarks/gpu.py --trial --device cpu                # tiny shapes, to test the script

Models have random weights in well-known shapes, created on the device; tokenizers and sentences are in the kit. Each
section is a separate process with a share of the time; after a crash it is restarted at the next row. Rows are added
to `rows.jsonl` in the output folder as they are measured. Runs are resumable: rows with a result are not measured
again, so repeat the same command after an interruption or a run with few minutes. Writes `gpu.json`, `gpu.md` and
plots, which are updated after every section.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are not installed

SECTIONS = {"right": 5.0, "encode": 9.0, "train": 5.5, "nf4": 2.0, "corpora": 3.5}
"""The sections in their order, with their share of 25 minutes."""


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Returns the measured rows, the newest of each name."""
    path = output / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = {(row["section"], row["row"]): row for row in map(json.loads, lines)}
    return list(rows.values())


def add_row(output: Path, row: dict[str, Any]) -> None:
    """Appends a row to the file of measured rows, and prints it."""
    with open(output / "rows.jsonl", "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    if "began" not in row:
        print(f"{row['section']}: {row['row']}:", row.get("error") or shown(row["result"]), flush=True)


def shown(value: Any) -> str:
    """Formats numbers for display."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_section(section: str, output: Path, options: dict[str, Any], ends: float) -> None:
    """Measures the rows of a section that have no result yet; previously failed rows run last."""
    from gpu_setup import Options

    before = {row["row"]: row for row in read_rows(output) if row["section"] == section}
    rows = importlib.import_module(f"gpu_{section}").rows(Options(**options))
    todo = [(name, measure) for name, measure in rows if "result" not in before.get(name, {})]
    for name, measure in sorted(todo, key=lambda row: row[0] in before):
        if time.time() > ends:
            print(f"{section}: {name}: left out, no time", flush=True)
            continue
        row = {"section": section, "row": name}
        add_row(output, {**row, "began": True, "error": "the process ended"})
        start = time.perf_counter()
        try:
            row["result"] = measure()
        except Exception as error:  # continue with the other rows after any error
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        add_row(output, {**row, "seconds": time.perf_counter() - start})


def run_sections(sections: list[str], output: Path, options: dict[str, Any], minutes: float) -> Iterator[str]:
    """Runs each section in a process, then yields its name; unused time is passed on to the next ones."""
    ends = time.time()
    for section in sections:
        ends += 60 * minutes * SECTIONS[section] / sum(SECTIONS[name] for name in sections)
        command = [sys.executable, __file__, "--section", section, str(output), json.dumps(options), str(ends)]
        for _ in range(3):  # attempts
            process = subprocess.Popen(command, start_new_session=True)
            try:
                if process.wait(timeout=max(1.0, ends - time.time()) + 20) == 0:
                    break
            except subprocess.TimeoutExpired:
                print(f"{section}: ended, its time is over", flush=True)
                break
            finally:
                with suppress(ProcessLookupError):  # including its child processes
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        yield section


def main() -> None:
    """Runs the sections and writes the page."""
    if sys.argv[1:2] == ["--section"]:
        run_section(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]), float(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", default="build/gpu-kit", help="folder with tokenizers and sentences")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=25, help="that all sections take together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--trial", action="store_true", help="tiny shapes and few sentences: does it run at all?")
    arguments = parser.parse_args()
    from gpu_page import write_page
    from gpu_setup import facts

    machine = facts()
    print(json.dumps(machine), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = {"kit": arguments.kit, "device": arguments.device, "trial": arguments.trial}
    for _ in run_sections(arguments.sections, arguments.output, options, arguments.minutes):
        write_page(read_rows(arguments.output), machine, arguments.output)


if __name__ == "__main__":
    main()
