"""Opening and saving: whatever `PromptEOL` writes opens with plain sentence-transformers in a process without us."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, Qwen2Config

from st_prompteol import LastTokenPooling, PromptEOL, PromptEOLTransformer, PromptTemplate

from .helpers.models import ARCHITECTURES, build_causal_lm, grouped, quick
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import JOCKEY, SENTENCES, VENISON
from .helpers.templates import ODD_TEXT, templates
from .helpers.tokenizers import build_tokenizer


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("architecture", quick(ARCHITECTURES, "opt", "llama", "gpt2", "gemma3"))
def test_a_saved_model_opens_without_this_package(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, architecture: str
) -> None:
    for layer in (-1, -2):
        model = PromptEOL(causal_lms[architecture], layer=layer, demonstrations=[JOCKEY], max_seq_length=100)
        sentences = [*SENTENCES, "long " * 300]
        expected = model.encode(sentences)
        model.save_pretrained(str(tmp_path))
        assert_alike(plain.encode(tmp_path, sentences), expected)
        ours = PromptEOL(str(tmp_path))
        assert_alike(ours.encode(sentences), expected)
        assert (ours.template, ours.layer, ours.max_seq_length) == (model.template, layer, 100)
    assert not list(tmp_path.rglob("*.bin"))
    if architecture == "qwen2":  # which is a Llama with biases
        config = read_json(tmp_path / "config.json")
        assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaModel"])


def is_utf8(text: str) -> bool:
    """Whether plain sentence-transformers can tokenise the text at all: it fails on lone surrogates."""
    return text.encode("utf-8", "ignore").decode() == text


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    template=templates(),
    sentences=st.lists(st.one_of(ODD_TEXT, st.text(max_size=400)).filter(is_utf8), min_size=1, max_size=6),
    layer=st.integers(-3, -1),
    max_seq_length=st.one_of(st.none(), st.integers(150, 256)),
)
def test_saved_equals_in_memory_for_odd_templates_and_sentences(
    causal_lms: dict[str, str],
    tmp_path: Path,
    plain: PlainProcess,
    template: PromptTemplate,
    sentences: list[str],
    layer: int,
    max_seq_length: int | None,
) -> None:
    try:
        model = PromptEOL(causal_lms["opt"], template=template, layer=layer, max_seq_length=max_seq_length)
    except ValueError as error:  # an odd template may be longer than the model's 256 positions
        assert "leaves no room" in str(error)  # noqa: PT017 - most examples do not raise
        return
    expected = model.encode(sentences)
    assert np.isfinite(expected).all()
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert_alike(plain.encode(tmp_path, sentences), expected)
    assert PromptEOL(str(tmp_path)).template == template


def test_a_model_saved_by_plain_sentence_transformers_in_this_form_opens(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["llama"], layer=-2, demonstrations=[JOCKEY], truncate_dim=16)
    expected = model.encode(SENTENCES)
    model.save_pretrained(str(tmp_path / "ours"))
    SentenceTransformer(str(tmp_path / "ours")).save_pretrained(str(tmp_path / "plain"))
    again = PromptEOL(str(tmp_path / "plain"))
    assert isinstance(again[0], PromptEOLTransformer)
    assert isinstance(again[1], LastTokenPooling)
    assert expected.shape[1] == again.get_embedding_dimension() == 16
    np.testing.assert_allclose(again.encode(SENTENCES), expected, atol=1e-5)


def test_options_given_at_opening_win_over_saved_ones(causal_lms: dict[str, str], tmp_path: Path) -> None:
    path = causal_lms["opt-350m"]
    PromptEOL(path, layer=-2, demonstrations=[JOCKEY]).save_pretrained(str(tmp_path))
    opened = PromptEOL(str(tmp_path), layer=-1, template="prompt")
    expected = PromptEOL(path, template="prompt")
    np.testing.assert_allclose(opened.encode(SENTENCES), expected.encode(SENTENCES), atol=1e-5)
    assert opened.get_embedding_dimension() == expected.get_embedding_dimension() == 16
    other = VENISON
    kept = PromptEOL(str(tmp_path), demonstrations=[other])
    assert kept.template == replace(PromptTemplate(), demonstrations=(other,))
    assert kept.layer == PromptEOL(str(tmp_path), template="prompt").layer == -2


def test_a_foreign_sentence_transformers_model_is_refused_unless_a_template_is_given(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    SentenceTransformer(causal_lms["opt"]).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="not one in PromptEOL's form: open it with SentenceTransformer, or pass"):
        PromptEOL(str(tmp_path))
    opened = PromptEOL(str(tmp_path), template="prompteol")
    np.testing.assert_allclose(opened.encode(SENTENCES), PromptEOL(causal_lms["opt"]).encode(SENTENCES), atol=1e-5)


def test_the_saved_form_has_the_names_and_keys_that_every_version_reads(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    centring = Dense(
        32, 32, activation_function=torch.nn.Identity(), init_weight=torch.eye(32), init_bias=torch.ones(32)
    )
    modules = [*PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY]), centring, Normalize()]
    model = PromptEOL(modules=modules)
    model.save_pretrained(str(tmp_path))
    assert [(module["type"], module["path"]) for module in read_json(tmp_path / "modules.json")] == [
        ("sentence_transformers.models.Transformer", ""),
        ("sentence_transformers.models.Pooling", "1_Pooling"),
        ("sentence_transformers.models.Dense", "2_Dense"),
        ("sentence_transformers.models.Normalize", "3_Normalize"),
    ]
    assert read_json(tmp_path / "sentence_bert_config.json") == {"max_seq_length": 256, "do_lower_case": False}
    assert read_json(tmp_path / "1_Pooling/config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    assert read_json(tmp_path / "2_Dense/config.json") == {
        "in_features": 32,
        "out_features": 32,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    assert "requirements" not in read_json(tmp_path / "config_sentence_transformers.json")
    assert not list(tmp_path.glob("*.jinja"))
    expected = model.encode([*SENTENCES, ""])
    np.testing.assert_allclose(plain.encode(tmp_path, [*SENTENCES, ""]), expected, atol=1e-5)
    np.testing.assert_allclose(PromptEOL(str(tmp_path)).encode([*SENTENCES, ""]), expected, atol=1e-5)


@pytest.mark.parametrize("modes", [["mean"], ["cls", "mean"], ["mean", "cls"], ["lasttoken", "weightedmean"]])
def test_other_poolings_are_saved_so_that_they_are_read_alike(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess, modes: list[str]
) -> None:
    model = PromptEOL(modules=[PromptEOLTransformer(causal_lms["llama"]), Pooling(32, modes)])
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(plain.encode(tmp_path, SENTENCES), model.encode(SENTENCES), atol=1e-5)


def test_dtype_is_float32_on_a_cpu_unless_asked_otherwise(tmp_path: Path) -> None:
    path = build_causal_lm(tmp_path, "llama")
    AutoModelForCausalLM.from_pretrained(path).half().save_pretrained(path)
    assert PromptEOL(path, device="cpu").dtype == torch.float32
    assert PromptEOL(path, device="cpu", model_kwargs={"dtype": "auto"}).dtype == torch.float16
    low = PromptEOL(path, device="cpu", model_kwargs={"torch_dtype": torch.bfloat16})
    assert low.dtype == torch.bfloat16
    assert low.encode(SENTENCES).shape == (len(SENTENCES), 32)


def test_device_map_is_passed_on(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], device_map={"": "cpu"})
    expected = PromptEOL(causal_lms["llama"], device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=1e-6)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    with pytest.raises(ValueError, match="exclude each other"):
        PromptEOL(causal_lms["llama"], device="cpu", device_map="auto")


def test_body_and_commit_are_those_of_the_language_model(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"])
    assert model.body is model[0].model
    assert model.commit is None
    model.body.config._commit_hash = "0123abc"
    assert model.view(layer=-2).commit == "0123abc"


def test_describes_itself(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"], demonstrations=[JOCKEY])
    facts = model.describe()
    assert facts["template"] == (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "{sentence}" means in one word:"'
    )
    ids = [model.tokenizer.tokenize_plainly(model.template.render(sentence)) for sentence in ("q.", "q'")]
    assert facts["template tokens"] == len(ids[0]) - 2 == len(ids[1]) - 2  # q and its end, no merge around them
    assert facts["parameters"] == sum(p.numel() for p in model[0].model.parameters())
    assert (facts["layer"], facts["dimension"], facts["dtype"], facts["adapters"]) == (-1, 32, "float32", None)
    names = [one.method_name() for one in (model, model.view("knowledge", -2))]
    assert names == ["PromptEOL + 1 demonstration", "PromptEOL, layer -2"]


class TestSavingIsAtomic:
    """The folder holds the old model or the new one, whatever happens."""

    def test_a_failed_save_leaves_the_old_model(
        self, causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = PromptEOL(causal_lms["opt"])
        model.save_pretrained(str(tmp_path / "model"))
        before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

        def full_disk(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        model.template = "prompt"
        with monkeypatch.context() as patch:
            patch.setattr(LastTokenPooling, "save", full_disk)
            with pytest.raises(OSError, match="No space left"):
                model.save_pretrained(str(tmp_path / "model"))
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    def test_nothing_of_another_kind_of_model_stays_and_everything_else_does(
        self, causal_lms: dict[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "checkpoint-1").mkdir()
        (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")
        (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
        (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
        (tmp_path / "pytorch_model.bin").write_bytes(b"old")
        (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
        (tmp_path / "1_OldPooling").mkdir()
        (tmp_path / "1_OldPooling" / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / "2_mine").mkdir()
        (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "1_OldPooling"}]', encoding="utf-8")
        PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path))
        names = {path.name for path in tmp_path.iterdir()}
        assert {"checkpoint-1", "notes.txt", "model.safetensors", "1_Pooling", "2_mine"} <= names
        assert (tmp_path / "checkpoint-1" / "optimizer.pt").read_bytes() == b"state"
        gone = {"adapter_config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors", "1_OldPooling"}
        assert not names & gone
        assert PromptEOL(str(tmp_path)).encode("x").shape == (32,)

    def test_pickles_are_not_written(self, causal_lms: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="saves safetensors only"):
            PromptEOL(causal_lms["opt"]).save_pretrained(str(tmp_path), safe_serialization=False)
        assert not list(tmp_path.iterdir())


class TestWhatCannotBeOpened:
    """One sentence with the value, the rule and the remedy, in a built-in exception."""

    @pytest.mark.parametrize(
        ("name", "options", "error", "message"),
        [
            ("missing/folder/here", {}, FileNotFoundError, "not found"),
            (".", {}, ValueError, r"'\.' has no config\.json that names its model_type"),
            (
                "nobody/nothing",
                {"local_files_only": True},
                ConnectionError,
                "'nobody/nothing' is no folder, is not in",
            ),
            ("bad name!", {}, FileNotFoundError, "neither a folder nor the name of a repository"),
            ("a/b?", {}, FileNotFoundError, "neither a folder nor the name of a repository"),
            (None, {}, ValueError, "needs a model_name_or_path"),
            (None, {"modules": [LastTokenPooling(4)]}, ValueError, "first module of a PromptEOL is a PromptEOLTransf"),
            ("tiny", {"template": "promteol"}, ValueError, "Unknown template 'promteol': choose one of prompteol, pr"),
        ],
    )
    def test_names_and_options(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, options: Any, error: Any, message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(error, match=message):
            PromptEOL(name, **options)

    @pytest.mark.parametrize("keep", [20, 1000, -10])
    def test_a_truncated_weights_file(self, causal_lms: dict[str, str], tmp_path: Path, keep: int) -> None:
        shutil.copytree(causal_lms["opt"], tmp_path, dirs_exist_ok=True)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"A weights file of .* is damaged"):
            PromptEOL(str(tmp_path))

    def test_weights_of_another_shape(self, causal_lms: dict[str, str], tmp_path: Path) -> None:
        shutil.copytree(causal_lms["opt"], tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / "model.safetensors")
        name = next(name for name in weights if name.endswith("fc1.weight"))
        save_file({**weights, name: torch.zeros(3, 3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"do not fit its config\.json"):
            PromptEOL(str(tmp_path))

    def test_a_template_that_the_tokenizer_cannot_take(self, causal_lms: dict[str, str], tmp_path: Path) -> None:
        tokenizer = build_tokenizer(tmp_path)
        shutil.copy(Path(causal_lms["opt"], "config.json"), tmp_path)
        shutil.copy(Path(causal_lms["opt"], "model.safetensors"), tmp_path)
        tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", rstrip=True, special=True)})
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="gives other token ids with the template '<mask> "):
            PromptEOL(str(tmp_path), template="<mask> {sentence}")


def test_a_bos_that_only_the_post_processor_knows_is_kept(causal_lms: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(causal_lms["opt"], tmp_path, dirs_exist_ok=True)
    tokenizer = build_tokenizer(tmp_path)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        PromptEOL(str(tmp_path)).encode(SENTENCES), PromptEOL(causal_lms["opt"]).encode(SENTENCES), atol=1e-6
    )


@pytest.mark.parametrize(
    "options", [{}, {"convert_to_tensor": True}, {"normalize_embeddings": True, "truncate_dim": 8}]
)
def test_many_sentences_in_chunks_come_back_in_their_order(
    causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    model = PromptEOL(causal_lms["llama"])
    sentences = [f"{'word ' * (number * 7 % 11)}{number % 20}" for number in range(50)]
    expected = torch.stack([torch.as_tensor(model.encode(sentence, **options)) for sentence in sentences])
    monkeypatch.setattr("st_prompteol.model._CHUNK_BATCHES", 3)
    for show_progress_bar in (False, True):
        got = model.encode(sentences, batch_size=4, show_progress_bar=show_progress_bar, **options)
        assert_alike(torch.as_tensor(got).cpu().numpy(), expected.cpu().numpy())


def test_a_family_whose_tokenizer_transformers_replaces_is_refused(tmp_path: Path) -> None:
    path = build_causal_lm(tmp_path / "base", "qwen2", bos=False)
    config = read_json(tmp_path / "base/config.json")
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}  # no Llama has these
    del config["layer_types"]
    (tmp_path / "base/config.json").write_text(json.dumps(config | windows), encoding="utf-8")
    model = PromptEOL(path)
    with pytest.raises(ValueError, match=r"opens the tokenizer of .* as its own Qwen2Tokenizer, which drops"):
        model.save_pretrained(str(tmp_path / "saved"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_heads_of_another_size_than_hidden_size_over_their_number_are_saved(tmp_path: Path) -> None:
    path = build_causal_lm(tmp_path / "base", grouped(Qwen2Config, head_dim=16), bos=False)
    model = PromptEOL(path)
    model.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_array_equal(PromptEOL(str(tmp_path / "saved")).encode(SENTENCES), model.encode(SENTENCES))
