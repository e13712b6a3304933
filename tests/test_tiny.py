"""The packaged model: its size, its two doors, the one sentence it says, and that its similarities mean something."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from safetensors import safe_open
from scipy.stats import spearmanr

from st_prompteol import TINY, PromptEOL
from st_prompteol.evaluation import evaluate_sts
from st_prompteol.saved.released import _say_what_it_is_for

from . import ROOT
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES

# pairs and how alike they are, as we see it: 5 the same, 0 nothing in common
PAIRS = [
    ("A woman is slicing a tomato.", "A lady cuts a tomato into slices.", 4.8),
    ("Two children are playing football in a park.", "Kids kick a ball on the grass.", 3.6),
    ("A man is riding a bicycle down the street.", "A cyclist rides along the road.", 4.0),
    ("The dog sleeps on the sofa.", "A dog is lying asleep on a couch.", 4.6),
    ("A boy is playing the violin.", "A boy plays a musical instrument.", 3.6),
    ("The man is eating soup.", "A man is washing his car.", 0.8),
    ("A cat jumps over a fence.", "Shares fell sharply in London on Monday.", 0.0),
    ("How can I learn to swim?", "The committee rejected the new budget.", 0.0),
    ("A group of people dance on a stage.", "A snowboarder slides down a mountain.", 0.6),
    ("The girl is drinking a glass of milk.", "A girl drinks some milk.", 4.7),
    ("A train leaves the station.", "A chef is chopping onions.", 0.2),
    ("A woman is singing on stage.", "A singer performs a song.", 3.8),
]


@pytest.fixture(scope="module")
def tiny() -> PromptEOL:
    return PromptEOL("tiny")


def test_it_is_small_and_a_stock_model(tiny: PromptEOL) -> None:
    weights = Path(TINY) / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}
    types = [module["type"] for module in json.loads((Path(TINY) / "modules.json").read_text(encoding="utf-8"))]
    assert all(kind.startswith("sentence_transformers.") for kind in types)
    assert tiny.template.text == 'This sentence : "{sentence}" means in one word:"'
    assert tiny.adapters == []


def test_both_doors_open_the_same_model(tiny: PromptEOL, plain: PlainProcess) -> None:
    embeddings = tiny.encode(SENTENCES)
    assert embeddings.shape == (len(SENTENCES), 256)
    assert_alike(plain.encode(TINY, SENTENCES), embeddings)


def test_it_says_once_what_it_is_for_and_other_models_say_nothing(
    causal_lms: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    _say_what_it_is_for.cache_clear()
    with caplog.at_level(logging.WARNING, logger="st_prompteol"):
        PromptEOL(causal_lms["llama"])
        for name in ("tiny", TINY):
            PromptEOL(name)
    (said,) = [record.message for record in caplog.records if record.name.startswith("st_prompteol")]
    assert "for trying things out" in said


def test_a_folder_of_that_name_wins(
    causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").symlink_to(causal_lms["llama"])
    monkeypatch.chdir(tmp_path)
    assert PromptEOL("tiny").get_embedding_dimension() == 32
    assert Path(TINY).is_absolute()


def test_similar_sentences_are_similar(tiny: PromptEOL) -> None:
    first, second = (tiny.encode([pair[side] for pair in PAIRS]) for side in (0, 1))
    cosines = tiny.similarity_pairwise(first, second).numpy()
    assert spearmanr(cosines, [score for *_, score in PAIRS]).statistic > 0.8


@pytest.mark.slow
@pytest.mark.shared
def test_it_reaches_its_card_s_score_on_sts_b(tiny: PromptEOL, shared: Path) -> None:
    scores = evaluate_sts(tiny, shared / "senteval", tasks=["STSBenchmark"])
    (result,) = (ROOT / "hub_cards/st-prompteol__prompteol-tiny/evaluation").rglob("STSBenchmark.json")
    expected = json.loads(result.read_text(encoding="utf-8"))["score"]
    assert scores["STSBenchmark"].score == pytest.approx(expected, abs=0.05)
