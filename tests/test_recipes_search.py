"""The search: against a plain loop over encode and scipy, resumed, interrupted, on several devices, held out."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize
from typer.testing import CliRunner

from st_prompteol import TEMPLATES, Demonstration, PromptEOL, PromptTemplate
from st_prompteol.cli import app
from st_prompteol.recipes import Candidate, Gain, Recipe, SearchResult, measure, search, searching, summarize
from st_prompteol.recipes.measure import encode_layers

from .helpers.models import quick
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.searches import LETTERS, Pair, correlate, distinct, make_candidates, make_pairs, write_search
from .helpers.sentences import SENTENCES, WORDS

OLD: dict[str, Any] = {"templates": ["prompteol"], "layers": [-1], "standardize": ()}  # demonstrations alone


def sides_of(model: PromptEOL, recipe: Recipe, pairs: list[Pair], sentences: list[str] | None = None) -> list[Any]:
    """What anyone would write: standardize, then encode both sides."""
    twin = PromptEOL(modules=[*copy.deepcopy(model)][:2], template=recipe.template, layer=recipe.layer)
    if recipe.standardization is not None:
        twin.standardize(sentences or distinct(pairs), recipe.standardization)
    return [twin.encode([pair[side] for pair in pairs]) for side in (0, 1)]


def score_of(model: PromptEOL, recipe: Recipe, pairs: list[Pair], sentences: list[str] | None = None) -> float:
    return correlate(*sides_of(model, recipe, pairs, sentences), pairs)


def plant(
    model: PromptEOL,
    recipe: Recipe,
    pairs: list[Pair],
    sentences: list[str] | None = None,
    dimension: int | None = None,
) -> list[Pair]:
    """Scores pairs by the recipe's own similarities, so that it is the best one beyond any noise."""
    left, right = (side[:, :dimension] for side in sides_of(model, recipe, pairs, sentences))
    gold = (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return [(first, second, float(score)) for (first, second, _), score in zip(pairs, gold, strict=True)]


def spread_gains(monkeypatch: pytest.MonkeyPatch, width: float) -> None:
    """Gives all gains intervals of this width: at 0 nothing is noise, at 1000 everything."""
    monkeypatch.setattr(measure, "gain", lambda value, *_: Gain(value, value - width, value + width))


@pytest.fixture
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["llama"])


@pytest.mark.parametrize("architecture", quick(["llama", "opt-350m"], "llama"))
def test_the_winner_is_that_of_a_plain_loop_and_saved_with_the_model(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str
) -> None:
    model, candidates = PromptEOL(causal_lms[architecture]), make_candidates(3)
    planted = Recipe(TEMPLATES["prompteol"], -2, "whiten")
    pairs = plant(model, planted, make_pairs())
    model.standardize(SENTENCES)  # replaced
    templates = ["prompteol", 'The text "{sentence}" is:"']
    result = search(model, pairs, candidates, templates=templates, layers=(-2, -1, -3), exhaustive=True)
    grid = [trial for trial in result.trials if not trial.recipe.demonstrations]
    assert len({trial.recipe for trial in grid}) == len(grid) == 2 * 3 * 4
    assert len(result.trials) - len(grid) in (3, 6)
    fresh = PromptEOL(causal_lms[architecture])
    for trial in result.trials:
        assert trial.pairs == 60
        assert trial.score == pytest.approx(score_of(fresh, trial.recipe, pairs), abs=0.1)
        assert trial.gain.value == pytest.approx(trial.score - result.start.score)
    assert result.start.recipe == Recipe(TEMPLATES["prompteol"], -1)
    assert (result.winner.recipe, result.undecided) == (planted, 1)
    assert result.statistics == f"{len(distinct(pairs))} distinct sentences of the pairs"
    assert sum(step.gain.value for step in result.steps) == pytest.approx(result.winner.gain.value)
    assert result.over_best_other.value == pytest.approx(result.winner.score - result.best_other.score)

    recipe = result.winner.recipe
    assert (model.template, model.layer) == (recipe.template, recipe.layer)
    assert [type(module) for module in model][2:] == [Dense]
    assert result.tokens == model[0].count_template_tokens()
    model.save_pretrained(str(tmp_path))
    left, right = (plain.encode(tmp_path, [pair[side] for pair in pairs]) for side in (0, 1))
    assert result.winner.score == pytest.approx(correlate(left, right, pairs), abs=0.1)


