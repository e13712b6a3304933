"""What is saved computes the same numbers wherever it is opened, in the bytes that it came in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from st_prompteol import PromptEOL

from .helpers.models import adapted, build_causal_lm
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Causal LMs as their authors would publish them in each dtype."""
    made = {}
    for name, architecture in {"bfloat16": "llama", "float16": "llama", "float32": "llama", "qwen2": "qwen2"}.items():
        made[name] = build_causal_lm(tmp_path_factory.mktemp(name), architecture, bos=name != "qwen2")
        dtype = torch.bfloat16 if name == "qwen2" else getattr(torch, name)
        AutoModelForCausalLM.from_pretrained(made[name], dtype=dtype).save_pretrained(made[name])
    return made


def merged(model: PromptEOL) -> None:
    adapted(model)
    model.merge_adapter()


def centered(model: PromptEOL) -> None:
    model.standardize(SENTENCES, "center")


def one_number(model: PromptEOL) -> None:
    model[0].model.embed_tokens.weight.data[3, 7] += 1 / 3


def cut(model: PromptEOL) -> None:
    model.layer = -2
    model.cut()


# name -> base, the dtype that is asked for, what is done to it, the dtypes in the file, the one that is stated
CASES: dict[str, tuple[str, str | None, Callable[[PromptEOL], Any] | None, set[str], str]] = {
    "bfloat16": ("bfloat16", None, None, {"BF16"}, "float32"),
    "float16": ("float16", None, None, {"F16"}, "float32"),
    "float32": ("float32", None, None, {"F32"}, "float32"),
    "in float16": ("float32", "float16", None, {"F16"}, "float16"),
    "in bfloat16": ("bfloat16", "bfloat16", None, {"BF16"}, "bfloat16"),
    "in bfloat16, from float32": ("float32", "bfloat16", None, {"BF16"}, "bfloat16"),
    "in float32, from float16": ("float16", "float32", None, {"F16"}, "float32"),
    "standardized": ("bfloat16", None, lambda model: model.standardize(SENTENCES), {"BF16"}, "float32"),
    "centered in bfloat16": ("bfloat16", "bfloat16", centered, {"BF16"}, "bfloat16"),
    "merged": ("bfloat16", None, merged, {"F32"}, "float32"),
    "one number": ("bfloat16", None, one_number, {"BF16", "F32"}, "float32"),
    "cut": ("bfloat16", None, cut, {"BF16", "F32"}, "float32"),
    "Qwen2 as Llama": ("qwen2", None, None, {"BF16"}, "float32"),
    "adapter": ("bfloat16", None, adapted, {"F32"}, "float32"),
    "adapter in bfloat16": ("bfloat16", "bfloat16", adapted, {"BF16"}, "bfloat16"),
    "adapter on float16": ("float16", None, adapted, {"F32"}, "float32"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (number % 3 > 0)) for number, case in enumerate(CASES)]
)
def test_saved_models_compute_what_was_saved(
    bases: dict[str, str], plain: PlainProcess, tmp_path: Path, case: str
) -> None:
    base, dtype, change, stored, stated = CASES[case]
    model = PromptEOL(bases[base], model_kwargs={"dtype": dtype} if dtype else None)
    if change is not None:
        change(model)
    expected = model.encode(SENTENCES, convert_to_tensor=True).float().numpy()
    folders = [tmp_path / "once", tmp_path / "twice"]
    for folder in folders if case in ("bfloat16", "adapter") else folders[:1]:
        model.save_pretrained(str(folder))
        model = PromptEOL(str(folder))
        assert str(model.dtype) == f"torch.{stated}"
        np.testing.assert_array_equal(model.encode(SENTENCES, convert_to_tensor=True).float().numpy(), expected)
        if stated == "float32":
            assert_alike(plain.encode(folder, SENTENCES), expected)
        elif stated == "bfloat16":  # rounded otherwise where rows are computed otherwise
            assert_alike(plain.encode(folder, SENTENCES), expected, atol=3e-2)
        options = json.loads((folder / "sentence_bert_config.json").read_text())
        is_adapter = (folder / "adapter_config.json").exists()
        assert options.get("model_args") == ({"torch_dtype": stated} if is_adapter or stated != "float32" else None)
        if not is_adapter:
            config = json.loads((folder / "config.json").read_text())
            assert config["dtype"] == config["torch_dtype"] == stated
        (weights,) = folder.glob("*.safetensors")
        with safe_open(weights, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} <= stored
            narrow = sum(file.get_tensor(key).dtype.itemsize == 2 for key in file.keys())
        assert bool(narrow) == bool(stored - {"F32"})


def test_a_dtype_that_is_asked_for_goes_first(bases: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(bases["bfloat16"])
    model.save_pretrained(str(tmp_path / "full"))
    adapted(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    for folder in ("full", "adapter"):
        for key in ("dtype", "torch_dtype"):
            opened = PromptEOL(str(tmp_path / folder), model_kwargs={key: "bfloat16"})
            assert opened.dtype == torch.bfloat16


def test_exactness_is_that_of_every_number(bases: dict[str, str], tmp_path: Path) -> None:
    """Also behind the numbers that are looked at first, and of infinities that a narrow dtype would make."""
    model = PromptEOL(bases["float16"])
    weight = model[0].model.layers[0].mlp.up_proj.weight
    assert weight.numel() > 1024
    weight.data[-1, -1] = 70_000.0
    expected = model.encode(SENTENCES)
    model.save_pretrained(str(tmp_path))
    np.testing.assert_array_equal(PromptEOL(str(tmp_path)).encode(SENTENCES), expected)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        wide = [key for key in file.keys() if file.get_slice(key).get_dtype() == "F32"]
    assert wide == ["layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.float16), ("gemma3", torch.bfloat16)])
def test_a_cast_rounds_weights_only(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    """Rotary frequencies, which are not saved, stay those that a loaded model computes."""
    model = PromptEOL(build_causal_lm(tmp_path / "base", architecture))
    frequencies = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    model.to(dtype)
    expected = model.encode(SENTENCES, convert_to_tensor=True).float().numpy()
    model.save_pretrained(str(tmp_path / "saved"))
    again = PromptEOL(str(tmp_path / "saved"))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again.encode(SENTENCES, convert_to_tensor=True).float().numpy(), expected)
    model.float()
    assert frequencies
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in frequencies.items())
