"""Checkpoints that come quantized, against transformers' causal LM of the same checkpoint."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    TorchAoConfig,
)

from st_prompteol import PromptEOL, lora_config
from st_prompteol.corpus import encode_corpus
from st_prompteol.evaluation import Comparison
from st_prompteol.fast.check import mixes_rows
from st_prompteol.recipes import LocalLM
from st_prompteol.saved.identity import identify

from .helpers.models import build_causal_lm, quick
from .helpers.oracles import dequantized
from .helpers.processes import PlainProcess
from .helpers.quantized import BLOCK, save_bitsandbytes, save_compressed, save_quantized
from .helpers.sentences import JOCKEY, SENTENCES
from .helpers.senteval import build_senteval

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # gptqmodel's


def save_torchao(base: Path, folder: Path, kind: str) -> None:
    save_quantized(base, folder, TorchAoConfig(getattr(pytest.importorskip("torchao.quantization"), kind)()))


def save_fp8(base: Path, folder: Path, kind: str) -> None:
    """DeepSeek's layout: numbers of 8 bits and a scale for each block of them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            rows, columns = weight.shape
            blocks = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            numbers = (blocks / scales[:, None, :, None]).reshape(rows, columns)
            tensors |= {name: numbers.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(base / "config.json", folder)
    blocks_of = {"activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    state(folder, {"quant_method": "fp8", "fmt": kind, **blocks_of})


def pack(numbers: torch.Tensor, order: Sequence[int] = range(8)) -> torch.Tensor:
    """Eight numbers of 4 bits of a row in one of 32."""
    groups = numbers.long().reshape(len(numbers), -1, 8)
    packed = sum(groups[:, :, place] << (4 * bits) for bits, place in enumerate(order))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def save_packed(base: Path, folder: Path, kind: str) -> None:
    """GPTQ's and AWQ's layouts, rounding to the nearest; `floats` holds the weights that they stand for."""
    pytest.importorskip("gptqmodel", reason="gptqmodel cannot be installed beside this torch by pip's own rules")
    tensors: dict[str, torch.Tensor] = {}
    floats = load_file(base / "model.safetensors")
    for name, weight in list(floats.items()):
        if not name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            tensors[name] = weight
            continue
        columns = weight.T.reshape(-1, BLOCK, len(weight))
        high, low = columns.amax(1).clamp_min(0), columns.amin(1).clamp_max(0)
        if kind == "gptq":
            scales, zeros = (columns.abs().amax(1) / 7).half(), torch.full(high.shape, 8.0)
        else:
            scales = ((high - low) / 15).half()
            zeros = (-low / scales).round()
        numbers = ((columns / scales[:, None].float()).round() + zeros[:, None]).clamp(0, 15)
        exact = (numbers - zeros[:, None]) * scales[:, None]
        floats[name] = exact.reshape(-1, len(weight)).T.half().float().contiguous()
        numbers, part = numbers.reshape(-1, len(weight)), name.removesuffix("weight")
        if kind == "gptq":
            tensors[f"{part}qweight"] = pack(numbers.T).T
            tensors[f"{part}qzeros"] = pack(zeros - 1)
            tensors[f"{part}g_idx"] = (torch.arange(len(numbers)) // BLOCK).int()
        else:
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            tensors |= {f"{part}qweight": pack(numbers, order), f"{part}qzeros": pack(zeros, order)}
        tensors[f"{part}scales"] = scales
    shutil.copytree(base, folder, dirs_exist_ok=True)
    shutil.copytree(base, folder / "floats")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(floats, folder / "floats/model.safetensors", metadata={"format": "pt"})
    own = {"sym": True, "desc_act": False, "checkpoint_format": "gptq"} if kind == "gptq" else {"zero_point": True}
    state(folder, {"quant_method": kind, "bits": 4, "group_size": BLOCK, **own})


# Who saves it and as what -> what `info` says, how near to the oracle, and whether rows share what they begin with
FORMATS: dict[str, tuple[Callable[[Path, Path, str], None], str, str, float, bool]] = {
    "nf4": (save_bitsandbytes, "nf4", "bitsandbytes nf4", 1e-2, True),
    "int8": (save_bitsandbytes, "int8", "bitsandbytes int8", 6e-2, False),
    "torchao int8": (save_torchao, "Int8WeightOnlyConfig", "torchao Int8WeightOnlyConfig", 1e-5, True),
    "torchao fp8": (save_torchao, "Float8WeightOnlyConfig", "torchao Float8WeightOnlyConfig", 1e-5, True),
    "torchao dynamic": (
        save_torchao,
        "Int8DynamicActivationInt8WeightConfig",
        "torchao Int8DynamicActivationInt8WeightConfig",
        6e-2,
        False,
    ),
    "W4A16": (save_compressed, "W4A16", "compressed-tensors pack-quantized, opened as floats", 1e-5, True),
    "W8A8": (save_compressed, "W8A8", "compressed-tensors int-quantized, opened as floats", 1e-5, True),
    "FP8_DYNAMIC": (
        save_compressed,
        "FP8_DYNAMIC",
        "compressed-tensors float-quantized, opened as floats",
        1e-5,
        True,
    ),
    "fp8": (save_fp8, "e4m3", "fp8 e4m3, opened as floats", 1e-5, True),
    "gptq": (save_packed, "gptq", "gptq 4 bit", 1e-5, True),
    "awq": (save_packed, "awq", "awq 4 bit", 1e-5, True),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llama and OPT of rows that are 64 wide, as kernels of quantized weights ask for."""
    return {
        name: Path(build_causal_lm(tmp_path_factory.mktemp(name), f"{name}-64", bos=True)) for name in ("llama", "opt")
    }


@pytest.fixture(scope="module")
def checkpoints(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a quantized checkpoint when it is first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def make(architecture: str, name: str) -> Path:
        if (architecture, name) not in made:
            folder, base = tmp_path_factory.mktemp("quantized"), bases[architecture]
            save, kind, *_ = FORMATS[name]
            save(base, folder, kind)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(base / file, folder)
            made[architecture, name] = folder
        return made[architecture, name]

    return make


def hidden_states(folder: Path, model: PromptEOL, layer: int, **options: Any) -> np.ndarray[Any, Any]:
    """The reference's way, on the causal LM and with the plain tokenizer."""
    folder = folder / "floats" if (folder / "floats").exists() else folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **options)
    found = []
    with torch.no_grad():
        for sentence in SENTENCES:
            ids = tokenizer(model.template.render(sentence), return_tensors="pt")["input_ids"]
            found.append(causal_lm(ids, output_hidden_states=True).hidden_states[layer][0, -1].numpy())
    return np.stack(found)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # to the oracle
@pytest.mark.parametrize("name", quick(FORMATS, "nf4", "int8", "torchao int8", "W4A16"))
@pytest.mark.parametrize("architecture", quick(["llama", "opt"], "llama"))
def test_embeddings_are_those_of_the_causal_lm(
    checkpoints: Callable[[str, str], Path], architecture: str, name: str
) -> None:
    folder = checkpoints(architecture, name)
    *_, told, tolerance, shares = FORMATS[name]
    model = PromptEOL(str(folder), demonstrations=[JOCKEY])
    assert model.describe()["quantization"] == told
    # transformers turns these weights into floats too, at the first pass, and rounds activations as a server would
    floats = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if "compressed" in told else {}
    for layer in (-1, -2):
        model.layer = layer
        expected = hidden_states(folder, model, layer, **floats)
        together = model.encode(SENTENCES)
        assert distance(together, expected) <= tolerance
        in_pairs = [model.encode(SENTENCES[start : start + 2]) for start in range(0, len(SENTENCES), 2)]
        assert distance(np.concatenate(in_pairs), together) <= tolerance
    assert (max(model[0]._fast_path._longest.values()) > 0) is shares
    assert mixes_rows(model[0].model) is (name == "int8")


@pytest.mark.parametrize("name", quick(["nf4", "torchao int8", "W4A16", "fp8"], "W4A16", "fp8"))
def test_saved_it_is_the_same_everywhere(
    checkpoints: Callable[[str, str], Path], tmp_path: Path, plain: PlainProcess, name: str
) -> None:
    model = PromptEOL(str(checkpoints("llama", name)), demonstrations=[JOCKEY], fast=False)
    expected = model.encode(SENTENCES)
    model.save_pretrained(str(tmp_path))
    assert distance(plain.encode(tmp_path, SENTENCES), expected) <= 1e-5
    assert distance(PromptEOL(str(tmp_path), fast=False).encode(SENTENCES), expected) <= 1e-5
    if "floats" not in FORMATS[name][2]:
        assert PromptEOL(str(tmp_path)).describe()["quantization"] == FORMATS[name][2]


@pytest.mark.parametrize("name", quick(["nf4", "torchao int8", "W4A16", "fp8", "gptq", "awq"], "nf4", "W4A16"))
def test_an_adapter_is_trained_on_it_with_right_gradients(
    bases: dict[str, Path], checkpoints: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    folder = checkpoints("llama", name)
    model = PromptEOL(str(folder))
    floats = dequantized(str(folder / "floats" if (folder / "floats").exists() else bases["llama"]), model)
    for some in (model, floats):
        some.add_adapter(lora_config(r=4, lora_dropout=0.0, init_lora_weights=False))
    own = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    floats.load_state_dict(own, strict=False)
    for some in (model, floats):
        some.train()
        first, *others = some(some.preprocess(SENTENCES))["sentence_embedding"]
        (first @ torch.stack(others).T).sum().backward()
    expected = {key: value.grad for key, value in floats.named_parameters() if "lora_" in key}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert len(expected) == 2 * 7 * 3
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.testing.assert_close(parameter.grad / scale, expected[key] / scale, atol=1e-3, rtol=0)
    model.eval()
    embeddings = model.encode(SENTENCES)
    model.save_pretrained(str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()
    again = PromptEOL(str(tmp_path)).encode(SENTENCES)
    assert model.similarity_pairwise(again, embeddings).min() > 0.99
    if "floats" in FORMATS[name][2]:
        model.merge_adapter()
        assert distance(model.encode(SENTENCES), embeddings) <= 1e-5
    else:
        with pytest.raises(ValueError, match="is quantized, and merging would round the adapter away"):
            model.merge_adapter()


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_what_would_be_saved_wrong_is_not_saved(
    checkpoints: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    model = PromptEOL(str(checkpoints("llama", name)))
    with pytest.raises(ValueError, match=f"is quantized by {name}, whose layers .* would be saved wrong"):
        model.save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_identity_sees_the_weights(checkpoints: Callable[[str, str], Path]) -> None:
    folder = str(checkpoints("llama", "torchao int8"))
    one, other = PromptEOL(folder), PromptEOL(folder)
    assert identify(one) == identify(other)
    one.encode(SENTENCES)
    weight = other[0].model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        getattr(weight, weight.__tensor_flatten__()[0][0]).add_(1)
    assert identify(one) != identify(other)


def test_rounded_activations_are_told(
    checkpoints: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="st_prompteol"):
        PromptEOL(str(checkpoints("llama", "W4A16")))
        assert not [record for record in caplog.records if record.name.startswith("st_prompteol")]
        PromptEOL(str(checkpoints("llama", "W8A8")))
    assert "rounds activations too where it is served; here they stay floats" in caplog.text


def write_gguf(base: Path, path: Path, kind: str) -> None:
    """As llama.cpp's converter writes a Llama, whose rotary rows stand in another order there."""
    gguf = pytest.importorskip("gguf")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    names = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokens = [names.get(index, f"<unused{index}>") for index in range(config["vocab_size"])]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(base / "model.safetensors").items():
        weight = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            count = heads if "q_proj" in name else kv_heads
            split = weight.reshape(count, 2, len(weight) // count // 2, -1)
            weight = split.swapaxes(1, 2).reshape(weight.shape)
        place = places.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 2 and kind != "F32":
            form = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(place, gguf.quantize(weight, form), raw_dtype=form)
        else:
            writer.add_tensor(place, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of its reader
@pytest.mark.parametrize("kind", quick(["F32", "Q8_0", "Q4_0"], "Q8_0"))
def test_a_gguf_file_is_opened_as_floats(
    bases: dict[str, Path], tmp_path: Path, plain: PlainProcess, kind: str
) -> None:
    (tmp_path / "repository").mkdir()
    write_gguf(bases["llama"], tmp_path / "repository/model.gguf", kind)
    options = {"gguf_file": "model.gguf"}
    model = PromptEOL(str(tmp_path / "repository"), model_kwargs=options, demonstrations=[JOCKEY])
    causal_lm = AutoModelForCausalLM.from_pretrained(tmp_path / "repository", dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    with torch.no_grad():
        rows = [tokenizer(model.template.render(text), return_tensors="pt")["input_ids"] for text in SENTENCES]
        states = [causal_lm(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy() for ids in rows]
    embeddings = model.encode(SENTENCES)
    assert distance(embeddings, np.stack(states)) <= 1e-5
    if kind == "F32":
        exact = PromptEOL(str(bases["llama"]), demonstrations=[JOCKEY])
        assert distance(embeddings, exact.encode(SENTENCES)) <= 1e-5
    assert str(model.describe()["quantization"]).startswith("gguf")
    model.save_pretrained(str(tmp_path / "saved"))
    assert distance(plain.encode(tmp_path / "saved", SENTENCES), embeddings) <= 1e-5
    by_path = PromptEOL(str(tmp_path / "repository/model.gguf"), demonstrations=[JOCKEY])
    np.testing.assert_array_equal(by_path.encode(SENTENCES), embeddings)
    assert by_path.describe()["model"] == str(tmp_path / "repository/model.gguf")
    with pytest.raises(ValueError, match=r"has no config\.json that names its model_type: .* name the GGUF file"):
        PromptEOL(str(tmp_path / "repository"))
    with pytest.raises(
        FileNotFoundError, match=r"cannot be opened: .* does not appear to have a file named none\.gguf"
    ):
        PromptEOL(str(tmp_path / "repository"), model_kwargs={"gguf_file": "none.gguf"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of its reader
def test_a_gguf_file_is_taken_by_its_path_or_named_as_damaged(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(bases["llama"], tmp_path / "model.gguf", "F32")
    whole, cut = (tmp_path / "model.gguf").read_bytes(), tmp_path / "cut.gguf"
    for size in (0, 3, 20, 100, 3000, len(whole) // 2, len(whole) - 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"^The GGUF file '{cut}' is damaged, cut short or not one") as caught:
            PromptEOL(str(cut))
        assert "\n" not in str(caught.value)
        assert not re.search("unpack|mmap|buffer", str(caught.value))
    monkeypatch.chdir(tmp_path)
    model = PromptEOL("model.gguf")
    model.save_pretrained("saved")
    shutil.copy("model.gguf", "saved/model.gguf")
    with pytest.raises(ValueError, match=r"lies in 'saved' beside a saved model, whose tokenizer"):
        PromptEOL("saved/model.gguf")
    with pytest.raises(FileNotFoundError, match=r"^'none\.gguf' is not a file"):
        PromptEOL("none.gguf")
    with pytest.raises(ValueError, match=r"^layer=-99 is out of range"):
        PromptEOL("model.gguf", layer=-99)
    sentences = ["a jockey", "a horse"]
    assert next(iter(LocalLM("model.gguf", device="cpu").ask(sentences)))[0] == "a jockey"
    assert encode_corpus("model.gguf", write_lines(tmp_path / "s.txt", sentences), tmp_path / "corpus").rows == 2
    data = build_senteval(tmp_path / "senteval")
    comparison = Comparison(tasks=("STSBenchmark",), data_dir=str(data), results_dir=str(tmp_path / "results"))
    rows = [row for name in ("model.gguf", "saved") for row in comparison.run(name, {})]
    assert rows[0].scores == pytest.approx(rows[1].scores, abs=1e-2)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["model.gguf", "saved"]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("stated", "kind", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, ImportError, "needs a package: pip install gptqmodel optimum$"),
        ({"quant_method": "awq", "bits": 4}, ImportError, "is quantized by awq, which needs a package: pip install"),
        ({"quant_method": "aqlm"}, ImportError, "is quantized by aqlm, which cannot be read here: .*pip install aqlm"),
        ({"quant_method": "fbgemm_fp8"}, ImportError, "cannot be read here: .* requires a GPU"),
        ({"bits": 4}, ValueError, "does not hold what its config.json says of its quantization, no quant_method"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, ValueError, "of its quantization, torchao"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ValueError, "of its quantization, bitsandbytes"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    bases: dict[str, Path], tmp_path: Path, stated: dict[str, Any], kind: type[Exception], message: str
) -> None:
    if stated.get("quant_method") in ("gptq", "awq") and find_spec("gptqmodel"):
        pytest.skip("gptqmodel is installed")
    if stated.get("quant_method") == "torchao":
        pytest.importorskip("torchao")
    shutil.copytree(bases["llama"], tmp_path / "base")
    state(tmp_path / "base", stated)
    with pytest.raises(kind, match=message) as caught:
        PromptEOL(str(tmp_path / "base"))
    assert "\n" not in str(caught.value)


def state(folder: Path, stated: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "quantization_config": stated}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("claimed", ["nf4", "torchao int8", "W4A16", "fp8"])
@pytest.mark.parametrize("held", ["nf4", "torchao int8", "W4A16", "fp8"])
def test_a_configuration_that_lies_is_refused(
    checkpoints: Callable[[str, str], Path], tmp_path: Path, claimed: str, held: str
) -> None:
    if claimed == held:
        pytest.skip("no lie")
    config = json.loads((checkpoints("llama", claimed) / "config.json").read_text(encoding="utf-8"))
    shutil.copytree(checkpoints("llama", held), tmp_path / "lie")
    state(tmp_path / "lie", config["quantization_config"])
    with pytest.raises((ValueError, ImportError)) as caught:
        PromptEOL(str(tmp_path / "lie"))
    assert str(tmp_path / "lie") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_comes_quantized_is_not_quantized_once_more(checkpoints: Callable[[str, str], Path]) -> None:
    assert PromptEOL(str(checkpoints("llama", "nf4")), quantization="nf4").encode("x").shape == (64,)
    for name, quantization in (("nf4", "int8"), ("fp8", "nf4")):
        with pytest.raises(ValueError, match=f"comes quantized .*, and cannot be quantized to {quantization} as well"):
            PromptEOL(str(checkpoints("llama", name)), quantization=quantization)  # type: ignore[arg-type]
