"""The GPU benchmark on a CPU with tiny shapes: every row has a result, and a row that fails holds nobody up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    command = [sys.executable, "benchmarks/gpu.py", "--trial", "--device", "cpu"]
    command += ["--kit", str(kit), "--output", str(output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.shared
def test_every_row_has_a_result(kit: Path, tmp_path: Path) -> None:
    run(kit, tmp_path / "gpu")
    rows = json.loads((tmp_path / "gpu/gpu.json").read_text(encoding="utf-8"))["rows"]
    assert {row["section"] for row in rows} == {"right", "encode", "train", "nf4", "corpora"}
    assert [row for row in rows if "error" in row] == []
    shared = [row["result"]["is behind a shared head"] for row in rows if "is behind a shared head" in row["result"]]
    assert shared == [True] * 15
    page = (tmp_path / "gpu/gpu.md").read_text(encoding="utf-8")
    assert "Rows that failed" not in page
    assert page.count("\n| tiny |") > 10
    assert (tmp_path / "gpu/gpu-encode.png").stat().st_size > 10_000
    assert (tmp_path / "gpu/gpu-train.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.shared
def test_a_row_that_fails_is_named_and_measured_again(kit: Path, tmp_path: Path) -> None:
    (kit / "tokenizers/llama2").rename(kit / "elsewhere")
    output = tmp_path / "gpu"
    run(kit, output, "--sections", "encode")
    page = (output / "gpu.md").read_text(encoding="utf-8")
    assert "| tiny |" in page
    assert "| stories260k |" not in page
    assert "- encode, stories260k, one sentence: " in page

    (kit / "elsewhere").rename(kit / "tokenizers/llama2")
    printed = run(kit, output, "--sections", "encode")
    assert "encode: tiny" not in printed
    page = (output / "gpu.md").read_text(encoding="utf-8")
    assert "| stories260k |" in page
    assert "Rows that failed" not in page
