"""What is opened is whole, and a decoder; everything else is one sentence, and none says how to switch a check off."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from st_prompteol import PromptEOL
from st_prompteol.failures import explain_opening

from .helpers.models import publish_adapter
from .helpers.tokenizers import build_tokenizer


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


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_another_kind(path: Path) -> None:
    path.write_text("[1, 2]", encoding="utf-8")


@pytest.fixture(scope="module")
def saved(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    PromptEOL(causal_lms["llama"], layer=-2).save_pretrained(str(folder))
    return folder


def sentence_of(opening: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        opening()
    assert "\n" not in str(caught.value)
    assert type(caught.value).__module__ == "builtins"
    return str(caught.value)


@pytest.mark.parametrize("damage", [cut_short, emptied, of_another_kind])
@pytest.mark.parametrize(
    "file",
    ["config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json",
     "config_sentence_transformers.json", "1_Pooling/config.json", "adapter_config.json"],
)  # fmt: skip
def test_a_damaged_file_is_named(
    saved: Path, causal_lms: dict[str, str], tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    if file == "adapter_config.json":
        publish_adapter(causal_lms["llama"], tmp_path / "model")
    else:
        shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model" / file)
    assert f"'{file}' in '{tmp_path / 'model'}'" in sentence_of(lambda: PromptEOL(str(tmp_path / "model")))


def changed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")

    return damage


def typed(kind: Any, place: int = 1) -> Callable[[Path], None]:
    return changed("modules.json", lambda modules: [
        {**module, "type": kind} if number == place else module for number, module in enumerate(modules)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (typed("os.system"), r"names 'os\.system', which is not a module of sentence-transformers"),
        (typed("sentence_transformers.util.cos_sim"), r"names 'sentence_transformers\.util\.cos_sim', which is not a"),
        (typed("sentence_transformers.models.NoSuch", 0), "names 'sentence_transformers.models.NoSuch', which is not"),
        (typed(None), r"'modules\.json' in .* is not a list of modules"),
        (changed("modules.json", lambda modules: []), r"'modules\.json' in .* is not a list of modules"),
        (changed("modules.json", lambda modules: modules[0]), r"'modules\.json' in .* is not a list of modules"),
        (changed("modules.json", lambda modules: modules[::-1]), "begins with another module than a Transformer"),
        (changed("modules.json", lambda modules: modules[:1]), "ends with its Transformer"),
        (changed("sentence_bert_config.json", lambda values: {**values, "odd": 1}), "unexpected keyword .*'odd'"),
        (changed("sentence_bert_config.json", lambda values: {**values, "max_seq_length": "x"}), "a file of it"),
        (changed("1_Pooling/config.json", lambda values: {}), "lacks a value"),
        (changed("config.json", lambda values: {**values, "hidden_size": "x"}), "expected int, got str"),
        (changed("config.json", lambda values: {**values, "hidden_act": "x"}), "a file of it lacks a value"),
        (changed("config.json", lambda values: {**values, "model_type": "x"}), "does not recognize this architecture"),
        (lambda folder: cut_short(folder / "model.safetensors"), "A weights file of .* is damaged"),
        (lambda folder: emptied(folder / "model.safetensors"), "A weights file of .* is damaged"),
    ],
)
def test_values_that_do_not_belong_there_are_one_sentence(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    assert re.search(message, sentence_of(lambda: PromptEOL(str(tmp_path / "model"))))


@pytest.mark.parametrize("size", [0, 10, 3000])
def test_a_pickled_checkpoint_that_is_cut_is_one_sentence(
    causal_lms: dict[str, str], tmp_path: Path, size: int
) -> None:
    shutil.copytree(causal_lms["llama"], tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(tensors, tmp_path / "model/pytorch_model.bin")
    whole = (tmp_path / "model/pytorch_model.bin").read_bytes()
    (tmp_path / "model/pytorch_model.bin").write_bytes(whole[:size])
    assert "A weights file of" in sentence_of(lambda: PromptEOL(str(tmp_path / "model")))


def test_an_adapter_that_lacks_a_part_is_one_sentence(causal_lms: dict[str, str], tmp_path: Path) -> None:
    adapter = Path(publish_adapter(causal_lms["llama"], tmp_path / "adapter"))
    changed("adapter_config.json", lambda values: {**values, "base_model_name_or_path": None})(adapter)
    assert "does not name the base LLM" in sentence_of(lambda: PromptEOL(str(adapter)))
    adapter = Path(publish_adapter(causal_lms["llama"], tmp_path / "other"))
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in sentence_of(lambda: PromptEOL(str(adapter)))


@pytest.mark.parametrize("kept", [(), ("config.json", "tokenizer.json", "tokenizer_config.json")])
def test_an_adapter_on_an_adapter_is_one_sentence(
    causal_lms: dict[str, str], tmp_path: Path, kept: tuple[str, ...]
) -> None:
    one, other = (publish_adapter(causal_lms["llama"], tmp_path / name) for name in ("one", "other"))
    for name in kept:
        shutil.copy(f"{causal_lms['llama']}/{name}", other)
    changed("adapter_config.json", lambda values: {**values, "base_model_name_or_path": other})(Path(one))
    assert f"of the adapter {one!r} is {other!r}, which is an adapter too" in sentence_of(lambda: PromptEOL(one))
    changed("adapter_config.json", lambda values: {**values, "base_model_name_or_path": other})(Path(other))
    assert f"of {other!r} names the adapter itself as its base" in sentence_of(lambda: PromptEOL(other))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ImportError, match=r"^'user/model' needs the Python package 'no_such_package', which is not"):
        with explain_opening("user/model"):
            import no_such_package  # noqa: F401


NUMBERS: list[dict[str, Any]] = [
    *({name: value} for name in ("truncate_dim", "max_seq_length") for value in (0, -5, 2.5, "x", True)),
    {"layer": 0},
    {"layer": -9},
    {"device": "nope"},
    {"template": 3},
]


@pytest.mark.parametrize("options", NUMBERS, ids=str)
def test_a_number_out_of_range_is_one_sentence(causal_lms: dict[str, str], options: dict[str, Any]) -> None:
    message = sentence_of(lambda: PromptEOL(causal_lms["llama"], **options))
    assert repr(next(iter(options.values()))) in message


@pytest.mark.parametrize("fast", [True, False])
def test_a_batch_has_at_least_one_sentence(causal_lms: dict[str, str], fast: bool) -> None:
    model = PromptEOL(causal_lms["llama"], fast=fast)
    for size in (0, -1, 2.5, "x", True):
        for inputs in ("a", ["a", "b"], []):
            message = sentence_of(lambda inputs=inputs, size=size: model.encode(inputs, batch_size=size))
            assert message == f"batch_size={size!r} must be at least 1, a whole number."
    assert "truncate_dim=0 must be" in sentence_of(lambda: model.encode("a", truncate_dim=0))
    assert model.encode(["a", "b"], batch_size=np.int64(1)).shape == (2, 32)
    for options in ({"output_value": "x"}, {"device": "nope"}, {"device": ["cpu", "nope"]}):
        message = sentence_of(lambda options=options: model.encode(["a"], **options))
        assert re.search("output_value='x' is unknown|The device 'nope' is not one of this machine", message)


def test_an_argument_that_does_not_exist_is_an_error_of_python(causal_lms: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        PromptEOL(causal_lms["llama"], nonsense=1)


def test_a_home_folder_is_found(causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(causal_lms["llama"], tmp_path / "a model")
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = (PromptEOL(name).encode("x") for name in ("~/a model/", causal_lms["llama"]))
    np.testing.assert_allclose(one, other, atol=1e-6)


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
