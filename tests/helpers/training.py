"""Training runs, in this process and in two of one group."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .processes import free_port


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Starts a process from a server that has imported the slow packages."""
    # where there is a GPU, they set it up when they are imported, and what is forked from them cannot use it
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(["sentence_transformers", "peft", "datasets", "accelerate"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def run_two(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in two processes of one group, as torchrun starts them."""
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    ranks = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    workers = [start(_run_rank, rank, function, *arguments) for rank in ranks]
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0]


def _run_rank(environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def state_of(output_dir: Path, step: int) -> Any:
    return json.loads((output_dir / f"checkpoint-{step}/trainer_state.json").read_text(encoding="utf-8"))


def logged(output_dir: Path, step: int, key: str = "loss") -> dict[int, float]:
    return {row["step"]: row[key] for row in state_of(output_dir, step)["log_history"] if key in row}


def run_to_the_end(main: Callable[[list[str]], None], argv: list[str], output_dir: Path) -> tuple[Path, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([*argv, f"--output_dir={output_dir}"])
    return output_dir, said.getvalue()
