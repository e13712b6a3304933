"""Processes of their own, and the command line in this one."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from st_prompteol.cli import app

from .. import ROOT

PRELOADED = ("datasets", "accelerate", "uvicorn", "fastapi", "st_prompteol.model", "st_prompteol.corpus")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Program:
    """A program of `tests/programs` that answers calls of its functions until it is closed."""

    def __init__(self, name: str, *, inside: Sequence[str] = (), **options: Any) -> None:
        command = [*inside, sys.executable, "-m", f"tests.programs.{name}"]
        options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.DEVNULL, **options}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options)
        self.answer = ""  # the last one, as it came
        self.printed = ""

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        call = {"function": function, "arguments": arguments, "options": options}
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        self.answer = next((line for line in self.process.stdout if line.startswith("ANSWER")), "")
        assert self.answer, f"{self.process.args} ended"
        answer = json.loads(self.answer.removeprefix("ANSWER"))
        assert "traceback" not in answer, answer["traceback"]
        self.printed = answer["printed"]
        return answer["result"]

    def close(self) -> None:
        self.process.communicate(timeout=30)


def run_program(
    name: str, *arguments: str, inside: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Runs a program of `tests/programs`, which ends well."""
    done = subprocess.run(
        [*inside, sys.executable, "-m", f"tests.programs.{name}", *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


class PlainProcess(Program):
    """A process in which `st_prompteol` cannot be imported, and which encodes with plain sentence-transformers."""

    def __init__(self) -> None:
        super().__init__("stranger")

    def encode(self, path: str | Path, sentences: list[str]) -> np.ndarray[Any, Any]:
        embeddings = self.call("encode", str(path), sentences, local_files_only=True)
        return np.array(embeddings, dtype=np.float32)


class Forked:
    """A process that runs a function, forked from one that has imported what takes ten seconds to import.

    It has subprocess.Popen's methods, and what it prints comes by `output`.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any, **environment: str) -> None:
        # where there is a GPU, what is imported sets it up, and what is forked from that cannot use it
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        context.set_forkserver_preload([*PRELOADED, __name__])
        reading, writing = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(writing, environment, function, *arguments))
        self.process.start()
        writing.close()
        self.output = open(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 240) -> int | None:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"it did not end in {timeout:g} seconds"
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def communicate(self) -> str:
        """Waits for the end and returns what was printed and not read."""
        with self.output:
            printed = self.output.read()
        self.wait()
        return printed


def _run(writing: Any, environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(writing.fileno(), descriptor)
        setattr(sys, name, open(descriptor, "w", buffering=1, encoding="utf-8", closefd=False))
    writing.close()
    torch.set_num_threads(1)
    function(*arguments)


def command_line(*arguments: str) -> None:
    """`st-prompteol`, in a process of its own."""
    sys.argv = ["st-prompteol", *arguments]
    app()


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may do everything: its test runs as nobody."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
