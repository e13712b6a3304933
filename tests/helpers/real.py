"""Real LLMs with real weights."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .. import SHARED

FOLDER = Path(os.environ.get("REAL_LLMS", "~/.cache/real-llms")).expanduser()


@cache
def find_real_llm(name: str) -> str:
    """Returns the folder of a real LLM, which `../shared/real_llms.py` makes where it is missing."""
    folder, script = FOLDER / name, SHARED / "real_llms.py"
    if folder.is_dir():
        return str(folder)
    if not script.is_file():
        pytest.skip(f"needs {folder}, or ../shared/real_llms.py to make it")
    command = [sys.executable, str(script), name, "--folder", str(FOLDER)]
    made = subprocess.run(command, capture_output=True, text=True)
    if "CalledProcessError" in made.stderr:  # pip's
        pytest.skip(f"needs {folder}, and its packages cannot be downloaded")
    assert made.returncode == 0, made.stderr[-3000:]
    return str(folder)
