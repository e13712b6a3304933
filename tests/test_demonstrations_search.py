"""The search: against a plain loop over encode and scipy, resumed, killed, over layers, shots and devices."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from st_prompteol import Demonstration, PromptEOL, search_demonstrations
from st_prompteol.cli import app
from st_prompteol.demonstrations import Candidate, SearchResult, write_candidates
from st_prompteol.demonstrations.encoder import ShotEncoder
from st_prompteol.demonstrations.log import SearchLog
from st_prompteol.demonstrations.report import summarize

from .conftest import SENTENCES, WORDS, PlainProcess

LETTERS = [one + other for one in "abcdefghij" for other in "abcdefghij"]
Pair = tuple[str, str, float]


def make_pairs(count: int = 60, seed: int = 0) -> list[Pair]:
    """Pairs of sentences of a few words, which recur; gold is the share of words in common."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS.split(), size=rng.integers(3, 8))) for _ in range(count)]
    pairs = []
    for _ in range(count):
        a, b = rng.choice(sentences, size=2, replace=False)
        one, other = set(a.split()), set(b.split())
        pairs.append((str(a), str(b), 5 * len(one & other) / len(one | other)))
    return pairs


def make_candidates(count: int = 12, seed: int = 1) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [
        Candidate(
            Demonstration(" ".join(rng.choice(words, size=4)) + ".", f"{rng.choice(words)}-{LETTERS[number]}".title()),
            ["wordnet", "llm"][number % 2],
        )
        for number in range(count)
    ]


def score_of(model: PromptEOL, demonstrations: tuple[Demonstration, ...], pairs: list[Pair], layer: int = -1) -> float:
    """What anyone would write: encode both sides, cosine, scipy's Spearman."""
    twin = copy.deepcopy(model)
    twin.template, twin.layer = replace(twin.template, demonstrations=demonstrations), layer
    left, right = (twin.encode([pair[side] for pair in pairs]) for side in (0, 1))
    cosine = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return 100 * float(spearmanr(cosine, [pair[2] for pair in pairs]).statistic)


@pytest.fixture
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["llama"])


def test_the_winner_is_that_of_a_plain_loop_and_saved_with_the_model(
    model: PromptEOL, tmp_path: Path, plain: PlainProcess
) -> None:
    pairs, candidates = make_pairs(), make_candidates(6)
    result = search_demonstrations(model, candidates, pairs, exhaustive=True)
    scores = {one.demonstration: score_of(model, (one.demonstration,), pairs) for one in candidates}
    for trial in result.trials:
        assert trial.score == pytest.approx(scores[trial.demonstrations[0]], abs=0.05)
        assert trial.pairs == 60
    assert result.baseline.score == pytest.approx(score_of(model, (), pairs), abs=0.05)
    best = max(scores, key=lambda one: scores[one])
    assert scores[best] > result.baseline.score  # else this test says nothing
    assert result.winner.demonstrations == (best,)
    assert result.winner.gain.low < result.winner.gain.value < result.winner.gain.high
    assert result.runner_up is not None
    assert result.over_runner_up is not None
    assert result.over_runner_up.value == pytest.approx(result.winner.score - result.runner_up.score)
    assert model.template.demonstrations == (best,)
    distinct = len({sentence for pair in pairs for sentence in pair[:2]})
    assert result.exhaustive_encodings == 6 * distinct
    assert result.encodings == 7 * distinct  # and no demonstration

    model.save_pretrained(str(tmp_path / "winner"))
    embeddings = plain.encode(tmp_path / "winner", SENTENCES)
    expected = model.encode(SENTENCES)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5 * np.abs(expected).max())


