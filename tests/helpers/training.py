"""Training runs, in this process and in two of one group."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import Forked, free_port


def run_two(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in two processes of one group, as torchrun starts them."""
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    ranks = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    workers = [Forked(function, *arguments, **rank) for rank in ranks]
    printed = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed


def state_of(output_dir: Path, step: int) -> Any:
    return json.loads((output_dir / f"checkpoint-{step}/trainer_state.json").read_text(encoding="utf-8"))


def logged(output_dir: Path, step: int, key: str = "loss") -> dict[int, float]:
    return {row["step"]: row[key] for row in state_of(output_dir, step)["log_history"] if key in row}


def run_to_the_end(main: Callable[[list[str]], None], argv: list[str], output_dir: Path) -> tuple[Path, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([*argv, f"--output_dir={output_dir}"])
    return output_dir, said.getvalue()
