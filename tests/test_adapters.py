"""Adapters against peft on the causal LM, in every form that they are published in; and bitsandbytes on this CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from st_prompteol import PromptEOL, lora_config, quantization_config
from st_prompteol.llm.adapters import load_adapter_weights

from .helpers.models import build_causal_lm, features_of, gradients_of, publish_adapter
from .helpers.oracles import dequantized, peft_oracle
from .helpers.processes import PlainProcess
from .helpers.sentences import JOCKEY, SENTENCES


@pytest.mark.parametrize(
    ("architecture", "binary"),
    [
        ("opt", True),
        ("gpt2", False),
        *(
            pytest.param(name, False, marks=pytest.mark.slow)
            for name in ("opt-350m", "gpt-neox", "llama", "qwen3", "gemma2")
        ),
    ],
)
def test_the_published_form_equals_peft_on_the_causal_lm_and_is_saved_with_its_tokenizer(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str, binary: bool
) -> None:
    base = causal_lms[architecture]
    adapter = publish_adapter(
        base,
        tmp_path / "published",
        binary=binary,
        fan_in_fan_out=architecture == "gpt2",  # GPT-2 stores transposes
    )
    model = PromptEOL(adapter, demonstrations=[JOCKEY])
    expected = peft_oracle(base, adapter, [model.template.render(sentence) for sentence in SENTENCES])
    scale = np.abs(expected).max()
    embeddings = model.encode(SENTENCES)
    np.testing.assert_allclose(embeddings / scale, expected / scale, atol=1e-5)
    assert np.abs(PromptEOL(base, demonstrations=[JOCKEY]).encode(SENTENCES) - embeddings).max() / scale > 0.01
    assert model.adapters == ["default"]

    model.save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    np.testing.assert_allclose(plain.encode(tmp_path / "saved", SENTENCES) / scale, expected / scale, atol=1e-5)
    again = PromptEOL(str(tmp_path / "saved"))
    np.testing.assert_allclose(again.encode(SENTENCES) / scale, expected / scale, atol=1e-5)
    assert again.template == model.template

    model.merge_adapter()
    assert model.adapters == []
    np.testing.assert_allclose(model.encode(SENTENCES) / scale, expected / scale, atol=1e-5)
    model.save_pretrained(str(tmp_path / "saved"))  # over the adapter: nothing of it may stay
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    np.testing.assert_allclose(plain.encode(tmp_path / "saved", SENTENCES) / scale, expected / scale, atol=1e-5)


def test_adapters_can_be_added_switched_and_turned_off(causal_lms: dict[str, str], tmp_path: Path) -> None:
    base = causal_lms["llama"]
    one = publish_adapter(base, tmp_path / "one", seed=1)
    two = publish_adapter(base, tmp_path / "two", seed=2, target_modules=["q_proj", "v_proj"])
    model = PromptEOL(base)
    plain, texts = model.encode(SENTENCES), [model.template.render(sentence) for sentence in SENTENCES]
    model.load_adapter(one, "one")
    model.load_adapter(two, "two")
    expected = {"one": peft_oracle(base, one, texts), "two": peft_oracle(base, two, texts)}
    for name in ("two", "one", "two"):
        model.set_adapter(name)
        np.testing.assert_allclose(model.encode(SENTENCES), expected[name], rtol=1e-4, atol=1e-4)
    model.disable_adapters()
    np.testing.assert_allclose(model.encode(SENTENCES), plain, rtol=1e-4, atol=1e-4)
    model.enable_adapters()
    model.delete_adapter("two")
    model.set_adapter("one")
    np.testing.assert_allclose(model.encode(SENTENCES), expected["one"], rtol=1e-4, atol=1e-4)
    assert model.adapters == ["one"]


def test_modules_to_save_are_opened_and_merged(causal_lms: dict[str, str], tmp_path: Path) -> None:
    base = causal_lms["llama"]
    adapter = publish_adapter(base, tmp_path, target_modules=["q_proj"], modules_to_save=["norm"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    norm = next(name for name in tensors if name.endswith("norm.weight"))
    save_file({**tensors, norm: tensors[norm] * 3}, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    model = PromptEOL(adapter)
    expected = peft_oracle(base, adapter, [model.template.render(sentence) for sentence in SENTENCES])
    np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=1e-4, atol=1e-4)
    model.merge_adapter()
    np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", r"it has no tensor for layers\.0\.mlp\.down_proj\.lora_A"),
        ("add", r"the model has no place for .*layers\.9\."),
        ("reshape", r"shapes differ: .*down_proj\.lora_A\.weight \(4, 99\)"),
        ("rename", r"Target modules .* not found"),
    ],
)
def test_an_adapter_with_a_tensor_too_few_or_too_many_is_refused(
    causal_lms: dict[str, str], tmp_path: Path, change: str, message: str
) -> None:
    base = causal_lms["llama"]
    adapter = publish_adapter(base, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    if change == "drop":
        del tensors[name]
    elif change == "add":
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    elif change == "reshape":
        tensors[name] = torch.zeros(4, 99)
    else:
        config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["nothing"]}))
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"(?s)does not fit .*{message}"):
        PromptEOL(adapter)

    model = PromptEOL(base)
    before = model.encode(SENTENCES)
    with pytest.raises(ValueError, match="does not fit"):
        model.load_adapter(adapter, "other")
    assert model.adapters == []
    np.testing.assert_array_equal(model.encode(SENTENCES), before)


def test_an_adapter_of_another_shape_of_base_is_refused(causal_lms: dict[str, str], tmp_path: Path) -> None:
    adapter = publish_adapter(causal_lms["opt"], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = causal_lms["opt-64"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="does not fit"):
        PromptEOL(adapter)


def test_an_adapter_whose_base_is_missing_names_it(causal_lms: dict[str, str], tmp_path: Path) -> None:
    adapter = publish_adapter(causal_lms["opt"], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"was trained on '.*gone', which cannot be opened"):
        PromptEOL(adapter)


def test_versions_that_leave_an_adapter_out_are_told_so(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["opt"])
    model.add_adapter(lora_config(r=2))
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["requirements"]["transformers"]["specifier"] == ">=5.6"
    saved["requirements"]["transformers"]["specifier"] = ">=999"
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(ImportError, match=r"transformers.*leave the adapter out"):
        SentenceTransformer(str(tmp_path))


def test_there_must_be_an_adapter_to_merge(causal_lms: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="has no adapter to merge"):
        PromptEOL(causal_lms["opt"]).merge_adapter()


def test_a_pickle_with_code_in_it_is_not_run(causal_lms: dict[str, str], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    adapter = publish_adapter(causal_lms["opt"], tmp_path, binary=True)
    torch.save({"base_model.x": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="which could run code, so it is not opened"):
        PromptEOL(adapter)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def quantizable(tmp_path_factory: pytest.TempPathFactory) -> str:
    """OPT with 64-wide rows, which bitsandbytes can pack for a CPU."""
    folder = tmp_path_factory.mktemp("quantizable")
    return build_causal_lm(folder, "opt-64")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_models_encode_save_and_open(
    quantizable: str, tmp_path: Path, plain: PlainProcess, quantization: Any
) -> None:
    model = PromptEOL(quantizable, quantization=quantization, device="cpu")  # as `plain`: others round otherwise
    expected = dequantized(quantizable, model).encode(SENTENCES)
    kinds = {type(module).__name__ for module in model[0].model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    embeddings = model.encode(SENTENCES)
    assert model.similarity_pairwise(embeddings, expected).min() > 0.99
    model.save_pretrained(str(tmp_path))
    scale = np.abs(embeddings).max()
    again = PromptEOL(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode(SENTENCES) / scale, embeddings / scale, atol=1e-5)
    whole = PromptEOL(str(tmp_path), fast=False, device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES) / scale, whole / scale, atol=1e-5)
    np.testing.assert_allclose(embeddings / scale, whole / scale, atol=1e-2)  # nf4 is multiplied in half precision


def test_an_adapter_opens_on_a_quantized_base_but_is_not_merged_into_it(quantizable: str, tmp_path: Path) -> None:
    adapter = publish_adapter(quantizable, tmp_path)
    model = PromptEOL(adapter, quantization="nf4")
    reference = dequantized(quantizable, PromptEOL(quantizable, quantization="nf4"))
    reference.load_adapter(adapter)
    embeddings, expected = model.encode(SENTENCES), reference.encode(SENTENCES)
    assert model.similarity_pairwise(embeddings, expected).min() > 0.99
    with pytest.raises(ValueError, match="open it without quantization, then merge"):
        model.merge_adapter()


@pytest.mark.shared
def test_layers_that_this_cpu_cannot_pack_are_computed_unpacked(stories: str) -> None:
    model = PromptEOL(stories, quantization="nf4", device="cpu")
    assert type(model[0].model.layers[0].mlp.down_proj).__name__ == "Linear4bit"  # of 172 columns
    expected = dequantized(stories, model).encode(SENTENCES)
    assert model.similarity_pairwise(model.encode(SENTENCES), expected).min() > 0.99


def test_the_quantization_is_the_paper_s() -> None:
    nf4 = quantization_config("nf4")
    assert (nf4.bnb_4bit_quant_type, nf4.bnb_4bit_use_double_quant) == ("nf4", True)
    assert nf4.bnb_4bit_compute_dtype == torch.float32
    assert quantization_config("int8").load_in_8bit
    with pytest.raises(ValueError, match="Unknown quantization 'int4': choose 'nf4' or 'int8'"):
        quantization_config("int4")


def test_lora_is_the_paper_s(causal_lms: dict[str, str]) -> None:
    config = lora_config()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (64, 16, 0.05, "none")
    assert (config.target_modules, config.task_type) == ("all-linear", "FEATURE_EXTRACTION")
    assert lora_config(target_modules=["q_proj"], use_rslora=True).use_rslora
    model = PromptEOL(causal_lms["opt"])
    model.add_adapter(config)
    adapted = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    model = PromptEOL(causal_lms["gpt2"])  # whose layers are Conv1D
    model.add_adapter(lora_config(fan_in_fan_out=True))
    adapted = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "lora_A")}
    assert adapted == {"c_attn", "c_proj", "c_fc"}


def test_saved_tensors_return_into_the_same_parameters(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"])
    model.add_adapter(lora_config(r=4, init_lora_weights=False))
    model.save_pretrained(str(tmp_path))
    before = model.encode(SENTENCES)
    parameters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter)
    assert np.abs(model.encode(SENTENCES) - before).max() > 1e-3
    load_adapter_weights(model[0].model, str(tmp_path))
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())
    np.testing.assert_array_equal(model.encode(SENTENCES), before)

    other = PromptEOL(causal_lms["llama"])
    other.add_adapter(lora_config(r=8))
    with pytest.raises(ValueError, match=r"differs from the adapter 'default' in layers\.0\..*lora_"):
        load_adapter_weights(other[0].model, str(tmp_path))


def gradients(model: PromptEOL) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)  # OPT's own dropout
    model(features_of(model, SENTENCES))["sentence_embedding"].square().sum().backward()
    return gradients_of(model)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_after_an_evaluation_are_those_before_it(quantizable: str, quantization: Any) -> None:
    model = PromptEOL(quantizable, quantization=quantization)
    model.encode(SENTENCES)  # as it was opened: on some CPUs this packs nf4 weights
    torch.manual_seed(0)
    model.add_adapter(lora_config(r=4, lora_dropout=0.0, init_lora_weights=False))
    first = gradients(model)
    model.encode(SENTENCES)
    second = gradients(model)
    assert first.keys() == second.keys()
    assert len(first) == 2 * 6 * 3  # A and B of six linear layers in three blocks
    for name, gradient in first.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(second[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())

    if quantization == "nf4":  # the oracle: float32 weights of the same values
        reference = dequantized(quantizable, PromptEOL(quantizable, quantization="nf4"))
        reference.add_adapter(lora_config(r=4, lora_dropout=0.0, init_lora_weights=False))
        reference.load_state_dict({n: p for n, p in model.state_dict().items() if "lora_" in n}, strict=False)
        scale = max(gradient.abs().max().item() for gradient in first.values())
        for name, gradient in gradients(reference).items():
            torch.testing.assert_close(first[name] / scale, gradient / scale, rtol=0, atol=1e-3)


@pytest.mark.parametrize("names", ["another prefix", "within a dictionary", "of another architecture", "none"])
def test_tensors_that_belong_to_no_layer_are_not_said_to_adapt_the_head(
    causal_lms: dict[str, str], tmp_path: Path, names: str
) -> None:
    folder = tmp_path / "adapter"
    publish_adapter(causal_lms["llama"], folder, binary=True)
    tensors = torch.load(folder / "adapter_model.bin")
    forms = {
        "another prefix": {f"module.{name}": tensor for name, tensor in tensors.items()},  # DistributedDataParallel's
        "within a dictionary": {"state_dict": tensors},
        "of another architecture": {name.replace("model.layers", "transformer.h"): t for name, t in tensors.items()},
        "none": {},
    }
    torch.save(forms[names], folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"No tensor of the adapter .* belongs to a layer of .* \(LlamaModel\)"):
        PromptEOL(str(folder))
