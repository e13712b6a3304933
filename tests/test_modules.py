"""The modules against an oracle written out here: causal LM, left padding with id 0, `hidden_states[layer][:, -1]`."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, T5Config, T5Model

from st_prompteol import (
    LastTokenPooling,
    PromptEOL,
    PromptEOLTransformer,
    PromptTemplate,
)

from .helpers.models import ARCHITECTURES, quick
from .helpers.oracles import assert_alike
from .helpers.sentences import SENTENCES, SHOTS
from .helpers.tokenizers import build_tokenizer


def oracle(path: str, texts: list[str], layer: int = -1) -> np.ndarray[Any, Any]:
    """The reference's way: every text on its own row, padded on the left with id 0, the whole causal LM."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, ids))
    input_ids = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    inputs = {"input_ids": input_ids, "attention_mask": mask, "output_hidden_states": True}
    if "position_ids" in inspect.signature(model.forward).parameters:  # absolute positions count from the first token
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**inputs).hidden_states[layer][:, -1].numpy()


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("architecture", quick(ARCHITECTURES, "opt", "opt-350m", "llama", "gpt2", "gemma3"))
def test_embeddings_equal_the_reference_s(causal_lms: dict[str, str], architecture: str, layer: int) -> None:
    path = causal_lms[architecture]
    template = PromptTemplate(demonstrations=SHOTS[: -layer - 1])
    model = PromptEOL(path, template=template, layer=layer)
    expected = oracle(path, [template.render(sentence) for sentence in SENTENCES], layer)
    for batch_size in (1, 3, 32):
        assert_alike(model.encode(SENTENCES, batch_size=batch_size), expected)
    order = np.random.default_rng(0).permutation(len(SENTENCES))
    shuffled = model.encode([SENTENCES[index] for index in order])
    assert_alike(shuffled, expected[order])
    assert model.get_embedding_dimension() == expected.shape[1]


def test_both_modules_work_in_a_hand_made_pipeline(causal_lms: dict[str, str]) -> None:
    transformer = PromptEOLTransformer(causal_lms["llama"])
    by_hand = SentenceTransformer(modules=[transformer, LastTokenPooling(32)])
    mean = SentenceTransformer(modules=[transformer, Pooling(32, "mean")])
    expected = PromptEOL(causal_lms["llama"]).encode(SENTENCES)
    np.testing.assert_allclose(by_hand.encode(SENTENCES), expected, atol=1e-6)
    assert np.abs(mean.encode(SENTENCES) - expected).max() > 0.1
    np.testing.assert_allclose(PromptEOL(modules=list(by_hand)).encode(SENTENCES), expected, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token_pooling_equals_upstream_s_on_either_side_of_padding(side: str) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    features = {"token_embeddings": torch.randn(3, 4, 8), "attention_mask": mask.flip(1) if side == "left" else mask}
    ours = LastTokenPooling(8)(dict(features))["sentence_embedding"]
    assert torch.equal(ours, Pooling(8, "lasttoken")(dict(features))["sentence_embedding"])


def test_last_token_pooling_pools_nothing_else() -> None:
    with pytest.raises(ValueError, match="use sentence-transformers' Pooling"):
        LastTokenPooling(8, "mean")


def test_template_and_layer_can_be_changed_and_the_next_encode_follows(causal_lms: dict[str, str]) -> None:
    path = causal_lms["opt-350m"]
    model = PromptEOL(path)
    model.encode(SENTENCES)
    model.template = PromptTemplate('"{sentence}" is', SHOTS)
    model.layer = -2
    expected = oracle(path, [model.template.render(sentence) for sentence in SENTENCES], -2)
    np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=1e-4, atol=1e-4)
    assert model.get_embedding_dimension() == 32
    model.layer, model.template = -1, "prompteol"
    np.testing.assert_allclose(model.encode(SENTENCES), PromptEOL(path).encode(SENTENCES), atol=1e-6)
    assert model.get_embedding_dimension() == 16