def test_halving_spends_less_and_ends_on_all_pairs(model: PromptEOL) -> None:
    pairs, candidates = make_pairs(100), make_candidates(60)
    lines: list[str] = []
    result = search_demonstrations(model, candidates, pairs, show=lines.append)
    counts = [sum(trial.pairs == pairs for trial in result.trials) for pairs in (10, 20, 40, 100)]
    assert counts == [40, 12, 4, 4]
    assert result.encodings < 0.35 * result.exhaustive_encodings  # the few words recur in every subset
    assert [line.split(":")[0] for line in lines] == [
        "60 candidates on 10 pairs",
        "20 candidates on 20 pairs",
        "8 candidates on 40 pairs",
        "4 candidates on 100 pairs",
    ]
    assert result.winner.score == pytest.approx(score_of(model, result.winner.demonstrations, pairs), abs=0.05)


def test_everything_is_measured_once_and_only_for_the_same_search(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates, log = make_pairs(), make_candidates(4), tmp_path / "search.jsonl"

    def search(model: PromptEOL, pairs: list[Pair] = pairs, **options: Any) -> tuple[SearchResult, int]:
        before = log.read_bytes().count(b"\n") if log.exists() else 0
        result = search_demonstrations(model, candidates, pairs, log=log, exhaustive=True, **options)
        return result, log.read_bytes().count(b"\n") - before

    first, lines = search(PromptEOL(causal_lms["llama"]))
    assert lines == 4 * 5
    again, lines = search(PromptEOL(causal_lms["llama"]))
    assert lines == 0
    assert again == first
    halved = search_demonstrations(PromptEOL(causal_lms["llama"]), candidates, pairs, log=log)
    assert log.read_bytes().count(b"\n") == 4 * 5  # of the same subsets
    assert halved.winner.score <= first.winner.score

    changed = PromptEOL(causal_lms["llama"])
    changed[0].model.layers[0].mlp.down_proj.weight.data.mul_(1.01)
    others = [
        (changed, {}),
        (PromptEOL(causal_lms["llama"], layer=-2), {}),
        (PromptEOL(causal_lms["llama"], template='The text "{sentence}" is:"'), {}),
        (PromptEOL(causal_lms["llama"], truncate_dim=16), {}),
        (PromptEOL(causal_lms["llama"], model_kwargs={"dtype": "bfloat16"}), {}),
        (PromptEOL(causal_lms["llama"]), {"pairs": [(a, b, 5 - gold) for a, b, gold in pairs]}),
        (PromptEOL(causal_lms["llama"]), {"seed": 1}),
    ]
    for model, options in others:
        assert search(model, **options)[1] == 4 * 5
    row = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert {"model", "revision", "template", "layer", "precision", "data", "demonstrations", "pairs", "score"} <= set(
        row
    )


def test_several_layers_from_one_pass(causal_lms: dict[str, str]) -> None:
    pairs, candidates = make_pairs(40), make_candidates(4)
    for architecture in ("llama", "opt-350m", "gpt2"):
        model = PromptEOL(causal_lms[architecture])
        result = search_demonstrations(model, candidates, pairs, layers=(-2, -1, -3), exhaustive=True)
        scores = {
            (one.demonstration, layer): score_of(model, (one.demonstration,), pairs, layer)
            for one in candidates
            for layer in (-1, -2, -3)
        }
        for trial in result.trials:
            of_layers = {layer: scores[trial.demonstrations[0], layer] for layer in (-1, -2, -3)}
            assert trial.score == pytest.approx(max(of_layers.values()), abs=0.1)
            assert of_layers[trial.layer] == pytest.approx(trial.score, abs=0.1)
        assert (model.template.demonstrations, model.layer) == (result.winner.demonstrations, result.winner.layer)


@pytest.mark.parametrize("architecture", ["opt", "gpt2", "mistral", "gemma2", "qwen3"])
def test_embeddings_are_those_of_encode(causal_lms: dict[str, str], architecture: str) -> None:
    sentences = [*dict.fromkeys(SENTENCES), "a very long one, " * 40]
    model = PromptEOL(causal_lms[architecture])
    model.max_seq_length = 200
    encoder = ShotEncoder(model, sentences, [-1, -2], batch_size=3)
    shots = (Demonstration('He said "no".', "Refusal"), Demonstration("meat from a deer!", "Venison"))
    for demonstrations in ((), shots[:1], shots):
        found = encoder.encode(demonstrations, range(len(sentences)))
        twin = PromptEOL(causal_lms[architecture], demonstrations=demonstrations, max_seq_length=200)
        for layer in (-1, -2):
            twin.layer = layer
            expected = twin.encode(sentences)
            np.testing.assert_allclose(found[layer], expected, atol=1e-5 * np.abs(expected).max())


def test_sentences_are_tokenised_once(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, candidates = make_pairs(200), make_candidates(10)
    tokenised = []
    preprocess = PromptEOL.preprocess
    monkeypatch.setattr(
        PromptEOL,
        "preprocess",
        lambda self, inputs, **options: tokenised.append(len(inputs)) or preprocess(self, inputs, **options),
    )
    search_demonstrations(model, candidates, pairs, exhaustive=True)
    distinct = len({sentence for pair in pairs for sentence in pair[:2]})
    assert distinct <= sum(tokenised) <= distinct + 11 * 16


def test_more_shots_are_added_while_they_gain(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, candidates = make_pairs(60), make_candidates(5)
    one = search_demonstrations(model, candidates, pairs, exhaustive=True)
    lines: list[str] = []
    result = search_demonstrations(model, candidates, pairs, exhaustive=True, shots=2, show=lines.append)
    (step,) = result.steps
    (first,) = one.winner.demonstrations
    two = [trial for trial in result.trials if len(trial.demonstrations) == 2]
    tried = {trial.demonstrations for trial in two}
    others = [candidate.demonstration for candidate in candidates if candidate.demonstration != first]
    assert tried == {pair for other in others for pair in ((first, other), (other, first))}
    best = max(two, key=lambda trial: trial.score)
    assert best.score == pytest.approx(score_of(model, best.demonstrations, pairs), abs=0.05)
    assert step.value == pytest.approx(best.score - one.winner.score)
    expected = one.winner.demonstrations if step.is_noise or step.value <= 0 else best.demonstrations
    assert result.winner.demonstrations == expected
    assert ("(noise)" in lines[-1]) == step.is_noise

    # with as little noise as a wide interval leaves, the longer one is kept
    from st_prompteol.demonstrations.statistics import Gain

    monkeypatch.setattr(Gain, "is_noise", False)
    result = search_demonstrations(model, candidates, pairs, exhaustive=True, shots=5)
    lengths = [len(result.winner.demonstrations), len(result.steps)]
    assert lengths[0] == 1 + sum(step.value > 0 for step in result.steps)


def test_devices_share_the_work(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates = make_pairs(40), make_candidates(8)
    alone = search_demonstrations(PromptEOL(causal_lms["opt"]), candidates, pairs)
    model = PromptEOL(causal_lms["opt"])
    both = search_demonstrations(model, candidates, pairs, devices=["cpu", "cpu"], log=tmp_path / "s.jsonl")
    assert both.winner.demonstrations == alone.winner.demonstrations
    assert both.encodings == alone.encodings
    for one, other in zip(both.trials, alone.trials, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.1)


def test_quantised_weights_are_searched_and_told_from_others(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates, log = make_pairs(20), make_candidates(3), tmp_path / "search.jsonl"
    for quantization in (None, "nf4"):
        model = PromptEOL(causal_lms["opt-64"], quantization=quantization, device="cpu")
        result = search_demonstrations(model, candidates, pairs, log=log, layers=[-1, -2])
        best = max(result.trials, key=lambda trial: trial.score)
        assert best.score == pytest.approx(score_of(model, best.demonstrations, pairs, best.layer), abs=3)
    precisions = [json.loads(line)["precision"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(set(precisions)) == 2
    assert "bitsandbytes" in precisions[-1]
    assert precisions.count(precisions[0]) == precisions.count(precisions[-1])


def test_no_demonstration_wins_where_none_helps(model: PromptEOL) -> None:
    pairs = [(first, second, -gold) for first, second, gold in make_pairs(40)]
    scored = search_demonstrations(model, make_candidates(12), pairs, exhaustive=True)
    worse = [trial.demonstrations[0] for trial in scored.trials if trial.score < scored.baseline.score]
    assert worse  # else this test says nothing
    result = search_demonstrations(model, worse, pairs, exhaustive=True)
    assert result.winner == result.baseline
    assert model.template.demonstrations == ()
    assert "no candidate beats it" in summarize(result)[0]


def test_bad_input_is_one_sentence_and_leaves_the_model_alone(
    model: PromptEOL, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, candidates = make_pairs(20), make_candidates(3)
    kept = Demonstration("kept.", "Kept")
    model.template = replace(model.template, demonstrations=(kept,))
    long = Demonstration("word " * 300, "Long")
    mistakes: list[tuple[Any, Any, dict[str, Any], str]] = [
        ([], pairs, {}, "no candidate to try"),
        (candidates, pairs[:5], {}, "5 scored pairs are too few"),
        (candidates, [(a, b, 2.5) for a, b, _ in pairs], {}, "All 20 gold scores are 2.5"),
        (candidates, [*pairs, ("a", "b", float("nan"))], {}, "gold score of pair 21 is nan"),
        (candidates, pairs, {"shots": 0}, "shots=0"),
        (candidates, pairs, {"layers": [-9]}, "layer=-9 is out of range"),
        ([long], pairs, {}, "None of the 1 candidates fits into max_seq_length=256"),
    ]
    for tried, scored, options, message in mistakes:
        with pytest.raises(ValueError, match=message):
            search_demonstrations(model, tried, scored, **options)
        assert model.template.demonstrations == (kept,)
    with caplog.at_level(logging.WARNING):
        result = search_demonstrations(model, [*candidates, Candidate(long), candidates[0]], pairs)
    assert "it is left out" in caplog.text
    assert "1 duplicate" in caplog.text
    assert len(result.trials) == 3
    model.template = replace(model.template, preprocessing="none", demonstrations=())
    with pytest.raises(ValueError, match="ends a quotation"):
        search_demonstrations(model, [Demonstration('a "quoted" word', "Word")], pairs)


def write_search(folder: Path, count: int = 30) -> list[str]:
    write_candidates(make_candidates(count), folder / "c.jsonl")
    rows = [{"sentence1": a, "sentence2": b, "score": gold} for a, b, gold in make_pairs(60)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(folder / "c.jsonl"), "--pairs", str(folder / "p.jsonl")]


def test_killed_in_the_middle_it_goes_on_to_the_same_winner(causal_lms: dict[str, str], tmp_path: Path) -> None:
    arguments = ["demonstrations", "search", causal_lms["llama"], *write_search(tmp_path)]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code = "from st_prompteol.cli import app; app()"
    result = CliRunner().invoke(app, [*arguments, "-o", str(whole)])
    assert result.exit_code == 0, result.output

    log = broken / "search.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "-o", str(broken)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while not log.exists() or log.read_bytes().count(b"\n") < 15:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 15 <= log.read_bytes().count(b"\n") < whole.joinpath("search.jsonl").read_bytes().count(b"\n")
    with open(log, "ab") as file:
        file.write(b'{"model": "cut sho')
    again = CliRunner().invoke(app, [*arguments, "-o", str(broken)])
    assert again.exit_code == 0, again.output
    assert again.stdout == result.stdout

    def measured(path: Path) -> list[str]:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        return sorted(json.dumps([row["demonstrations"], row["pairs"], row["layer"]]) for row in rows)

    assert measured(log) == measured(whole / "search.jsonl")
    assert len(set(measured(log))) == len(measured(log))
    assert (broken / "table.md").read_text(encoding="utf-8") == (whole / "table.md").read_text(encoding="utf-8")


def test_a_measurement_torn_within_a_character_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, similarities = tmp_path / "search.jsonl", np.array([0.25, -1.0], dtype=np.float32)
    bear, cheese, new = (Demonstration(f"Das ist ein {word}.", word) for word in ("Bär", "Käse", "Hund"))

    def add(log: SearchLog, shot: Demonstration) -> None:
        log.add([shot], {-1: (similarities, 50.0)}, (0, 2), encodings=4, seconds=0.1)

    log = SearchLog(path, {"model": "some-model"})
    add(log, bear)
    add(log, cheese)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("ä".encode()) + 1])
    add(SearchLog(path, {"model": "some-model"}), new)
    assert f"{path}, line 2, was cut short and is left out." in caplog.messages
    log = SearchLog(path, {"model": "some-model"})
    found = {shot.word: log.get([shot], -1, (0, 2)) for shot in (bear, cheese, new)}
    assert {word: None if kept is None else kept.tolist() for word, kept in found.items()} == {
        "Bär": [0.25, -1.0],
        "Käse": None,
        "Hund": [0.25, -1.0],
    }


def test_the_command_writes_log_table_plot_and_model(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    out = tmp_path / "found"
    result = CliRunner().invoke(
        app,
        [
            *["demonstrations", "search", causal_lms["opt"], *write_search(tmp_path, 9), "-o", str(out)],
            *["--layers", "-1,-2", "--shots", "2", "--save", str(tmp_path / "saved")],
        ],
    )
    assert result.exit_code == 0, result.output
    assert "over no demonstration" in result.stdout or "no candidate beats it" in result.stdout
    assert "over the runner-up" in result.stdout
    table = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith(
        "| rank | sentence | word | source | layer | pairs | score | gain over none | low | high |"
    )
    assert {line.split("|")[4].strip() for line in table[2:]} == {"wordnet", "llm", "no demonstration"}
    assert (out / "candidates.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "candidates.svg").read_text(encoding="utf-8")
    model = PromptEOL(str(tmp_path / "saved"))
    for shot in model.template.demonstrations:
        assert shot.word in result.stdout
    expected = model.encode(SENTENCES)
    embeddings = plain.encode(tmp_path / "saved", SENTENCES)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5 * np.abs(expected).max())


def test_mistakes_on_the_command_line_are_one_sentence(causal_lms: dict[str, str], tmp_path: Path) -> None:
    arguments = write_search(tmp_path, 3)
    (tmp_path / "empty.tsv").write_text("", encoding="utf-8")
    search = ["demonstrations", "search", causal_lms["opt"]]
    out = ["-o", str(tmp_path / "out")]
    mistakes = [
        ([*search, str(tmp_path / "empty.tsv"), *arguments[1:], *out], "holds no demonstration"),
        ([*search, str(tmp_path / "missing.tsv"), *arguments[1:], *out], "missing.tsv"),
        ([*search, *arguments, *out, "--layers", "first"], "no list of layers"),
        ([*search, *arguments, *out, "--layers", "-1,-7"], "out of range"),
        ([*search, *arguments, *out, "--template", "none"], "a demonstration's word has no place"),
        (["demonstrations", "build", str(tmp_path / "x.jsonl")], "nothing to build from"),
        (["demonstrations", "build", str(tmp_path / "x.jsonl"), "--base-url", "http://x"], "add --llm NAME"),
        (["demonstrations", "build", str(tmp_path / "x.jsonl"), "--dictionary", "/missing"], "neither a folder"),
        (
            [
                *["demonstrations", "build", str(tmp_path / "x.jsonl"), "--llm", "m", "--provider", "nobody"],
                *["--sentences", str(tmp_path / "c.jsonl"), "--key-variable", "NO_SUCH_KEY"],
            ],
            "NO_SUCH_KEY",
        ),
    ]
    for command, message in mistakes:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, (command, result.output)
        assert isinstance(result.exception, SystemExit)
        assert message in result.stderr
        assert result.stdout == ""
        assert result.stderr.startswith("st-prompteol: ")
        assert result.stderr.count("\n") == 1, result.stderr
