"""mteb, unmodified, over a Hub on loopback: PromptEOL and the same folder opened by plain sentence-transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from st_prompteol import TINY, PromptEOL

from .helpers.hub import Hub, hub_environment
from .helpers.processes import run_program
from .helpers.sentences import JOCKEY

pytestmark = pytest.mark.shared

ALL_TASKS = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R", "Banking77Classification"]


# Classification is among the long tests: the classifier of MTEB stops before it has converged, so differences in the
# seventh digit of embeddings move its accuracy, on some processors by 0.02 points for Banking77.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        pytest.param("stories", ["STS16"], marks=pytest.mark.long),
        (TINY, ["STSBenchmark", "SICK-R"]),
        pytest.param(TINY, ALL_TASKS, marks=pytest.mark.long),
    ],
)
def test_scores_over_the_loopback_hub(
    shared: Path, stories: str, tmp_path: Path, model: str, tasks: list[str]
) -> None:
    folder, results = tmp_path / "some-prompteol", tmp_path / "ours"
    path = stories if model == "stories" else model
    PromptEOL(path, demonstrations=[JOCKEY]).save_pretrained(str(folder))
    hub = Hub()
    hub.seed_root(shared / "hub", json.loads((shared / "hub/revisions.json").read_text(encoding="utf-8")))
    with hub:
        environment = hub_environment(hub.url, tmp_path / "home")
        done = run_program("score_by_mteb", str(folder), str(results), *tasks, environment=environment)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert set(answer["plain"]) == set(tasks)
    assert all(0 < score < 1 for score in answer["plain"].values())
    # embeddings are equal to 1e-5, so that ranks of nearly equal pairs may change places: 0.01 points of 100
    assert answer["ours"] == pytest.approx(answer["plain"], abs=1e-4)
    assert answer["again"] == pytest.approx(answer["ours"], abs=1e-6)
    assert re.match(r"mteb knows no task or benchmark 'STS112': did you mean .*STS12", answer["unknown"])
    files = [path.relative_to(results) for path in results.rglob("*.json")]
    assert {path.stem for path in files} - {"model_meta"} == set(tasks)
    assert all(any("some-prompteol" in part for part in path.parts) for path in files), files
    assert all(any(part.startswith("local-") for part in path.parts) for path in files), files
