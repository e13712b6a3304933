"""Tables and plots: averages as the paper takes them, published rows, formats, the scaling figure."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from st_prompteol.evaluation import STS_TASKS, TRANSFER_TASKS, ScoreRow, plot_scaling, published_rows, write_scores
from st_prompteol.evaluation.published import DEMONSTRATIONS, PUBLISHED
from st_prompteol.evaluation.score_table import table
from st_prompteol.files.output import save_table

SCORES = dict(zip(STS_TASKS, [40.634, 43.835, 37.255, 49.545, 44.105, 41.085, 49.265], strict=True))


def test_averages_round_each_task_first_and_need_all_of_them() -> None:
    row = ScoreRow("m", "x", SCORES)
    assert row.average("STS avg") == pytest.approx(sum(round(score, 2) for score in SCORES.values()) / 7, abs=1e-12)
    assert row.average("transfer avg") is None
    assert ScoreRow("m", "x", {"STS12": 1.0}).average("STS avg") is None


def test_tables_hold_the_same_in_every_format(tmp_path: Path) -> None:
    rows = [
        ScoreRow("org/a|b", "PromptEOL", {**SCORES, "STSBenchmark-dev": 50.0, "STS12 (MTEB)": 1.005}, parameters=10),
        ScoreRow(str(tmp_path), "mean", {"MR": 57.21}),
    ]
    header, first, second = table(rows)
    assert header == [
        *("model", "method", "STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "MR", "STS-B dev"),
        *("STS12 (MTEB)", "STS avg"),
    ]
    assert first[:3] == ["org/a|b", "PromptEOL", "40.63"]
    assert second == [tmp_path.name, "mean", *[""] * 7, "57.21", "", "", ""]
    texts = {}
    for suffix in (".md", ".csv", ".json"):
        write_scores(rows, tmp_path / f"table{suffix}")
        texts[suffix] = (tmp_path / f"table{suffix}").read_text(encoding="utf-8")
    assert list(csv.reader(io.StringIO(texts[".csv"]))) == [header, first, second]
    markdown = texts[".md"].splitlines()
    assert markdown[1] == "| --- | --- |" + " ---: |" * 11
    assert "org/a\\|b" in markdown[2]
    assert {line.replace("\\|", "").count("|") for line in markdown} == {len(header) + 1}
    content = json.loads(texts[".json"])
    assert content[0]["scores"]["STS12"] == 40.634
    assert content[0]["averages"] == {"STS avg": pytest.approx(rows[0].average("STS avg"))}
    save_table([["sentence", "score"], ["x", "1.00"]], tmp_path / "texts.json")
    assert json.loads((tmp_path / "texts.json").read_text(encoding="utf-8")) == [{"sentence": "x", "score": "1.00"}]
    with pytest.raises(ValueError, match=r"end its name in \.md, \.csv or \.json"):
        write_scores(rows, tmp_path / "table.txt")


def test_published_numbers_stand_beside_the_models_that_they_are_of() -> None:
    rows = published_rows([ScoreRow("facebook/opt-2.7b", "PromptEOL", {}), ScoreRow("x/y", "PromptEOL", {})])
    assert [(row.method, row.average("STS avg")) for row in rows] == [
        ("PromptEOL + demonstration (published)", 78.18),
        ("PromptEOL + CSE (published)", 85.62),
    ]
    assert published_rows([ScoreRow("x/y", "PromptEOL", {})]) == []
    llama = published_rows([ScoreRow("meta-llama/Llama-2-7b-hf", "PromptEOL", {})])
    assert (llama[0].average("STS avg"), llama[0].average("transfer avg")) == (70.03, 90.94)
    assert len(PUBLISHED) == 23
    assert DEMONSTRATIONS["facebook/opt-13b"].word == "Venison"


def test_the_scaling_plot_is_drawn_as_png_and_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ScoreRow(f"org/m-{size}", method, {task: base + size / 1e6 for task in STS_TASKS}, parameters=size)
        for size in (1_000_000, 5_000_000, 30_000_000)
        for method, base in (("PromptEOL", 30.0), ("mean of tokens", 20.0))
    ]
    plot_scaling(rows, tmp_path / "scaling.png")
    svg = (tmp_path / "scaling.svg").read_text(encoding="utf-8")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert svg.count('<g id="line2d') > 2 * len({row.method for row in rows})
    partial = [
        ScoreRow("org/a", "x", {"STS12": 1.0, "MR": 2.0}, parameters=10),
        ScoreRow("org/b", "x", {"STS12": 3.0}, 20),
    ]
    plot_scaling(partial, tmp_path / "partial.svg")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_scaling([ScoreRow("org/a", "x", {task: 1.0 for task in TRANSFER_TASKS})], tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"end its name in \.png or \.svg"):
        plot_scaling(rows, tmp_path / "scaling.jpg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib, of the extra eval: pip install 'st-prompteol\[eval\] @ git"):
        plot_scaling(rows, tmp_path / "scaling.png")
