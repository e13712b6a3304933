"""The GPU run on a CPU with toy shapes: every row has a result, and a row that fails holds nobody up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import ROOT


@pytest.fixture
def kit(shared: Path, tmp_path: Path) -> Path:
    kit = tmp_path / "kit"
    for name in ("opt", "llama2"):
        shutil.copytree(shared / "tokenizers" / name, kit / "tokenizers" / name)
    (kit / "sentences.txt").write_text("".join(f"{number} birds sing.\n" for number in range(64)), encoding="utf-8")
    return kit


def run(kit: Path, output: Path, *options: str) -> str:
    """Runs the trial and returns its page."""
    command = [sys.executable, "-m", "benchmarks.speed.gpu", "--trial", "--kit", str(kit), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (output / "gpu.md").read_text(encoding="utf-8")


def rows_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.shared
def test_every_row_has_a_result(kit: Path, tmp_path: Path) -> None:
    page = run(kit, tmp_path / "gpu")
    assert "failed" not in page
    steps = ("encode", "nf4", "train", "corpus")
    assert all(page.count(f"\n## {step}\n") == 1 for step in ("tests", *steps))
    rows = {step: [row for row in rows_of(tmp_path / f"gpu/{step}.jsonl") if "result" in row] for step in steps}
    assert {step: len(each) for step, each in rows.items()} == {"encode": 2, "nf4": 2, "train": 6, "corpus": 4}
    compared = [row["result"] for step in ("encode", "nf4") for row in rows[step] if "batch" in row]
    assert [result["shared"] for result in compared] == [True] * 4
    assert page.count("\n| toy |") >= 10
    assert (tmp_path / "gpu/encode.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.shared
def test_a_row_that_fails_is_named_and_measured_again(kit: Path, tmp_path: Path) -> None:
    (kit / "tokenizers/llama2").rename(kit / "elsewhere")
    page = run(kit, tmp_path / "gpu", "--steps", "nf4")
    assert "- failed: device cpu, model stories260k, dtype nf4, demonstrations 0, batch 8: " in page
    assert "| stories260k |" not in page

    (kit / "elsewhere").rename(kit / "tokenizers/llama2")
    page = run(kit, tmp_path / "gpu", "--steps", "nf4")
    assert "| stories260k |" in page
    assert "failed" not in page
    before = len(rows_of(tmp_path / "gpu/nf4.jsonl"))
    run(kit, tmp_path / "gpu", "--steps", "nf4")
    assert len(rows_of(tmp_path / "gpu/nf4.jsonl")) == before
