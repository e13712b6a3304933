"""Centring: the mean embedding of some sentences is subtracted by a stock module, which every client applies."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from st_prompteol import TINY, PromptEOL

from .helpers.processes import PlainProcess
from .helpers.sentences import JOCKEY, SENTENCES

SAMPLE = [f"{who} {does} in the {place}" for who in ("a man", "dogs", "it") for does in ("sings", "is") for place in
          ("garden", "sea", "year 1990")]  # fmt: skip
TOLERANCE = 1e-5


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("architecture", ["opt", "llama", pytest.param("opt-350m", marks=pytest.mark.slow)])
def test_centred_embeddings_are_those_minus_the_mean(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str, scale: bool
) -> None:
    shots = [JOCKEY]
    model = PromptEOL(causal_lms[architecture], demonstrations=shots, layer=-2)
    whole, sample = (model.encode(sentences).astype(np.float64) for sentences in (SENTENCES, SAMPLE))
    expected = (whole - sample.mean(axis=0)) / (sample.std(axis=0) if scale else 1)
    model.center(SENTENCES)
    for _ in range(2):  # a second call replaces the first
        model.center(SAMPLE, scale=scale)
    assert [type(module).__name__ for module in model][1:] == ["LastTokenPooling", "Dense"]
    limit = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=limit)
    np.testing.assert_allclose(model.encode(SAMPLE).mean(axis=0), 0, atol=limit)
    model.fast = False
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=limit)

    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), expected, atol=limit)
    opened = PromptEOL(str(tmp_path))
    np.testing.assert_allclose(opened.encode(SENTENCES), expected, atol=limit)
    opened.center(SAMPLE[:9])  # replaces what was saved
    assert len(opened) == 3
    mean = sample[:9].mean(axis=0)
    np.testing.assert_allclose(opened.encode(SENTENCES), whole - mean, atol=limit if not scale else 1e-4)


def test_modules_behind_stay_behind(causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess) -> None:
    model = PromptEOL(modules=[*PromptEOL(causal_lms["llama"]), Normalize()])
    model.center(SAMPLE)
    assert [type(module) for module in model][2:] == [Dense, Normalize]
    assert model.describe()["behind the pooling"] == "Dense (centres), Normalize"
    np.testing.assert_allclose(np.linalg.norm(model.encode(SENTENCES), axis=1), 1, atol=TOLERANCE)
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), model.encode(SENTENCES), atol=TOLERANCE)


def test_unrelated_sentences_are_no_longer_alike() -> None:
    model = PromptEOL(TINY)
    sentences = ["A dog barks.", "Interest rates rise.", "She plays chess.", "Where is the station?", "Rain fell."] * 4
    texts = [f"{sentence} {number}" for number, sentence in enumerate(sentences)]
    before = model.similarity(*[model.encode(texts)] * 2).mean()
    model.center(texts)
    assert abs(model.similarity(*[model.encode(texts)] * 2).mean()) < 0.06 < before


def test_in_half_precision_too(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"], model_kwargs={"dtype": torch.bfloat16})
    model.center(SAMPLE)
    model.save_pretrained(str(tmp_path))
    for opened in (SentenceTransformer(str(tmp_path)), PromptEOL(str(tmp_path)), model):
        embeddings = opened.encode(SAMPLE)
        assert np.abs(embeddings.mean(axis=0)).max() < 0.02 * np.abs(embeddings).max()


def test_a_change_of_what_was_centred_is_told(causal_lms: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    model = PromptEOL(causal_lms["opt"])
    model.center(SAMPLE)
    model.template = "knowledge"
    model.layer = -2
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in told if "call center() again" in record.getMessage()] != []
    caplog.clear()
    model.center(SAMPLE)
    assert not caplog.records


@pytest.mark.parametrize("sentences", [[], ["one"], ["one", "one"]])
def test_a_mean_needs_sentences(causal_lms: dict[str, str], sentences: list[str]) -> None:
    with pytest.raises(ValueError, match="different sentences says nothing: give some hundred sentences"):
        PromptEOL(causal_lms["opt"]).center(sentences)


@pytest.mark.parametrize("mean", [np.zeros(3), np.zeros((1, 32)), np.full(32, np.nan)])
def test_a_mean_is_one_finite_embedding(causal_lms: dict[str, str], mean: np.ndarray) -> None:
    with pytest.raises(ValueError, match="A mean embedding of this model has 32 finite numbers"):
        PromptEOL(causal_lms["opt"]).center(mean=mean)
