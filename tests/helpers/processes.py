"""Processes of their own, and the command line in this one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from st_prompteol.cli import app


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class PlainProcess:
    """A process in which `st_prompteol` cannot be imported, and which encodes with plain sentence-transformers."""

    SCRIPT = """
import json, sys
sys.modules["st_prompteol"] = None
from sentence_transformers import SentenceTransformer
models = {}
for line in sys.stdin:
    request = json.loads(line)
    try:
        model = SentenceTransformer(request["path"], device="cpu", local_files_only=True)
        embeddings = model.encode(request["sentences"])
        answer = {"embeddings": embeddings.tolist(), "dimension": model.get_embedding_dimension()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("ANSWER" + json.dumps(answer), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def request(self, path: str | Path, sentences: list[str]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"path": str(path), "sentences": sentences}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError("the process without st_prompteol ended")

    def encode(self, path: str | Path, sentences: list[str]) -> np.ndarray[Any, Any]:
        answer = self.request(path, sentences)
        assert "error" not in answer, answer["error"]
        embeddings = np.array(answer["embeddings"], dtype=np.float32)
        assert embeddings.shape == (len(sentences), answer["dimension"])
        return embeddings

    def close(self) -> None:
        self.process.communicate(timeout=30)


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
