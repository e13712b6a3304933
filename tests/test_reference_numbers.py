"""Real weights and sentences: what was measured for stories260k on STS-B dev, by library and command line.

The numbers are those of the reference's way of computing: transformers alone, a sentence at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from typer.testing import CliRunner

from st_prompteol import PromptEOL, PromptEOLTransformer
from st_prompteol.cli import app

from .helpers.sentences import JOCKEY

pytestmark = pytest.mark.shared
Pairs = tuple[list[str], list[str], list[float]]


def read_pairs(shared: Path, every: int) -> Pairs:
    """Of STS-B dev."""
    lines = (shared / "senteval/STS/STSBenchmark/sts-dev.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1500
    rows = [line.split("\t") for line in lines[::every]]
    return [row[5] for row in rows], [row[6] for row in rows], [float(row[4]) for row in rows]


@pytest.fixture(params=[20, pytest.param(1, marks=pytest.mark.slow)], ids=["every twentieth pair", "all pairs"])
def dev(shared: Path, request: pytest.FixtureRequest) -> tuple[int, Pairs]:
    """STS-B dev, or every twentieth pair of it, and which score of the two that is."""
    return int(request.param == 1), read_pairs(shared, request.param)


def spearman(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], gold: list[float]) -> float:
    cosine = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return 100 * float(spearmanr(cosine, gold).statistic)


def pipeline(path: str, pooling: str, template: str) -> SentenceTransformer:
    return SentenceTransformer(modules=[PromptEOLTransformer(path, template=template), Pooling(64, pooling)])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: PromptEOL(path), (21.36, 24.64)),
        (lambda path: PromptEOL(path, layer=-2), (26.58, 24.37)),
        (lambda path: PromptEOL(path, layer=-5), (26.08, 25.74)),
        (lambda path: PromptEOL(path, demonstrations=[JOCKEY]), (26.52, 23.55)),
        (lambda path: pipeline(path, "mean", "none"), (43.43, 50.56)),
        (lambda path: PromptEOL(path, template="none"), (43.58, 32.28)),
        (lambda path: pipeline(path, "lasttoken", "none"), (43.58, 32.28)),
        (lambda path: PromptEOL(path, template="prompt"), (27.95, 31.25)),
    ],
    ids=["prompteol", "layer -2", "layer -5", "jockey", "mean", "last token", "last token by hand", "prompt"],
)
def test_sts_b_dev(stories: str, dev: tuple[int, Pairs], make: Any, expected: tuple[float, float]) -> None:
    which, (left, right, gold) = dev
    model = make(stories)
    assert spearman(model.encode(left), model.encode(right), gold) == pytest.approx(expected[which], abs=0.02)


@pytest.mark.parametrize(("layer", "expected"), [("-1", 21.36), ("-2", 26.58)])
def test_sts_b_dev_through_the_command_line(
    stories: str, shared: Path, tmp_path: Path, layer: str, expected: float
) -> None:
    *sides, gold = read_pairs(shared, every=20)
    embeddings = []
    for number, sentences in enumerate(sides):
        source, out = tmp_path / f"{number}.txt", tmp_path / f"{number}.npy"
        source.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
        result = CliRunner().invoke(app, ["encode", stories, str(source), "-o", str(out), "--layer", layer])
        assert result.exit_code == 0, result.output
        embeddings.append(np.load(out))
    assert spearman(*embeddings, gold) == pytest.approx(expected, abs=0.02)
