"""Merging: embeddings are the same before and after, whichever adapters are in use, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from st_prompteol import PromptEOL, lora_config
from st_prompteol.saved.identity import digest, identify

from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES

OFF = "All adapters of .* are switched off"


def adapted(base: str, *names: str, **options: Any) -> PromptEOL:
    """A base with adapters that change its embeddings, the last one in use."""
    model = PromptEOL(base)
    for seed, name in enumerate(names):
        model.add_adapter(lora_config(r=4, **options), name)
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key and f".{name}" in key:
                torch.nn.init.normal_(parameter, std=0.1)
            if "modules_to_save" in key or "trainable_tokens" in key:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def layers(model: PromptEOL) -> list[Any]:
    return [layer for layer in model[0].model.modules() if isinstance(layer, BaseTunerLayer)]


def halved(model: PromptEOL) -> None:
    for layer in layers(model):
        layer.scale_layer(0.5)


def partly_off(model: PromptEOL) -> None:
    for layer in layers(model)[::2]:
        layer.enable_adapters(False)


def merged_before(model: PromptEOL) -> None:
    for layer in layers(model):
        layer.merge()


def merged_in_part(model: PromptEOL) -> None:
    model.set_adapter("a")
    layers(model)[0].merge()


def both_but_one_is_in(model: PromptEOL) -> None:
    """peft computes what is in the weights, and no other adapter."""
    layers(model)[0].merge(adapter_names=["a"])
    model.set_adapter(["a", "b"])


USES: dict[str, Callable[[PromptEOL], Any]] = {
    "the last": lambda model: None,
    "the first": lambda model: model.set_adapter("a"),
    "both": lambda model: model.set_adapter(["a", "b"]),
    "off and on": lambda model: (model.disable_adapters(), model.enable_adapters()),
    "one is gone": lambda model: model.delete_adapter("b") or model.set_adapter("a"),
    "half as strong": halved,
    "some layers off": partly_off,
    "in the weights": merged_before,
    "in some weights": merged_in_part,
    "one in the weights": both_but_one_is_in,
}


@pytest.mark.slow
def test_embeddings_stay_what_they_were(causal_lms: dict[str, str]) -> None:
    identities = []
    for use in USES.values():
        model = adapted(causal_lms["llama"], "a", "b")
        use(model)
        before = model.encode(SENTENCES)
        identities.append(digest(identify(model)))
        model.merge_adapter()
        assert model.adapters == []
        assert_alike(model.encode(SENTENCES), before)
    assert len(set(identities)) == len(USES) - 1  # "off and on" is "the last"


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [40, 41, 60]},
        {"use_rslora": True, "use_dora": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_was_off_is_not_merged(causal_lms: dict[str, str], options: dict[str, Any]) -> None:
    model = adapted(causal_lms["llama"], "a", **options)
    on = model.encode(SENTENCES)
    model.disable_adapters()
    off = model.encode(SENTENCES)
    assert np.abs(on - off).max() > 0.01
    with pytest.raises(ValueError, match=OFF):
        model.merge_adapter()
    np.testing.assert_array_equal(model.encode(SENTENCES), off)
    model.enable_adapters()
    model.merge_adapter()
    assert_alike(model.encode(SENTENCES), on, atol=1e-4)


def test_merged_models_are_saved_as_they_are(causal_lms: dict[str, str], plain: PlainProcess, tmp_path: Path) -> None:
    model = adapted(causal_lms["llama"], "a", "b")
    model.set_adapter(["a", "b"])
    before = model.encode(SENTENCES)
    model.merge_adapter()
    model.save_pretrained(str(tmp_path))
    assert_alike(PromptEOL(str(tmp_path)).encode(SENTENCES), before)
    assert_alike(plain.encode(tmp_path, SENTENCES), before)


NOT_SAVED: dict[str, tuple[Callable[[PromptEOL], Any], str]] = {
    "off": (lambda model: model.disable_adapters(), r"adapters are switched off \(a, b\)"),
    "off in part": (partly_off, "adapters are switched off"),
    "two in use": (lambda model: model.set_adapter(["a", "b"]), r"2 adapters are in use \(a, b\)"),
    "another in the weights": (lambda model: layers(model)[0].merge(adapter_names=["a"]), "another adapter is in"),
    "scaled": (halved, "the adapter 'b' is scaled otherwise"),
}


def test_what_a_folder_cannot_say_is_not_saved(causal_lms: dict[str, str], tmp_path: Path) -> None:
    for name, (change, told) in NOT_SAVED.items():
        model = adapted(causal_lms["llama"], "a", "b")
        change(model)
        with pytest.raises(ValueError, match=told):
            model.save_pretrained(str(tmp_path / name))
        assert not (tmp_path / name).exists()
