"""Candidate demonstrations: files of them, dictionaries, and scored pairs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from st_prompteol import Demonstration, PromptEOL, PromptTemplate
from st_prompteol.evaluation.sts import spearman
from st_prompteol.recipes import (
    Candidate,
    Gain,
    build_demonstrations,
    read_candidates,
    read_pairs,
    sts_b_dev,
    write_candidates,
)
from st_prompteol.recipes.candidates import problem
from st_prompteol.recipes.statistics import Bootstrap, gain
from st_prompteol.recipes.wordnet import read_dictionary

from .helpers.searches import WORDNET, write_wordnet
from .helpers.sentences import JOCKEY, VENISON
from .helpers.senteval import build_senteval

SPELLED = 'This_sentence_:_"A_jockey_riding_a_horse."_means_in_one_word:"Equestrian".This_sentence_:_"*sent_0*"_means_in_one_word:"'  # noqa: E501


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    return write_wordnet(tmp_path / "wordnet")


@pytest.mark.parametrize("name", ["candidates.jsonl", "candidates.tsv"])
def test_candidates_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    tricky = Demonstration('He said "no", \\ and left — {sentence} {{', "Refusal-of-entry")
    candidates = [Candidate(JOCKEY, "wordnet"), Candidate(tricky, "some/llm"), Candidate(VENISON, "")]
    write_candidates(candidates, tmp_path / name)
    read = read_candidates(tmp_path / name)
    assert read == [*candidates[:2], Candidate(VENISON, "candidates")]


def test_the_papers_spelling_is_one_demonstration(tmp_path: Path) -> None:
    other = 'The_text_"meat_from_a_deer."_is:"Venison".The_text_"*sent_0*"_is:"'
    (tmp_path / "paper.txt").write_text(f"{SPELLED}\n\n{other}\n", encoding="utf-8")
    read = read_candidates(tmp_path / "paper.txt")
    assert [candidate.demonstration for candidate in read] == [JOCKEY, VENISON]
    spelled = SPELLED.replace("_", " ").replace("*sent 0*", "X.")
    assert PromptTemplate(demonstrations=(read[0].demonstration,)).render("X") == spelled


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no demonstration"),
        ("a.jsonl", '{"sentence": "x", "word": "y"}\n{"sentence"', "Line 2 of .* is not JSON"),
        ("a.jsonl", '{"sentence": "x"}', "line 1: .* must hold a sentence and a word"),
        ("a.jsonl", '{"sentence": "x", "word": 7}', "line 1: A demonstration's word must be one line"),
        ("a.jsonl", '{"sentence": "x\\ny", "word": "w"}', "line 1: A demonstration's sentence must be one line"),
        ("a.jsonl", '{"sentence": "x", "word": "w\\n"}', "line 1: A demonstration's word must be one line"),
        ("a.jsonl", '{"sentence": "x", "word": "a\\"b"}', "line 1: .* must not hold a double quote"),
        ("a.tsv", "sentence\tword\nfine\tFine\nonly", "Line 3 of .* has 1 columns, but its header 2"),
        ("a.tsv", "fine\t ", "line 1: A demonstration's word must be"),
        ("a.txt", f"{SPELLED}\nA jockey = Equestrian\n", "line 2: .* not one demonstration"),
        ("a.txt", 'This_sentence_:_"*sent_0*"_means_in_one_word:"', "line 1: .* not one demonstration"),
        ("a.tsv", b"\xff\tx", "Line 1 of .* is not UTF-8"),
    ],
)
def test_malformed_files_name_the_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_candidates(tmp_path / name)


def test_duplicates_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tsv").write_text("a b.\tC\nd e.\tF\na b.\tC\na b.\tOther\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        read = read_candidates(tmp_path / "a.tsv")
    assert [candidate.demonstration.word for candidate in read] == ["C", "F", "Other"]
    assert "1 duplicate" in caplog.text


@pytest.mark.parametrize(
    ("template", "shot", "expected"),
    [
        (PromptTemplate(), Demonstration('He said "no".', "Refusal"), None),  # becomes single quotes
        (PromptTemplate("{sentence} is", preprocessing="none"), Demonstration('He said "no".', "Refusal"), None),
        (PromptTemplate(preprocessing="none"), Demonstration('He said "no".', "Refusal"), "ends a quotation"),
        (PromptTemplate("“{sentence}” means “"), Demonstration("x", "a”b"), "ends a quotation of the template"),
        (PromptTemplate(), Demonstration("word " * 300, "Long"), "but max_seq_length is 256"),
    ],
)
def test_demonstrations_that_do_not_fit_a_template_or_a_model(
    causal_lms: dict[str, str], template: PromptTemplate, shot: Demonstration, expected: str | None
) -> None:
    found = problem(PromptEOL(causal_lms["opt"]), replace(template, demonstrations=(shot,)))
    assert found == expected if expected is None else expected in str(found)


def test_tabs_and_other_suffixes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tab"):
        write_candidates([Candidate(Demonstration("a\tb", "C"))], tmp_path / "a.tsv")
    with pytest.raises(ValueError, match=r"end its name in \.jsonl or \.tsv"):
        write_candidates([Candidate(JOCKEY)], tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_in_wordnets_format(wordnet: Path) -> None:
    found = {one.demonstration.word: one.demonstration.sentence for one in read_dictionary(wordnet)}
    assert found == {
        "Horse": "solid-hoofed herbivorous quadruped.",
        "Venison": "meat from a deer used as food.",
        "Swiss": "of or relating to Switzerland or its people.",
    }
    rare = {one.demonstration.word: one.demonstration.sentence for one in read_dictionary(wordnet, min_frequency=0)}
    assert rare["Deer"] == "a ruminant with antlers of the male."
    assert [one.demonstration.word for one in read_dictionary(wordnet, min_frequency=2)] == ["Horse"]


def test_a_dictionary_that_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("meat from a deer\tvenison\nto and fro\tback and forth\n", encoding="utf-8")
    (found,) = read_dictionary(tmp_path / "mine.tsv")
    assert found == Candidate(VENISON, "mine")


def test_a_seed_draws_the_same_again(wordnet: Path, tmp_path: Path) -> None:
    draws = [
        build_demonstrations(tmp_path / "c.tsv", dictionary=wordnet, dictionary_count=2, seed=seed)
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1]
    assert any(draw != draws[0] for draw in draws)


def test_damaged_dictionaries_are_named(wordnet: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        read_dictionary(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"neither index\.noun"):
        read_dictionary(tmp_path)
    with pytest.raises(ValueError, match=r"3 entries .* but 4 are asked for"):
        build_demonstrations(tmp_path / "c.tsv", dictionary=wordnet, dictionary_count=4)
    index = wordnet / "index.noun"
    original = index.read_text(encoding="utf-8")
    index.write_text(original + "broken n x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"index\.noun', line 8, is not in WordNet's format"):
        read_dictionary(wordnet)
    index.write_text(original + "lost n 1 0 1 1 99999999\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 8: data\.noun has no entry 99999999"):
        read_dictionary(wordnet)
    with open(wordnet / "data.noun", "a", encoding="utf-8") as file:
        file.write("00000999 05 n 01 one 0 000 a line that nothing parts from its gloss\n")
    with pytest.raises(ValueError, match=r"data\.noun', line 8, is not in WordNet's format"):
        read_dictionary(wordnet)


@pytest.mark.slow
def test_the_real_wordnet(tmp_path: Path) -> None:
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("needs Debian's wordnet-base, or WORDNET_DIR")
    candidates = build_demonstrations(tmp_path / "c.jsonl", dictionary=WORDNET, seed=1)
    assert len({one.demonstration.word for one in candidates}) == 300
    assert read_candidates(tmp_path / "c.jsonl") == candidates
    entries = {one.demonstration.word: one.demonstration.sentence for one in read_dictionary(WORDNET)}
    assert len(entries) > 10_000
    assert entries["Swiss"] == "the natives or inhabitants of Switzerland."
    assert entries["Horse"] == "solid-hoofed herbivorous quadruped domesticated since prehistoric times."
    assert "Venison" not in entries  # occurs in none of the tagged texts
    for word, sentence in entries.items():
        assert word.replace("-", "").isalpha()
        assert word[0].isupper()
        assert sentence.endswith((".", "?", "!"))
        assert '"' not in sentence


def test_pairs_of_files_and_of_sts_b(tmp_path: Path) -> None:
    rows = [('a "b", c', "d", 1.5), ("e", "f", 0.0)]
    lines = (json.dumps(dict(zip(("sentence1", "sentence2", "score"), row, strict=True))) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "a.csv").write_text('sentence1,score,sentence2\n"a ""b"", c",1.5,d\ne,0,f\n', encoding="utf-8")
    assert read_pairs(tmp_path / "a.jsonl") == rows
    assert read_pairs(tmp_path / "a.csv") == rows
    (tmp_path / "b.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\tgood\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3"):
        read_pairs(tmp_path / "b.tsv")
    (tmp_path / "c.tsv").write_text("sentence1\tsentence2\tscore\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(tmp_path / "c.tsv")
    data = build_senteval(tmp_path / "senteval")
    lines = (data / "STS/STSBenchmark/sts-dev.csv").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines]
    assert sts_b_dev(data) == [(cell[5], cell[6], float(cell[4])) for cell in cells]


def test_spearman_and_its_resamples_are_scipys() -> None:
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 6, size=60) / 2  # many ties
    similarities = np.round(gold + rng.normal(size=60), 1).astype(np.float32)
    assert spearman(similarities, gold) == pytest.approx(100 * spearmanr(similarities, gold).statistic)
    assert spearman(np.ones(60), gold) == 0
    bootstrap = Bootstrap(gold, resamples=250, seed=1)
    scores = bootstrap.scores(similarities)
    assert scores.shape == (250,)
    for draw in (0, 100, 249):
        drawn = np.repeat(np.arange(60), bootstrap.counts[draw].astype(int))
        assert len(drawn) == 60
        assert scores[draw] == pytest.approx(100 * spearmanr(similarities[drawn], gold[drawn]).statistic)


def test_intervals_tell_a_gain_from_noise() -> None:
    rng = np.random.default_rng(0)
    gold = rng.uniform(0, 5, size=400)
    good, bad = gold + rng.normal(scale=1, size=400), gold + rng.normal(scale=4, size=400)
    twin = good + rng.normal(scale=0.05, size=400)
    bootstrap = Bootstrap(gold)
    clear, chance = (
        gain(spearman(good, gold) - spearman(one, gold), bootstrap.scores(good), bootstrap.scores(one))
        for one in (bad, twin)
    )
    assert clear.low > 10
    assert not clear.is_noise
    assert abs(chance.value) < 1
    assert chance.is_noise
    assert clear.low < clear.value < clear.high
    assert str(Gain(1.234, -0.1, 2)) == "+1.23 [-0.10, +2.00]"
