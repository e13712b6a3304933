"""Cut models against inner hidden states of the causal LM that they were cut from, whose norms have odd weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModelForCausalLM, AutoTokenizer, CohereConfig, OPTConfig, Qwen3Config

from st_prompteol import TINY, PromptEOL

from .helpers.models import ARCHITECTURES, build_causal_lm, grouped, publish_adapter, quick, sized
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess, run
from .helpers.sentences import JOCKEY, SENTENCES

MORE = {
    "opt without its norm": sized(OPTConfig, ffn_dim=64, word_embed_proj_dim=32, _remove_final_layer_norm=True),
    "opt with norms behind": sized(OPTConfig, ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=False),
    # as many tokens that end a text as blocks
    "qwen3 with windows": grouped(
        Qwen3Config, use_sliding_window=True, sliding_window=8, max_window_layers=1, eos_token_id=[2, 3, 4]
    ),
    "cohere": grouped(CohereConfig),
}
KEEPS_LENGTHS = ["opt", "opt without its norm", "opt with norms behind"]
CUTTABLE = [*KEEPS_LENGTHS, "llama", "mistral", "qwen3 with windows", "qwen3", "gemma2", "gemma3"]
REFUSED = {
    "gpt2": r"ln_f \(LayerNorm\), which subtracts the mean",
    "gpt-neox": r"final_layer_norm \(LayerNorm\), which subtracts the mean",
    "cohere": r"norm \(CohereLayerNorm\), which subtracts the mean",
    "opt-350m": r"project_out \(Linear\), which changes its direction",
}


@pytest.fixture(scope="session")
def odd_norms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By architecture a saved causal LM in which nothing is 0 or 1 that could be another number; read only."""
    return {
        name: build_causal_lm(
            tmp_path_factory.mktemp(name.replace(" ", "-")), {**ARCHITECTURES, **MORE}[name], odd_norms=True
        )
        for name in {*CUTTABLE, *REFUSED}
    }


