"""Views: other settings on shared weights, in several threads too; the model that they are of stays as it is."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from st_prompteol import TEMPLATES, PromptEOL, PromptTemplate, Standardization, lora_config
from st_prompteol.card.state import state_of
from st_prompteol.saved.identity import identify

from .helpers.models import features_of, gradients_of, publish_adapter
from .helpers.oracles import assert_alike
from .helpers.sentences import SENTENCES, SHOTS

ROWS = [*SENTENCES, "a long sentence, " * 30]
RECIPES: list[tuple[str | PromptTemplate, int]] = [
    *((name, -1 - number % 3) for number, name in enumerate(TEMPLATES) if name != "none"),
    ('"{sentence}" is', -1),
    ("prompteol", -2),
    (PromptTemplate(demonstrations=SHOTS), -3),
]


class Doubled(torch.nn.Module):
    """A user's own module."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["sentence_embedding"] = 2 * features["sentence_embedding"]
        return features


@pytest.fixture
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["llama"])


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_eight_threads_encode_with_eight_recipes_at_once(causal_lms: dict[str, str], fast: bool) -> None:
    assert len(RECIPES) == 8
    models = [PromptEOL(causal_lms["llama"], fast=fast) for _ in range(2)]

    def run(model: PromptEOL, number: int, times: int) -> list[Any]:
        view = model.view(*RECIPES[number])
        view.max_seq_length = 230 + number
        return [view.encode(ROWS, batch_size=3) for _ in range(times)]

    expected = [run(models[0], number, 1) * 3 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: run(models[1], number, 3), range(8)))
    assert np.abs(np.array(found) - expected).max() < 1e-6
    assert (models[1].template, models[1].layer) == (TEMPLATES["prompteol"], -1)


def test_a_running_encode_keeps_its_settings(model: PromptEOL) -> None:
    before, after = model.view().encode(ROWS, batch_size=2), model.view("knowledge", -2)
    after.max_seq_length = 200

    def change(*args: Any) -> None:
        model.template, model.layer, model.max_seq_length = "knowledge", -2, 200
        model.standardize(Standardization(np.ones(32), np.ones(32)))

    hook = model[0].model.register_forward_pre_hook(change)
    np.testing.assert_array_equal(model.encode(ROWS, batch_size=2), before)
    hook.remove()
    assert_alike(model.encode(ROWS), after.encode(ROWS) - 1)


def test_a_view_is_the_model_opened_so_and_leaves_the_model_alone(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt-350m"], prompts={"query": "q: "})
    before, settings = model.encode(ROWS), identify(model)
    view = model.view(PromptTemplate("{sentence} is", SHOTS), -2)
    opened = PromptEOL(causal_lms["opt-350m"], template=PromptTemplate("{sentence} is", SHOTS), layer=-2)
    np.testing.assert_array_equal(view.encode(ROWS), opened.encode(ROWS))
    assert view.get_embedding_dimension() == 32  # of an inner layer; the last one is projected to 16
    nested = view.view(layer=-1)
    np.testing.assert_array_equal(nested.encode(ROWS), opened.view(layer=-1).encode(ROWS))
    view.max_seq_length, view.truncate_dim, view.prompts["query"] = 100, 4, "x"
    view.tokenizer.truncation_side = "left"
    view.standardize(SENTENCES)
    assert (view.layer, nested.max_seq_length, len(nested), len(view)) == (-2, 256, 2, 3)
    assert identify(model) == settings
    np.testing.assert_array_equal(model.encode(ROWS), before)
    assert {id(one) for one in view[0].parameters()} == {id(one) for one in model[0].parameters()}
    assert view[0]._fast_path is model[0]._fast_path


def test_what_is_behind_the_pooling_is_kept(model: PromptEOL, caplog: pytest.LogCaptureFixture) -> None:
    model.standardize(SENTENCES)
    model.append(Normalize())
    model.append(Doubled())
    with caplog.at_level(logging.WARNING):
        view = model.view(layer=-2)
    assert "call standardize() again" in caplog.text
    assert list(view)[2:] == list(model)[2:]
    embeddings = view.encode(ROWS)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 2, atol=1e-5)
    model.layer = -2
    np.testing.assert_array_equal(model.encode(ROWS), embeddings)


