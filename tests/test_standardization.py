"""Standardizing: statistics of some sentences, applied to embeddings by a stock module, which every client applies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from st_prompteol import TINY, PromptEOL, Standardization, lora_config
from st_prompteol.standardization import METHODS

from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import JOCKEY, SENTENCES

SAMPLE = [f"{who} {does} in the {place}" for who in ("a man", "dogs", "it") for does in ("sings", "is") for place in
          ("garden", "sea", "year 1990")]  # fmt: skip
TOLERANCE = 1e-5
Rows = np.ndarray[Any, Any]


def cosines(rows: Rows) -> Rows:
    rows = np.asarray(rows, dtype=np.float64)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(directions @ directions.T)


def draw(count: int, dimension: int = 64, seed: int = 0) -> Rows:
    """Correlated numbers, each dimension with a mean and a deviation of its own."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dimension)) @ np.random.default_rng(7).normal(size=(dimension, dimension))
    return np.asarray(mixed * np.linspace(0.1, 5, dimension) + np.linspace(-3, 3, dimension))


def expected(rows: Rows, sample: Rows, method: str, shrinkage: float = 0.9) -> Rows:
    """Standardized rows by the definition; whitened ones by the symmetric root (ZCA-cor), another rotation of ours."""
    centered, deviation = rows - sample.mean(axis=0), sample.std(axis=0)
    if method == "center":
        return centered
    if method == "scale":
        return centered / deviation
    correlations = (1 - shrinkage) * np.corrcoef(sample.T) + shrinkage * np.eye(len(deviation))
    values, vectors = np.linalg.eigh(correlations)
    return (centered / deviation) @ (vectors / np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["opt", pytest.param("opt-350m", marks=pytest.mark.slow)])
def test_embeddings_are_standardized_here_and_everywhere(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str, method: Any
) -> None:
    model = PromptEOL(causal_lms[architecture], demonstrations=[JOCKEY], layer=-2)
    whole, sample = (model.encode(sentences).astype(np.float64) for sentences in (SENTENCES, SAMPLE))
    model.standardize(SENTENCES)
    statistics = model.standardize([*SAMPLE, SAMPLE[0]], method)  # a second call replaces the first
    assert [type(module).__name__ for module in model][1:] == ["LastTokenPooling", "Dense"]
    got, wanted = model.encode(SENTENCES), expected(whole, sample, method)
    limit = TOLERANCE * np.abs(wanted).max()
    if method == "whiten":  # up to a rotation
        np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=10 * limit)
    else:
        np.testing.assert_allclose(got, wanted, atol=limit)
    np.testing.assert_allclose(statistics.apply(whole), got, atol=limit)
    np.testing.assert_allclose(model.encode(SAMPLE).mean(axis=0), 0, atol=limit)
    model.fast = False
    np.testing.assert_allclose(model.encode(SENTENCES), got, atol=limit)

    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), got, atol=limit)
    opened = PromptEOL(str(tmp_path))
    np.testing.assert_allclose(opened.encode(SENTENCES), got, atol=limit)
    opened.standardize(SAMPLE[:9], "center")  # replaces what was saved
    assert len(opened) == 3
    np.testing.assert_allclose(opened.encode(SENTENCES), whole - sample[:9].mean(axis=0), atol=TOLERANCE)


def test_whitened_embeddings_are_uncorrelated_and_scaled_at_full_shrinkage() -> None:
    sample, others = draw(2000), draw(50, seed=1)
    whitened = Standardization.fit(sample, "whiten", shrinkage=1e-9).apply(sample)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(64), atol=1e-4)
    for shrinkage in (1e-9, 0.3, 0.9):
        ours = Standardization.fit(sample, "whiten", shrinkage).apply(others)
        np.testing.assert_allclose(cosines(ours), cosines(expected(others, sample, "whiten", shrinkage)), atol=1e-5)
    scaled = Standardization.fit(sample, "scale").apply(others)
    np.testing.assert_allclose(Standardization.fit(sample, "whiten", 1).apply(others), scaled, rtol=1e-5)


