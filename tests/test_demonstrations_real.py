"""Real weights, WordNet and STS-B dev: 300 candidates by halving and exhaustively; the saved winner in plain hands."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from st_prompteol import PromptEOL, search_demonstrations
from st_prompteol.cli import app
from st_prompteol.demonstrations import read_candidates, sts_b_dev

from .conftest import PlainProcess
from .test_demonstrations import WORDNET

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def test_halving_finds_what_trying_everything_finds(
    stories: str, shared: Path, tmp_path: Path, plain: PlainProcess
) -> None:
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("needs Debian's wordnet-base, or WORDNET_DIR")
    data, candidates, out = str(shared / "senteval"), str(tmp_path / "c.jsonl"), tmp_path / "search"
    built = CliRunner().invoke(app, ["demonstrations", "build", candidates, "--dictionary", str(WORDNET)])
    assert built.exit_code == 0, built.output
    assert len(read_candidates(candidates)) == 300

    start = time.perf_counter()
    search = ["demonstrations", "search", stories, candidates, "--data-dir", data, "-o", str(out)]
    found = CliRunner().invoke(app, [*search, "--save", str(tmp_path / "winner")])
    assert found.exit_code == 0, found.output
    assert time.perf_counter() - start < 600

    # the log by itself: what was spent, in sentences
    pairs = sts_b_dev(data)
    rows = [json.loads(line) for line in (out / "search.jsonl").read_text(encoding="utf-8").splitlines()]
    places = [(json.dumps(row["demonstrations"]), tuple(row["pairs"])) for row in rows]
    assert len(set(places)) == len(places)
    distinct = len({sentence for pair in pairs for sentence in pair[:2]})
    assert sum(row["encodings"] for row in rows) <= 0.25 * 300 * distinct

    # in other hands: plain sentence-transformers, cosine, scipy
    left, right = (plain.encode(tmp_path / "winner", [pair[side] for pair in pairs]) for side in (0, 1))
    cosine = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    score = 100 * spearmanr(cosine, [pair[2] for pair in pairs]).statistic
    shown = re.search(r"Spearman (\S+) at layer -1 on 1500 pairs", found.stdout)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(score, abs=0.02)
    assert "(24.64 at layer -1)" in found.stdout  # without demonstration, as measured elsewhere

    # everything else on all pairs; what the log has is not measured again
    everything = search_demonstrations(
        PromptEOL(stories), read_candidates(candidates), pairs, exhaustive=True, log=out / "search.jsonl"
    )
    assert everything.winner.pairs == 1500
    assert len(everything.trials) == 300
    assert score > everything.winner.score - 0.3