def test_the_five_templates_take_a_pass_each(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = plant(model, Recipe(TEMPLATES["knowledge"], -1, "scale"), make_pairs())
    tokenised, computed = [], []
    preprocess, forward = PromptEOL.preprocess, PromptEOL.forward

    def noted(self: PromptEOL, inputs: Any, **options: Any) -> Any:
        tokenised.append((self.template, inputs))
        return preprocess(self, inputs, **options)

    def counted(self: PromptEOL, features: Any, **options: Any) -> Any:
        computed.append(len(features["input_ids"]))
        return forward(self, features, **options)

    monkeypatch.setattr(PromptEOL, "preprocess", noted)
    monkeypatch.setattr(PromptEOL, "forward", counted)
    result = search(model, pairs)
    assert result.winner.recipe.standardization == "scale"
    names = ["prompteol", "prompt", "pretended-cot", "knowledge", "summarize"]
    for name in names:
        sentences = [text for template, texts in tokenised if template == TEMPLATES[name] for text in texts]
        assert sorted(sentences) == sorted(distinct(pairs))
    assert sum(len(texts) for _, texts in tokenised) == sum(computed) == 5 * len(distinct(pairs)) == result.encodings
    assert len(result.trials) == 5 * 3 * 4
    assert {trial.recipe.template for trial in result.trials} == {TEMPLATES[name] for name in names}


@pytest.mark.slow
def test_halving_spends_less_and_ends_on_all_pairs(model: PromptEOL) -> None:
    pairs, lines = make_pairs(200), []
    result = search(model, pairs, make_candidates(30), **OLD, show=lines.append)
    shown = [trial for trial in result.trials if trial.recipe.demonstrations]
    assert [sum(trial.pairs == pairs for trial in shown) for pairs in (50, 80, 200)] == [26, 1, 3]
    assert result.encodings < 0.6 * 30 * len(distinct(pairs))  # the few words recur in every part
    assert lines[0] == f"1 recipes of 1 templates on 200 pairs: {len(distinct(pairs))} sentences to encode"
    assert [line.split(":")[0] for line in lines[2:-1]] == [
        "30 candidates on 50 pairs",
        "4 candidates on 80 pairs",
        "3 candidates on 200 pairs",
    ]
    assert result.winner.score == pytest.approx(score_of(model, result.winner.recipe, pairs), abs=0.05)


@pytest.mark.slow
def test_candidates_are_tried_with_two_templates_where_their_difference_is_noise(
    model: PromptEOL, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, options = make_candidates(12), {"templates": ["prompteol", "summarize"], "layers": [-1]}
    for is_noise in (True, False):
        spread_gains(monkeypatch, 1000 * is_noise)
        result = search(model, make_pairs(100), candidates, **options)
        tried = [trial for trial in result.trials if trial.recipe.demonstrations]
        bases = {trial.recipe.with_demonstrations() for trial in tried}
        assert len({base.template for base in bases}) == len(bases) == 1 + is_noise
        assert len(tried) == 12 + 3 * is_noise  # those that came to all pairs with the first one
        assert result.winner.recipe.with_demonstrations() in bases


@pytest.mark.slow
def test_everything_is_measured_once_and_only_for_the_same_search(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates, log = make_pairs(30), make_candidates(2), tmp_path / "search.jsonl"

    def run(pairs: list[Pair] = pairs, seed: int = 0, change: Any = None, **options: Any) -> tuple[SearchResult, int]:
        before = log.read_bytes().count(b"\n") if log.exists() else 0
        model = PromptEOL(causal_lms["llama"], **options)
        if change:
            change(model)
        result = search(model, pairs, candidates, templates=["prompteol"], layers=[-1], log=log, seed=seed)
        return result, log.read_bytes().count(b"\n") - before

    first, lines = run()
    assert lines == 4 + 2 * 1
    again, lines = run()
    assert (again, lines) == (first, 0)
    assert run(layer=-2, template="prompt")[1] == 0  # neither of which counts
    others: list[dict[str, Any]] = [
        {"change": lambda model: model[0].model.layers[0].mlp.down_proj.weight.data.mul_(1.01)},
        {"truncate_dim": 16},
        {"model_kwargs": {"dtype": "bfloat16"}},
        {"pairs": [(a, b, 5 - gold) for a, b, gold in pairs]},
        {"seed": 1},
    ]
    for options in others:
        assert run(**options)[1] == 4 + 2 * 1
    row = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    names = {
        "model",
        "revision",
        "text",
        "preprocessing",
        "demonstrations",
        "layer",
        "standardization",
        "precision",
        "data",
        "statistics",
    }
    assert names | {"pairs", "score", "encodings", "seconds"} <= set(row)


def test_statistics_of_unlabeled_sentences_cost_a_round_its_share(model: PromptEOL, tmp_path: Path) -> None:
    sentences, log = (
        [f"{word} {letters}." for word in WORDS.split()[:2] for letters in LETTERS],
        tmp_path / "log.jsonl",
    )
    pairs = plant(model, Recipe(TEMPLATES["prompteol"], -1, "scale"), make_pairs(100), sentences)
    options: dict[str, Any] = {**OLD, "standardize": ["scale"], "sentences": sentences, "log": log}
    result = search(model, pairs, make_candidates(4), **options)
    assert (result.winner.recipe.standardization, result.statistics) == ("scale", "200 unlabeled sentences")
    assert result.winner.score == pytest.approx(100)
    for trial in result.trials:
        if trial.pairs == 100:
            assert trial.score == pytest.approx(score_of(model, trial.recipe, pairs, sentences), abs=0.05)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    shuffled = [pairs[place] for place in np.random.default_rng(0).permutation(100)]
    first, every = (len(distinct(shuffled[:count])) for count in (50, 100))
    rounds = [(row["pairs"], row["encodings"]) for row in rows]
    assert rounds[:2] == [(100, every + 200), (100, 0)]  # plain and scaled
    assert rounds[2:] == [(50, first + 100)] * 4 + [(100, every - first + 100)] * 3
    search(model, pairs, make_candidates(4), **{**options, "sentences": sentences[:10]})  # never taken for the others'
    assert log.read_text(encoding="utf-8").count("\n") == 2 * len(rows)


@pytest.mark.parametrize("architecture", quick(["gpt2", "mistral", "gemma2"], "gpt2"))
def test_embeddings_of_several_layers_are_those_of_encode(causal_lms: dict[str, str], architecture: str) -> None:
    sentences = [*dict.fromkeys(SENTENCES), "a very long one, " * 40]
    model = PromptEOL(causal_lms[architecture], max_seq_length=200)
    shots = (Demonstration('He said "no".', "Refusal"), Demonstration("meat from a deer!", "Venison"))
    for demonstrations in ((), shots):
        template = replace(TEMPLATES["prompteol"], demonstrations=demonstrations)
        found = encode_layers(model, template, [-1, -2], sentences, batch_size=3)
        twin = PromptEOL(causal_lms[architecture], template=template, max_seq_length=200)
        for layer in (-1, -2):
            twin.layer = layer
            expected = twin.encode(sentences)
            assert_alike(found[layer], expected)


@pytest.mark.slow
def test_more_shots_are_added_while_they_gain(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> None:
    spread_gains(monkeypatch, 0)
    pairs, candidates = make_pairs(60), make_candidates(5)
    one = search(model, pairs, candidates, **OLD, exhaustive=True)
    lines: list[str] = []
    result = search(model, pairs, candidates, **OLD, exhaustive=True, shots=2, show=lines.append)
    (first,) = one.winner.recipe.demonstrations
    two = [trial for trial in result.trials if len(trial.recipe.demonstrations) == 2]
    others = [candidate.demonstration for candidate in candidates if candidate.demonstration != first]
    expected = {pair for other in others for pair in ((first, other), (other, first))}
    assert {trial.recipe.demonstrations for trial in two} == expected
    best = max(two, key=lambda trial: trial.score)
    assert best.score == pytest.approx(score_of(model, best.recipe, pairs), abs=0.05)
    kept = len(result.winner.recipe.demonstrations) == 2
    assert f"{Gain(best.score - one.winner.score, 0, 0)}".split(" [")[0] in lines[-1]
    assert kept == (best.score > one.winner.score and "(noise)" not in lines[-1])
    assert len(result.steps) == 1 + kept

    result = search(model, make_pairs(60, seed=3), candidates, **OLD, exhaustive=True, shots=5)
    assert len(result.winner.recipe.demonstrations) == len(result.steps) > 1
    assert [len(step.recipe.demonstrations) for step in result.steps] == list(range(1, len(result.steps) + 1))


@pytest.mark.slow
def test_devices_share_the_work(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates = make_pairs(40), make_candidates(8)
    alone = search(PromptEOL(causal_lms["opt"]), pairs, candidates, layers=[-1, -2])
    model = PromptEOL(causal_lms["opt"])
    both = search(model, pairs, candidates, layers=[-1, -2], devices=["cpu", "cpu"], log=tmp_path / "s.jsonl")
    assert both.winner.recipe == alone.winner.recipe
    assert both.encodings == alone.encodings
    scores = {trial.recipe: trial.score for trial in alone.trials}
    assert {trial.recipe: trial.score for trial in both.trials} == pytest.approx(scores, abs=0.1)


@pytest.mark.slow
def test_quantised_weights_are_searched_and_told_from_others(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pairs, candidates, log = make_pairs(20), make_candidates(3), tmp_path / "search.jsonl"
    for quantization in (None, "nf4"):
        model = PromptEOL(causal_lms["opt-64"], quantization=quantization, device="cpu")
        result = search(model, pairs, candidates, log=log, templates=["prompteol"], layers=[-1, -2])
        assert result.winner.score == pytest.approx(score_of(model, result.winner.recipe, pairs), abs=3)
    precisions = [json.loads(line)["precision"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(set(precisions)) == 2
    assert "bitsandbytes" in precisions[-1]
    assert precisions.count(precisions[0]) == precisions.count(precisions[-1])


def test_no_demonstration_wins_where_none_helps(model: PromptEOL) -> None:
    pairs = [(first, second, -gold) for first, second, gold in make_pairs(40)]
    scored = search(model, pairs, make_candidates(12), **OLD, exhaustive=True)
    worse = [trial.recipe.demonstrations for trial in scored.trials if trial.score < scored.start.score]
    assert worse  # else this test says nothing
    result = search(model, pairs, [shots[0] for shots in worse], **OLD, exhaustive=True)
    assert result.winner == result.start
    assert result.steps == ()
    assert model.template.demonstrations == ()


def test_held_out_pairs_are_encoded_at_the_end_only(
    model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    sentences = [f"{' '.join(rng.choice(WORDS.split(), size=4))} {one}" for one in LETTERS[:80]]
    pairs = [(a, b, float(rng.uniform(0, 5))) for a, b in zip(sentences[::2], sentences[1::2], strict=True)]
    order = np.random.default_rng(0).permutation(40)
    planted = Recipe(TEMPLATES["prompt"], -2, "whiten")
    pairs = plant(model, planted, pairs, distinct([pairs[place] for place in order[:28]]))
    searched, held_out = ([pairs[place] for place in part] for part in (order[:28], order[28:]))
    events: list[str] = []
    encode = PromptEOL.encode
    monkeypatch.setattr(
        PromptEOL, "encode", lambda self, inputs, **options: events.extend(inputs) or encode(self, inputs, **options)
    )
    log = tmp_path / "search.jsonl"
    result = search(
        model, pairs, make_candidates(12), templates=["prompteol", "prompt"], layers=[-2], holdout=0.3, log=log
    )
    first = min(events.index(text) for text in distinct(held_out))
    assert set(events[first:]) == set(distinct(held_out))  # nothing is searched behind the first of them
    assert len(events[first:]) == 2 * len(distinct(held_out))  # the start and the winner
    assert {trial.pairs for trial in result.trials} == {28}
    assert result.winner.recipe == planted
    assert log.read_bytes().count(b'"pairs": 40') == 0

    alone = PromptEOL(modules=[*copy.deepcopy(model)][:2])
    assert result.holdout.score == pytest.approx(score_of(alone, planted, held_out, distinct(searched)), abs=0.05)
    start = score_of(alone, result.start.recipe, held_out)
    assert result.holdout.gain.value == pytest.approx(result.holdout.score - start, abs=0.05)
    assert summarize(result, "x")[0].startswith(f"held out: Spearman {result.holdout.score:.2f} on 12 pairs")


def test_bad_input_is_one_sentence_and_leaves_the_model_alone(
    model: PromptEOL, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, candidates = make_pairs(20), make_candidates(3)
    kept = PromptTemplate(demonstrations=(Demonstration("kept.", "Kept"),))
    model.template = kept
    model.standardize(SENTENCES)
    standardization = model.standardization
    long, quoted = Demonstration("word " * 300, "Long"), Demonstration('a "quoted" word', "Word")
    mistakes: list[tuple[Any, Any, dict[str, Any], str]] = [
        (candidates, pairs[:5], {}, "5 scored pairs are too few for a search"),
        (candidates, pairs, {"holdout": 0.2}, "4 scored pairs are too few for a holdout"),
        (candidates, pairs, {"holdout": 1.0}, "holdout=1.0 is not a share"),
        (candidates, [(a, b, 2.5) for a, b, _ in pairs], {}, "All 20 gold scores of a search are 2.5"),
        (candidates, [*pairs, ("a", "b", float("nan"))], {}, "gold score of pair 21 is nan"),
        (candidates, pairs, {"shots": 0}, "shots=0"),
        (candidates, pairs, {"layers": [-9]}, "layer=-9 is out of range"),
        (candidates, pairs, {"standardize": ["white"]}, "Unknown standardization 'white': choose from center, scale"),
        (candidates, pairs, {"sentences": ["One."] * 3}, "two different sentences or more, got 1: pass"),
        (candidates, pairs, {"sentences": "a.txt"}, r"'a\.txt' is one string: pass a list of sentences"),
        (candidates, pairs, {"templates": ["none"]}, "a demonstration's word has no place"),
        (candidates, pairs, {"templates": ["promteol"]}, "Unknown template 'promteol'"),
        ([long], pairs, {}, "None of the 1 candidates fits a template and max_seq_length=256"),
    ]
    for tried, scored, options, message in mistakes:
        with pytest.raises(ValueError, match=message):
            search(model, scored, tried, **options)
        assert model.template == kept
        assert model.standardization is standardization
    with pytest.raises(ValueError, match="a transformer with last-token pooling, not of"):
        search(PromptEOL(modules=[*model, Dense(32, 8)]), pairs)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tried = [quoted, *candidates, Candidate(long), candidates[0]]
        result = search(model, pairs, tried, **{**OLD, "templates": ["summarize"]})
    assert "Of 5 candidates 2 do not fit" in caplog.text
    assert "ends a quotation of the template" in caplog.text
    assert "1 duplicate" in caplog.text
    assert "standardize() again" not in caplog.text
    assert len(result.trials) == 1 + 3


def test_a_layer_whose_embeddings_are_all_equal_does_not_end_the_search(model: PromptEOL) -> None:
    model[0].model.layers[0].self_attn.o_proj.weight.data.zero_()  # the last token sees none of the others
    result = search(model, make_pairs(20), templates=["prompteol"])
    scores = {trial.recipe: trial.score for trial in result.trials if trial.recipe.layer == -3}
    assert list(scores.values()) == [0, 0, 0, 0]
    assert result.trials[0].score > 0


def test_a_failure_at_the_end_leaves_the_model_alone(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> None:
    model.standardize(SENTENCES)
    kept = model.template, model.layer, model.standardization

    measured = iter([np.zeros(12)])  # of the start; those of the winner fail
    monkeypatch.setattr(searching, "_similarities", lambda *_: next(measured))
    with pytest.raises(StopIteration):
        search(model, make_pairs(40), templates=["knowledge"], layers=[-2], standardize=(), holdout=0.3)
    assert (model.template, model.layer, model.standardization) == kept


def test_a_truncated_model_is_standardized_before_it_is_truncated(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], truncate_dim=8)
    pairs = plant(model, Recipe(TEMPLATES["prompteol"], -1, "scale"), make_pairs(40), dimension=8)
    result = search(model, pairs, templates=["prompteol"], layers=[-1], standardize=["scale"])
    assert (result.winner.recipe.standardization, result.winner.score) == ("scale", pytest.approx(100))
    assert model.encode(SENTENCES).shape == (len(SENTENCES), 8)
    encoded = [model.encode([pair[side] for pair in pairs]) for side in (0, 1)]
    assert correlate(*encoded, pairs) == pytest.approx(result.winner.score, abs=0.05)


def test_normalised_embeddings_rank_alike(model: PromptEOL) -> None:
    normalised = PromptEOL(modules=[*copy.deepcopy(model), Normalize()])
    results = [search(one, make_pairs(20), templates=["prompteol"]) for one in (model, normalised)]
    assert results[0].winner == results[1].winner
    assert type(normalised[-1]) is Normalize


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_end(
    causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: PlainProcess, caplog: Any
) -> None:
    arguments = ["search", causal_lms["llama"], *write_search(tmp_path), "--holdout", "0.2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = CliRunner().invoke(app, [*arguments, "-o", str(whole), "--save", str(tmp_path / "saved-whole")])
    assert result.exit_code == 0, result.output

    def measured(folder: Path) -> list[str]:
        lines = (folder / "search.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        facts = ("text", "demonstrations", "pairs", "layer", "standardization", "score")
        return sorted(json.dumps([row[name] for name in facts]) for row in rows)

    for calls in (2, 20):  # among the templates, among the candidates
        left = iter(range(calls))

        def stop(*args: Any, left: Any = left, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return encode_layers(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(measure, "encode_layers", stop)
            assert CliRunner().invoke(app, [*arguments, "-o", str(broken)]).exit_code != 0
        assert set(measured(broken)) < set(measured(whole))
    with open(broken / "search.jsonl", "ab") as file:
        file.write('{"text": "Bär"}'.encode()[:12])  # as a crash cuts a line, within a character
    again = CliRunner().invoke(app, [*arguments, "-o", str(broken), "--save", str(tmp_path / "saved-broken")])
    assert again.exit_code == 0, again.output
    assert any("was cut short and is left out." in message for message in caplog.messages)
    assert again.stdout == result.stdout
    assert measured(broken) == measured(whole)
    assert (broken / "table.md").read_text(encoding="utf-8") == (whole / "table.md").read_text(encoding="utf-8")
    one, other = (plain.encode(tmp_path / name, SENTENCES) for name in ("saved-whole", "saved-broken"))
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_the_command_writes_log_table_plot_and_model(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    out, text = tmp_path / "found", 'The text "{sentence}" is:"'
    options = ["--layers", "-1,-2", "--shots", "2", "--holdout", "0.3", "--save", str(tmp_path / "saved")]
    candidates, *_ = write_search(tmp_path, 9)
    planted = Recipe(PromptTemplate(text), -2, "scale")
    rows = plant(PromptEOL(causal_lms["opt"]), planted, make_pairs(), [*dict.fromkeys(SENTENCES)])
    lines = ["sentence1\tsentence2\tscore", *(f"{first}\t{second}\t{gold!r}" for first, second, gold in rows)]
    (tmp_path / "p.tsv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "s.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    options += ["--sentences", str(tmp_path / "s.txt")]
    options += ["--template", text, "--templates", "own,summarize"]
    command = ["search", causal_lms["opt"], candidates, "--pairs", str(tmp_path / "p.tsv"), "-o", str(out), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("held out: Spearman ")
    assert '(The text "{sentence}" is:", layer -1)' in lines[0]
    assert lines[1] == f"best recipe: {planted}"
    for told in (
        "  start ",
        "over the best other recipe",
        f"standardized by the statistics of {len(set(SENTENCES))} unlabeled sentences",
        "tokens around every sentence",
        "to use it: model = PromptEOL(",
    ):
        assert told in result.stdout
    table = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert table[0] == lines[0]
    columns = "template | layer | standardization | sentence | word | source | pairs | score | gain over the start"
    assert table[2] == f"| {columns} | low | high |"
    assert {line.split("|")[6].strip() for line in table[4:]} == {"wordnet", "llm", ""}
    assert (out / "recipes.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "recipes.svg").read_text(encoding="utf-8")
    model = PromptEOL(str(tmp_path / "saved"))
    card = (tmp_path / "saved/README.md").read_text(encoding="utf-8")
    assert "layer -2, scaled, standardized by the statistics of" in card
    assert "| those that chose the winner | 42 | " in card
    assert "| 100.00 | +" in card
    code = next(line for line in lines if line.startswith("to use it: ")).removeprefix("to use it: ")
    names: dict[str, Any] = {kind.__name__: kind for kind in (PromptEOL, PromptTemplate, Demonstration)}
    names["sentences"] = SENTENCES
    exec(code, names)
    assert (names["model"].template, names["model"].layer) == (model.template, model.layer)
    expected = model.encode(SENTENCES)
    assert_alike(plain.encode(tmp_path / "saved", SENTENCES), expected)