def test_a_long_sentence_loses_its_own_tail_never_the_template_s(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"], max_seq_length=40)
    tail = model.tokenizer.plain.encode(' means in one word:"').ids
    model.preprocess(["word " * 200])
    model.template = 'The sentence "{sentence}" says, at its very end:"'  # another tail than that of the first call
    other_tail = model.tokenizer.plain.encode(' says, at its very end:"').ids
    for expected in (other_tail, tail):
        features = model.preprocess(["word " * 200, "short"])
        rows = zip(features["input_ids"], features["attention_mask"], strict=True)
        long, short = (ids[mask.bool()].tolist() for ids, mask in rows)
        assert len(long) == 40 > len(short)
        assert long[-len(expected) :] == short[-len(expected) :] == expected
        model.template = "prompteol"


LONE = "lone \ud800 surrogate"
ODD = ["", " ", "\n\n", "a" * 100_000, "nul \x00 byte", LONE, "שלום עולם", "مرحبا", "🏳️‍🌈", "<s>", "</s>"]


@pytest.mark.parametrize("architecture", ["opt", "gpt2"])
def test_odd_sentences_give_finite_embeddings(causal_lms: dict[str, str], architecture: str) -> None:
    model = PromptEOL(causal_lms[architecture])
    embeddings = model.encode(ODD)
    assert np.isfinite(embeddings).all()
    assert embeddings.shape == (len(ODD), 32)
    np.testing.assert_allclose(embeddings[ODD.index(LONE)], model.encode("lone � surrogate"), atol=1e-5)
    tail = model.tokenizer.plain.encode(' means in one word:"').ids
    for sentence in ODD:
        assert model.preprocess([sentence])["input_ids"][0, -len(tail) :].tolist() == tail


@pytest.mark.parametrize("value", [None, float("nan"), 3, b"bytes", ["nested", "list"], {"text": "x"}])
def test_what_is_no_string_is_refused(causal_lms: dict[str, str], value: object) -> None:
    model = PromptEOL(causal_lms["opt"])
    with pytest.raises(TypeError, match="PromptEOL embeds strings"):
        model.encode(["fine", value])


def test_a_prompt_stands_in_front_of_the_sentence_inside_the_template(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"], prompts={"query": "query: "})
    expected = oracle(causal_lms["opt"], [model.template.render("query: x")])[0]
    for embedding in (model.encode("x", prompt="query: "), model.encode_query("x")):
        np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.encode_document("x"), model.encode("x"), atol=1e-6)


def test_an_empty_sentence_without_template_and_bos_has_nothing_to_embed(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["gpt2"], template="none")
    with pytest.raises(ValueError, match="leaves nothing to embed"):
        model.encode(["", "x"])
    assert np.isfinite(PromptEOL(causal_lms["opt"], template="none").encode([""])).all()


@pytest.mark.parametrize("layer", [0, 1, -4, 7, "last"])
def test_a_layer_out_of_range_is_refused(causal_lms: dict[str, str], layer: Any) -> None:
    with pytest.raises(ValueError, match=r"out of range: .* has 3 blocks, so choose -1 .* to -3"):
        PromptEOL(causal_lms["llama"], layer=layer)


def test_max_seq_length_must_hold_the_template_and_not_exceed_the_positions(causal_lms: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="leaves no room for a sentence: the template takes"):
        PromptEOL(causal_lms["opt"], max_seq_length=8)
    with pytest.raises(ValueError, match="exceeds the 256 positions"):
        PromptEOL(causal_lms["opt"], max_seq_length=257)
    model = PromptEOL(causal_lms["opt"], max_seq_length=60)
    before = model.encode(SENTENCES)
    with pytest.raises(ValueError, match="leaves no room"):
        model.max_seq_length = 10
    with pytest.raises(ValueError, match="with 8 demonstrations"):
        model.template = PromptTemplate(demonstrations=SHOTS * 4)
    assert model.max_seq_length == 60
    np.testing.assert_array_equal(model.encode(SENTENCES), before)


@pytest.mark.parametrize(
    "encoder",
    [
        BertModel(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)),
        T5Model(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
    ],
    ids=["bert", "t5"],
)
def test_an_encoder_is_refused_with_what_to_use(tmp_path: Path, encoder: torch.nn.Module) -> None:
    encoder.save_pretrained(tmp_path)
    build_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"is not a decoder LLM.*a causal language model.*plain SentenceTransformer"):
        PromptEOL(str(tmp_path))


def test_a_decoder_made_bidirectional_is_refused(tmp_path: Path, causal_lms: dict[str, str]) -> None:
    shutil.copytree(causal_lms["llama"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_causal": False}), encoding="utf-8")
    with pytest.raises(ValueError, match="is not a decoder LLM"):
        PromptEOL(str(tmp_path))


def test_a_tokenizer_s_own_chat_template_is_replaced(tmp_path: Path, causal_lms: dict[str, str]) -> None:
    shutil.copytree(causal_lms["llama"], tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "User: {{ messages[0]['content'] }}\nAssistant:"
    tokenizer.save_pretrained(tmp_path)
    expected = PromptEOL(causal_lms["llama"]).encode(SENTENCES)
    np.testing.assert_allclose(PromptEOL(str(tmp_path)).encode(SENTENCES), expected, atol=1e-6)


def test_survives_copying_and_pickling(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=SHOTS)
    expected = model.encode(SENTENCES)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.encode(SENTENCES), expected)
        assert twin.template == model.template