def test_the_first_whitened_dimensions_are_those_of_truncated_embeddings() -> None:
    sample, others = draw(100), draw(50, seed=1)
    first = Standardization.fit(sample, "whiten").apply(others)[:, :10]
    np.testing.assert_allclose(first, Standardization.fit(sample[:, :10], "whiten").apply(others[:, :10]), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_few_sentences_of_many_dimensions_stay_finite(method: Any) -> None:
    sample, others = draw(3, 576), draw(50, 576, seed=1)
    got = Standardization.fit(sample, method).apply(others)
    if method != "whiten":
        np.testing.assert_allclose(got, expected(others, sample, method), rtol=1e-5, atol=1e-5)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("method", METHODS)
def test_large_activations_and_constant_dimensions_disturb_no_similarity(method: Any) -> None:
    """One dimension is constant; one varies a millionth of its size, as much as rounding; one varies a little more."""
    sample, others = draw(300), draw(50, seed=1)
    wide = []
    for rows, seed in ((sample, 2), (others, 3)):
        rng = np.random.default_rng(seed)
        columns = [np.full(len(rows), 1e4), 1e4 + 1e-3 * rng.normal(size=len(rows))]
        wide.append(np.column_stack([rows, *columns]).astype(np.float32))
    statistics = Standardization.fit(wide[0], method)
    reference = Standardization.fit(sample, method).apply(others)
    rows = {"sentence_embedding": torch.from_numpy(wide[1])}
    for got in (statistics.apply(wide[1]), statistics.to_dense()(rows)["sentence_embedding"].detach().numpy()):
        np.testing.assert_allclose(cosines(got), cosines(reference), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_no_more_than_the_rounding_of_embeddings(method: Any, dtype: torch.dtype) -> None:
    """Also with a dimension whose mean is 100 times its deviation, and one whose deviation is lost by rounding."""
    sample, others = draw(300), draw(50, seed=1)
    for rows, seed in ((sample, 2), (others, 3)):
        rows[:, 3] += 100 * sample[:, 3].std()
        rows[:, 4] = 1e4 + 1e-2 * np.random.default_rng(seed).normal(size=len(rows))
    rounded, inputs = (torch.from_numpy(rows).to(dtype) for rows in (sample, others))
    statistics = Standardization.fit(rounded.double().numpy(), method, dtype=dtype)
    best = cosines(statistics.apply(inputs.double().numpy()))
    dense = statistics.to_dense(dtype)
    got = cosines(dense({"sentence_embedding": inputs})["sentence_embedding"].detach().double().numpy())
    sample[:, 4] = others[:, 4] = 0
    exact = cosines(Standardization.fit(sample, method).apply(others))
    assert np.abs(got - exact).max() < 2 * np.abs(best - exact).max() + 2 * torch.finfo(dtype).eps
    assert abs((got - exact).mean()) < 0.001


def test_in_half_precision_too(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"], model_kwargs={"dtype": torch.bfloat16})
    model.standardize(SAMPLE)
    model.save_pretrained(str(tmp_path))
    for opened in (SentenceTransformer(str(tmp_path)), PromptEOL(str(tmp_path)), model):
        embeddings = opened.encode(SAMPLE)
        assert np.abs(embeddings.mean(axis=0)).max() < 0.02 * np.abs(embeddings).max()
    assert {module[2].linear.weight.dtype for module in (opened, model)} == {torch.bfloat16}


def test_a_range_that_is_exceeded_is_told() -> None:
    statistics = Standardization(np.zeros(2), np.array([1.0, 1e5]))
    assert statistics.to_dense(torch.bfloat16).linear.weight[1, 1].isfinite()
    with pytest.raises(ValueError, match=r"exceed the range of torch\.float16: open the model in float32 or bfloat16"):
        statistics.to_dense(torch.float16)


def test_a_final_normalize_stays_last(causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess) -> None:
    """And trained modules, such as this projection, still read what they were trained on."""
    torch.manual_seed(0)
    model = PromptEOL(modules=[*PromptEOL(causal_lms["llama"]), Dense(32, 16), Normalize()])
    projected = PromptEOL(modules=list(model)[:3]).encode(SENTENCES)
    model.truncate_dim = 8
    model.standardize(SENTENCES)
    assert [type(module) for module in model][2:] == [Dense, Dense, Normalize]
    assert model.describe()["behind the pooling"] == "Dense, Dense (standardizes), Normalize"
    model.truncate_dim = None
    scaled = expected(projected, projected, "scale")
    np.testing.assert_allclose(model.encode(SENTENCES) @ model.encode(SENTENCES).T, cosines(scaled), atol=1e-4)
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), model.encode(SENTENCES), atol=TOLERANCE)


def test_an_adapter_and_a_cut_keep_the_statistics(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    model = PromptEOL(causal_lms["llama"], layer=-2)
    model.add_adapter(lora_config(r=2, init_lora_weights=False))
    model.standardize(SAMPLE)
    before = model.encode(SENTENCES)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert_alike(plain.encode(tmp_path / "adapter", SENTENCES), before)
    model.merge_adapter()
    assert_alike(model.encode(SENTENCES), before)
    with pytest.raises(
        ValueError, match="on which Dense behind it relies: cut the model without it, then make it anew"
    ):
        model.cut()


def test_unrelated_sentences_are_no_longer_alike() -> None:
    model = PromptEOL(TINY)
    sentences = ["A dog barks.", "Interest rates rise.", "She plays chess.", "Where is the station?", "Rain fell."] * 4
    texts = [f"{sentence} {number}" for number, sentence in enumerate(sentences)]
    before = model.similarity(*[model.encode(texts)] * 2).mean()
    for method in METHODS:
        model.standardize(texts, method)
        assert abs(model.similarity(*[model.encode(texts)] * 2).mean()) < 0.06 < before


def test_a_change_of_what_was_standardized_is_told(
    causal_lms: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    model = PromptEOL(causal_lms["opt"])
    model.standardize(SAMPLE)
    model.template = "knowledge"
    model.layer = -2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([message for message in told if "call standardize() again" in message]) == 2
    caplog.clear()
    model.standardize(SAMPLE)
    assert not caplog.records


def test_mistakes_are_told(causal_lms: dict[str, str]) -> None:
    model, rows = PromptEOL(causal_lms["opt"], max_seq_length=20), draw(5)
    for sentences in ([], ["one"], ["one", "one"]):
        with pytest.raises(ValueError, match=r"two different sentences or more, got [01]: pass some hundred"):
            model.standardize(sentences)
    cut_off = ["It rains" + " and rains" * 20 + end for end in (" here", " there")]
    with pytest.raises(ValueError, match="of all 2 sentences are equal"):
        model.standardize(cut_off)
    with pytest.raises(ValueError, match="have 32 dimensions, the statistics 3: fit them to embeddings"):
        model.standardize(Standardization(np.zeros(3), np.ones(3)))
    with pytest.raises(ValueError, match=r"'a\.txt' is one string: pass a list of sentences"):
        model.standardize("a.txt")
    with pytest.raises(ValueError, match="no pooling"):
        PromptEOL(modules=[model[0]]).standardize(SAMPLE)
    assert len(model) == 2
    with pytest.raises(ValueError, match="Unknown standardization 'zca': choose one of center, scale, whiten"):
        Standardization.fit(rows, "zca")  # type: ignore[arg-type]
    for shrinkage in (0, -1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            Standardization.fit(rows, "whiten", shrinkage)
    with pytest.raises(ValueError, match="shrinkage=1e-20 is too small for 5 sentences of 64 dimensions: raise it"):
        Standardization.fit(rows, "whiten", 1e-20)
    for few in (rows[:1], rows[0]):
        with pytest.raises(ValueError, match="two sentences or more, got the shape"):
            Standardization.fit(few)
    rows[3, 3] = np.nan
    for method in METHODS:
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            Standardization.fit(rows, method)
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        Standardization(np.array([np.nan]), np.ones(1))
    for mean, factor in ((np.zeros((1, 3)), np.ones(3)), (np.zeros(3), np.ones(2)), (np.zeros(3), np.ones((3, 2)))):
        with pytest.raises(ValueError, match="do not belong together"):
            Standardization(mean, factor)
