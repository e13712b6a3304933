"""examples/serve.py over HTTP on loopback: its vectors are those of `encode`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_prompteol import TINY, PromptEOL

from .conftest import SENTENCES

ROOT = Path(__file__).resolve().parents[1]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answered: dict[str, Any] = json.load(answer)
    return answered


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The example in a process of its own, on a port that is free."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples/serve.py"), str(TINY), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1/embeddings"
    finally:
        server.terminate()
        server.wait(30)


def test_the_vectors_are_those_of_encode(url: str) -> None:
    answer = post(url, {"input": SENTENCES, "model": "tiny"})
    assert [row["index"] for row in answer["data"]] == list(range(len(SENTENCES)))
    served = np.array([row["embedding"] for row in answer["data"]])
    np.testing.assert_allclose(served, PromptEOL(str(TINY)).encode(SENTENCES), rtol=1e-5, atol=1e-5)


def test_one_string_is_one_sentence(url: str) -> None:
    (row,) = post(url, {"input": SENTENCES[0]})["data"]
    np.testing.assert_allclose(row["embedding"], PromptEOL(str(TINY)).encode(SENTENCES[0]), rtol=1e-5, atol=1e-5)
