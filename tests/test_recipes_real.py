"""Real weights, WordNet and STS-B dev: 300 candidates by halving and exhaustively, killed once; the winner saved."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from st_prompteol import PromptEOL
from st_prompteol.cli import app
from st_prompteol.recipes import read_candidates, search, sts_b_dev

from .helpers.processes import Forked, PlainProcess, command_line
from .helpers.searches import WORDNET, correlate, distinct

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.mark.parametrize("name", ["tiny", pytest.param("stories", marks=pytest.mark.long)])
def test_a_recipe_is_found_saved_and_scores_elsewhere_what_the_search_printed(
    name: str, stories: str, shared: Path, tmp_path: Path, plain: PlainProcess
) -> None:
    data, out = str(shared / "senteval"), tmp_path / "search"
    command = ["search", {"tiny": "tiny", "stories": stories}[name], "examples/candidates.tsv", "--data-dir", data]
    command = [*command, "-o", str(out), "--save", str(tmp_path / "saved")]
    log = out / "search.jsonl"
    process = Forked(command_line, *command)
    while not log.exists() or log.read_bytes().count(b"\n") < 15:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert CliRunner().invoke(app, [*command, "-o", str(tmp_path / "whole")]).stdout == found.stdout

    # in other hands: plain sentence-transformers, cosine, scipy
    pairs = sts_b_dev(data)
    left, right = (plain.encode(tmp_path / "saved", [pair[side] for pair in pairs]) for side in (0, 1))
    shown = re.search(r"Spearman (\S+) on 1500 pairs", found.stdout)
    assert float(shown[1]) == pytest.approx(correlate(left, right, pairs), abs=0.02)


@pytest.mark.long
def test_halving_finds_what_trying_everything_finds(stories: str, shared: Path, tmp_path: Path) -> None:
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("needs Debian's wordnet-base, or WORDNET_DIR")
    data, candidates, out = str(shared / "senteval"), str(tmp_path / "c.jsonl"), tmp_path / "search"
    built = CliRunner().invoke(app, ["candidates", candidates, "--dictionary", str(WORDNET)])
    assert built.exit_code == 0, built.output
    assert len(read_candidates(candidates)) == 300

    start = time.process_time()
    one = ["--templates", "prompteol", "--layers", "-1", "--no-standardize"]
    found = CliRunner().invoke(app, ["search", stories, candidates, "--data-dir", data, "-o", str(out), *one])
    assert found.exit_code == 0, found.output
    assert time.process_time() - start < 600
    assert "prompteol, layer -1: 24.64 on 1500 pairs" in found.stderr  # as measured elsewhere

    # the log by itself: what was spent, in sentences
    pairs = sts_b_dev(data)
    rows = [json.loads(line) for line in (out / "search.jsonl").read_text(encoding="utf-8").splitlines()]
    places = [(json.dumps(row["demonstrations"]), row["pairs"]) for row in rows]
    assert len(set(places)) == len(places)
    assert sum(row["encodings"] for row in rows) <= 0.25 * 300 * len(distinct(pairs))

    options = {"templates": ["prompteol"], "layers": [-1], "standardize": (), "exhaustive": True}
    everything = search(PromptEOL(stories), pairs, read_candidates(candidates), **options, log=out / "search.jsonl")
    assert everything.winner.pairs == 1500
    assert len(everything.trials) == 301
    shown = re.search(r"Spearman (\S+) on 1500 pairs", found.stdout)
    assert float(shown[1]) > everything.winner.score - 0.3