def oracle(path: str, texts: list[str], layer: int) -> np.ndarray[Any, Any]:
    """transformers' own way: one text at a time through the whole causal LM."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        outputs = [model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True) for text in texts]
    return torch.stack([output.hidden_states[layer][0, -1] for output in outputs]).numpy()


def off(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """How far below 1 the lowest cosine of two rows is."""
    one, other = (rows.astype(np.float64) for rows in (one, other))
    cosines = (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return float((1 - cosines).max())


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


@pytest.mark.parametrize("layer", [-2, -3])
@pytest.mark.parametrize("architecture", quick(CUTTABLE, "opt", "llama", "gemma3"))
def test_the_last_layer_is_what_the_inner_one_was(
    odd_norms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str, layer: int
) -> None:
    path = odd_norms[architecture]
    model = PromptEOL(path, layer=layer, demonstrations=[JOCKEY])
    expected = oracle(path, [model.template.render(sentence) for sentence in SENTENCES], layer)
    before, parameters = model.encode(SENTENCES), model[0].model.num_parameters()

    cut = model.cut()
    embeddings = model.encode(SENTENCES)
    assert (cut.layer, cut.removed, cut.blocks) == (layer, -layer - 1, 4 + layer)
    assert (model.layer, model.get_embedding_dimension()) == (-1, 32)
    assert model[0].model.num_parameters() < parameters * (3 + cut.blocks) / 6
    assert off(embeddings, expected) < 1e-6
    assert off(embeddings, before) < 1e-6
    assert cut.keeps_lengths == (architecture in KEEPS_LENGTHS)
    if cut.keeps_lengths:
        assert_alike(embeddings, expected)
    else:
        assert np.abs(embeddings - expected).max() > 0.1

    model.save_pretrained(str(tmp_path))
    assert_alike(plain.encode(tmp_path, SENTENCES), embeddings)
    opened = PromptEOL(str(tmp_path))
    assert_alike(opened.encode(SENTENCES), embeddings)
    assert (opened.layer, opened.template) == (-1, model.template)
    config, original = config_of(tmp_path), config_of(Path(path))
    assert config["num_hidden_layers"] == cut.blocks
    if "layer_types" in original:
        assert config["layer_types"] == original["layer_types"][: cut.blocks]
    if architecture == "qwen3 with windows":
        assert (config["max_window_layers"], config["eos_token_id"]) == (1, [2, 3, 4])
    if architecture == "qwen3":
        assert config["max_window_layers"] == cut.blocks


def test_gemma_s_norm_counts_from_zero_and_others_from_one(odd_norms: dict[str, str]) -> None:
    for architecture, number in (("gemma2", 0), ("gemma3", 0), ("llama", 1), ("qwen3", 1)):
        model = PromptEOL(odd_norms[architecture], layer=-2)
        model.cut()
        assert torch.equal(model[0].model.norm.weight.cpu(), torch.full((32,), float(number)))
        # so the mean square is 1
        np.testing.assert_allclose(np.linalg.norm(model.encode(SENTENCES), axis=1), 32**0.5, rtol=1e-3)


@pytest.mark.parametrize("architecture", REFUSED)
def test_families_that_would_change_directions_are_refused(odd_norms: dict[str, str], architecture: str) -> None:
    model = PromptEOL(odd_norms[architecture], layer=-2)
    before, body = model.encode(SENTENCES), model[0].model
    with pytest.raises(ValueError, match=f"cannot be cut at layer=-2: .* puts its last .*{REFUSED[architecture]}"):
        model.cut()
    assert model[0].model is body
    assert model.layer == -2
    np.testing.assert_array_equal(model.encode(SENTENCES), before)


def test_a_cut_model_is_a_model_like_others(odd_norms: dict[str, str], tmp_path: Path) -> None:
    path = odd_norms["llama"]
    model = PromptEOL(path, layer=-2)
    model.encode(SENTENCES)
    model.cut()
    assert not model[0]._fast_path._heads
    model.encode(SENTENCES)
    assert model[0]._fast_path._heads  # on the fast path, whose head is not that of the model before
    model.template, model.layer = '"{sentence}" is', -2
    expected = oracle(path, [model.template.render(sentence) for sentence in SENTENCES], -3)
    assert_alike(model.encode(SENTENCES), expected)
    model.cut()  # once more
    assert off(model.encode(SENTENCES), expected) < 1e-6

    model.add_adapter(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted = model.encode(SENTENCES)
    assert off(adapted, expected) > 1e-3
    model.merge_adapter()
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(PromptEOL(str(tmp_path)).encode(SENTENCES), adapted, atol=1e-4)


def test_half_precision_is_cut_too(odd_norms: dict[str, str]) -> None:
    for architecture in ("llama", "gemma2", "opt"):
        model = PromptEOL(odd_norms[architecture], layer=-2, model_kwargs={"dtype": "bfloat16"})
        before = model.encode(SENTENCES)
        model.cut()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert off(model.encode(SENTENCES), before) < 1e-3


def test_modules_behind_decide_along(odd_norms: dict[str, str], tmp_path: Path, plain: PlainProcess) -> None:
    def with_modules(architecture: str, *modules: torch.nn.Module) -> PromptEOL:
        return PromptEOL(modules=[*PromptEOL(odd_norms[architecture], layer=-2), *modules])

    centring = partial(Dense, 32, 32, activation_function=torch.nn.Identity())
    model = with_modules("llama", Normalize())
    before = model.encode(SENTENCES)
    assert model.cut().keeps_lengths
    np.testing.assert_allclose(model.encode(SENTENCES), before, atol=1e-6)
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), before, atol=1e-5)

    model = with_modules("llama", centring(bias=True))
    with pytest.raises(ValueError, match="keeps its direction and not its length, on which Dense behind it relies"):
        model.cut()
    assert (model.layer, len(model[0].model.layers)) == (-2, 3)
    assert with_modules("llama", centring(bias=False)).cut().blocks == 2
    assert with_modules("opt", centring(bias=True)).cut().keeps_lengths


def test_what_cannot_be_cut_is_refused_with_the_remedy(odd_norms: dict[str, str], tmp_path: Path) -> None:
    path = odd_norms["llama"]
    with pytest.raises(ValueError, match="layer=-1 is the last layer, so no block is above it to be cut"):
        PromptEOL(path).cut()
    adapter = PromptEOL(publish_adapter(path, tmp_path / "adapter"), layer=-2)
    with pytest.raises(ValueError, match=r"has adapters \(default\): call merge_adapter\(\) first"):
        adapter.cut()
    expected = adapter.encode(SENTENCES)
    adapter.merge_adapter()
    adapter.cut()
    assert off(adapter.encode(SENTENCES), expected) < 1e-6

    model = PromptEOL(path, layer=-2)
    model[0].model.layers = torch.nn.Sequential(*model[0].model.layers)
    with pytest.raises(ValueError, match="LlamaModel does not keep its blocks in one list"):
        model.cut()
    model = PromptEOL(path, layer=-2)
    model[0].model.hf_device_map = {"layers.0": 0, "layers.1": 1}
    with pytest.raises(ValueError, match=r"spread over several devices.*device='cpu'"):
        model.cut()
    model = PromptEOL(path, layer=-2)
    del model[0].model.norm
    with pytest.raises(ValueError, match=r"cannot be cut to 2 blocks: KeyError: 'norm\.weight'"):
        model.cut()


def test_a_quantized_model_is_refused(causal_lms: dict[str, str]) -> None:
    pytest.importorskip("bitsandbytes")
    model = PromptEOL(causal_lms["opt-64"], layer=-2, quantization="nf4")
    with pytest.raises(ValueError, match="is quantized, and only full weights are cut: open it without quantization"):
        model.cut()


def test_the_packaged_model_can_be_cut(tmp_path: Path, plain: PlainProcess) -> None:
    model = PromptEOL(TINY, layer=-2)
    expected = oracle(TINY, SENTENCES, -2)  # its own tokenizer has the template
    model.cut()
    model.save_pretrained(str(tmp_path))
    assert off(plain.encode(tmp_path, SENTENCES), expected) < 1e-6


def test_export_cuts_and_says_what_servers_read(
    odd_norms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    adapter, folder = publish_adapter(odd_norms["llama"], tmp_path / "adapter"), tmp_path / "cut"
    code, out, message = run("export", adapter, str(folder), "--layer", "-2", "--cut")
    assert (code, out) == (0, "")
    assert message.splitlines()[0] == (
        "removed 1 of 3 blocks: the last layer is what layer -2 was; cosines are equal, lengths are not"
    )
    assert "open it with SentenceTransformer" in message
    assert "vLLM" not in message
    assert not (folder / "adapter_config.json").exists()
    assert off(plain.encode(folder, SENTENCES), PromptEOL(adapter, layer=-2).encode(SENTENCES)) < 1e-6

    _, _, message = run("export", odd_norms["opt"], str(folder), "--layer", "-3", "--cut")
    assert "removed 2 of 3 blocks: the last layer is what layer -3 was; cosines are equal, lengths are too" in message
    code, _, message = run("export", odd_norms["llama"], str(folder), "--layer", "-2")
    assert code == 0
    assert "layer=-2 is an inner layer, and servers such as vLLM and llama.cpp read the last one" in message
    assert "'st-prompteol export MODEL FOLDER --cut'" in message
    assert "servers" not in run("export", odd_norms["llama"], str(folder))[2]


def test_what_export_refuses_is_one_sentence_and_leaves_no_folder(odd_norms: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    for arguments, message in (
        ([odd_norms["llama"]], "layer=-1 is the last layer"),
        ([odd_norms["gpt2"], "--layer", "-2"], "which subtracts the mean"),
    ):
        code, out, error = run("export", *arguments, str(folder), "--cut")
        assert (code, out) == (2, "")
        assert error.startswith("st-prompteol: ")
        assert message in error
        assert error.count("\n") == 1
    assert not folder.exists()


def test_push_says_what_servers_read(odd_norms: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    for layer, notes in ((-1, 0), (-2, 1)):
        caplog.clear()
        with pytest.raises(ValueError, match="has no adapter to merge"):  # ends before it looks for a Hub
            PromptEOL(odd_norms["llama"], layer=layer).push_to_hub("user/name", merge_to="user/merged")
        assert caplog.text.count("servers such as vLLM and llama.cpp read the last one") == notes