def test_a_view_is_saved_with_a_card_of_its_own(model: PromptEOL, tmp_path: Path) -> None:
    model.model_card_data.measure("mine", "### Of the model\n\n1")
    view = model.view("knowledge", -2)
    view.model_card_data.measure("mine", "### Of the view\n\n2")
    for one, name, title in ((model, "model", "Of the model"), (view, "view", "Of the view")):
        one.save_pretrained(str(tmp_path / name))
        assert title in (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert_alike(SentenceTransformer(str(tmp_path / name)).encode(ROWS), one.encode(ROWS))
    same = model.view()
    assert state_of(same) == state_of(model) != state_of(view)


def test_adapters_and_weights_are_shared(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"])
    view = model.view("prompt", -2)
    bare = view.encode(ROWS)
    model.load_adapter(publish_adapter(causal_lms["llama"], tmp_path))
    adapted = view.encode(ROWS)
    assert np.abs(adapted - bare).max() > 1e-3
    model.disable_adapters()
    assert_alike(view.encode(ROWS), bare)
    model.enable_adapters()
    np.testing.assert_array_equal(view.encode(ROWS), adapted)
    for weight in model[0].model.layers[0].parameters():
        weight.data *= 1.1
    changed = view.encode(ROWS)
    view.fast = False
    assert not model.fast
    assert_alike(changed, view.encode(ROWS))
    view.fast = True
    assert_alike(changed, view.encode(ROWS))


def test_copies_of_a_view_are_models_of_their_own(model: PromptEOL) -> None:
    view = model.view("knowledge", -2)
    expected = view.encode(ROWS)
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        np.testing.assert_array_equal(twin.encode(ROWS), expected)
        twin[0].model.embed_tokens.weight.data.zero_()
    np.testing.assert_array_equal(view.encode(ROWS), expected)


def test_a_layer_that_was_cut_off_is_refused(model: PromptEOL) -> None:
    model.layer = -2
    before = model.view()
    model.cut()
    with pytest.raises(ValueError, match=r"layer=-3 is out of range: .* has 2 blocks, so choose -1"):
        model.view(layer=-3)
    assert before.view(layer=-3).encode(ROWS).shape == (len(ROWS), 32)


def test_training_a_view_trains_the_weights_of_all(model: PromptEOL) -> None:
    view = model.view(layer=-2)
    before = model.encode(ROWS)
    view.train()
    view(features_of(view, ROWS))["sentence_embedding"].square().sum().backward()
    assert gradients_of(model)
    with torch.no_grad():
        for weight in view.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad
    assert np.abs(model.encode(ROWS) - before).max() > 1e-3


def test_a_forward_that_accelerate_wrapped_reads_the_view(model: PromptEOL) -> None:
    expected = model.view(layer=-2).encode(ROWS)
    model.forward = MethodType(lambda self, *args, **kw: PromptEOL.forward(self, *args, **kw), model)  # type: ignore[method-assign]
    np.testing.assert_array_equal(model.view(layer=-2).encode(ROWS), expected)


def test_hooks_of_a_view_are_its_own(model: PromptEOL) -> None:
    before, view = model.encode(ROWS), model.view()
    for module in (view, view[0]):
        module.register_forward_hook(lambda module, args, output: {**output, "sentence_embedding": torch.zeros(1)})
    np.testing.assert_array_equal(model.encode(ROWS), before)


def test_the_base_of_an_adapter_changes_for_all(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(publish_adapter(causal_lms["llama"], tmp_path / "adapter"))
    view = model.view()
    model.merge_adapter()
    view.add_adapter(lora_config(r=2))
    with pytest.raises(ValueError, match="the weights below it have changed since that was opened"):
        view.save_pretrained(str(tmp_path / "saved"))
