"""What is opened is whole, and a decoder; everything else is one sentence, and none says how to switch a check off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from st_prompteol import PromptEOL

from .helpers import build_tokenizer
from .test_adapters import publish_adapter


def without(source: str, folder: Path, tensor: str) -> str:
    """A copy of a checkpoint that lacks a tensor."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if tensor not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("family", "tensor"),
    [("llama", "layers.1.mlp.down_proj"), ("opt", "layers.0.fc1.bias"), ("gpt2", "wpe"), ("gpt-neox", "final_layer")],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    causal_lms: dict[str, str], tmp_path: Path, family: str, tensor: str
) -> None:
    broken = without(causal_lms[family], tmp_path / "base", tensor)
    with pytest.raises(ValueError, match=rf"base' has no tensor for .*{tensor}.*, which would be random"):
        PromptEOL(broken)
    PromptEOL(causal_lms[family]).save_pretrained(str(tmp_path / "saved"))
    broken = without(str(tmp_path / "saved"), tmp_path / "again", tensor)
    with pytest.raises(ValueError, match=rf"again' has no tensor for .*{tensor}"):
        PromptEOL(broken)


def test_the_base_of_an_adapter_must_be_whole_and_a_head_may_lack(causal_lms: dict[str, str], tmp_path: Path) -> None:
    base = without(causal_lms["llama"], tmp_path / "base", "lm_head")
    adapter = publish_adapter(base, tmp_path / "adapter")
    PromptEOL(adapter)
    shutil.rmtree(base)
    without(causal_lms["llama"], tmp_path / "base", "layers.2.self_attn.q_proj")
    with pytest.raises(ValueError, match=r"base' has no tensor for .*q_proj\.weight, which would"):
        PromptEOL(adapter)


def unknown_adapter(base: str, folder: Path) -> Callable[[], Any]:
    folder.mkdir()
    config = {"peft_type": "NOPE", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return lambda: PromptEOL(str(folder))


def pickled(base: str, folder: Path) -> Callable[[], Any]:
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.x": Path("x")}, folder / "pytorch_model.bin")
    return lambda: PromptEOL(str(folder))


def pickled_adapter(base: str, folder: Path) -> Callable[[], Any]:
    publish_adapter(base, folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": Path("x")}, folder / "adapter_model.bin")
    return lambda: PromptEOL(str(folder))


HOSTILE: dict[str, tuple[Callable[[str, Path], Callable[[], Any]], str]] = {
    "device_map=meta": (
        lambda base, folder: lambda: PromptEOL(base, model_kwargs={"device_map": "meta"}),
        "On the device 'meta' a model has no weights",
    ),
    "device=meta": (lambda base, folder: lambda: PromptEOL(base, device="meta"), "On the device 'meta' a model has"),
    "to(meta)": (lambda base, folder: lambda: PromptEOL(base).to("meta").encode("a"), "On the device 'meta' a model"),
    "unknown adapter": (unknown_adapter, "adapter_config.json of .* is none that the installed peft knows .*NOPE"),
    "pickled weights": (pickled, "holds something else than numbers, which could run code, so it is not opened"),
    "pickled adapter": (pickled_adapter, "holds something else than numbers, which could run code"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_cannot_be_opened_is_one_sentence(causal_lms: dict[str, str], tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    call = make(causal_lms["llama"], tmp_path / "model")
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "family",
    ["bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"],
)
def test_the_decoder_of_a_model_with_an_encoder_is_refused(tmp_path: Path, family: str) -> None:
    """Their body is opened with its encoder, so the embedding was another one, or none at an inner layer."""
    tokenizer = build_tokenizer(tmp_path)
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in
             {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()}  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), d_model=32, is_encoder_decoder=False, is_decoder=True,
        decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for layer in (-1, -2):
        with pytest.raises(ValueError, match=rf"\({family}\) is not a decoder LLM"):
            PromptEOL(str(tmp_path), layer=layer)
