"""examples/serve.py as its command line starts it: its vectors are those of `encode`."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import pytest

from st_prompteol import TINY, PromptEOL

from . import ROOT
from .helpers import SENTENCES

SERVE = ROOT / "examples/serve.py"


def test_the_vectors_are_those_of_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    uvicorn = pytest.importorskip("uvicorn")
    served: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.update(app=app, **options))
    monkeypatch.setattr("sys.argv", ["serve.py", str(TINY), "--port", "8123"])
    runpy.run_path(str(SERVE), run_name="__main__")
    assert (served["host"], served["port"]) == ("127.0.0.1", 8123)
    client = testclient.TestClient(served["app"])
    embeddings = PromptEOL(str(TINY)).encode(SENTENCES)
    for sent, expected in ((SENTENCES, embeddings), (SENTENCES[0], embeddings[:1])):
        answer = client.post("/v1/embeddings", json={"input": sent, "model": "tiny"}).json()
        assert answer["model"] == "tiny"
        assert [row["index"] for row in answer["data"]] == list(range(len(expected)))
        np.testing.assert_allclose([row["embedding"] for row in answer["data"]], expected, rtol=1e-5, atol=1e-5)
