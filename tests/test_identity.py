"""One identity: whatever changes an embedding changes it, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import normalizers

from st_prompteol import Demonstration, PromptEOL, lora_config
from st_prompteol.corpus import encode_corpus
from st_prompteol.evaluation.results import Run
from st_prompteol.recipes.log import model_key
from st_prompteol.saved.identity import identify

from .helpers.corpora import TEN
from .helpers.tokenizers import build_tokenizer


@pytest.fixture(scope="module")
def saved(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders that plain sentence-transformers opens: the same weights, read in other ways."""
    folder = tmp_path_factory.mktemp("saved")
    for name, options in {"last": {}, "inner": {"layer": -2}, "other": {"template": "prompt"}}.items():
        PromptEOL(causal_lms["opt"], **options).save_pretrained(str(folder / name))
    return {name: str(folder / name) for name in ("last", "inner", "other")}


def one_number(model: SentenceTransformer) -> None:
    """Off any grid: 256 numbers of every tensor were looked at."""
    weight = model[0].model.get_input_embeddings().weight
    weight.data[3, 7] += 1.0


def other_tokenizer(model: SentenceTransformer, folder: Path) -> None:
    tokenizer = build_tokenizer(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    model[0].processor = tokenizer


CHANGES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "modules": lambda model: model.__setitem__(1, Pooling(32, "mean")),
    "modules ": lambda model: model.append(Normalize()),
    "weights": one_number,
    "prompt": lambda model: vars(model).update(prompts={"q": "query: "}, default_prompt_name="q"),
    "truncate_dim": lambda model: setattr(model, "truncate_dim", 8),
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 40),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "in.parquet"
    pq.write_table(pa.table({"text": [f"a man plays {number}" for number in range(20)]}), path)
    return path


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_destination_never_holds_two_models(saved: dict[str, str], corpus: Path, tmp_path: Path, name: str) -> None:
    model = SentenceTransformer(saved["last"], device="cpu")
    encode_corpus(model, corpus, tmp_path / "out", **TEN)
    CHANGES[name](model)
    with pytest.raises(FileExistsError, match=f"made otherwise .*{name.strip()} "):
        encode_corpus(model, corpus, tmp_path / "out", **TEN)


def test_plain_models_with_another_layer_template_or_tokenizer_are_others(
    saved: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    model = SentenceTransformer(saved["last"], device="cpu")
    encode_corpus(model, corpus, tmp_path / "out", **TEN)
    encode_corpus(SentenceTransformer(saved["last"], device="cpu"), corpus, tmp_path / "out", **TEN)
    for name in ("inner", "other"):
        with pytest.raises(FileExistsError, match="made otherwise"):
            encode_corpus(SentenceTransformer(saved[name], device="cpu"), corpus, tmp_path / "out", **TEN)
    other_tokenizer(model, tmp_path)
    with pytest.raises(FileExistsError, match=r"made otherwise .*tokenizer "):
        encode_corpus(model, corpus, tmp_path / "out", **TEN)


def test_what_does_not_change_embeddings_does_not_change_the_identity(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"])
    before = identify(model)
    model.encode(["a", "a longer sentence"])  # leaves truncation and padding in the tokenizer
    model.template, model.layer = "prompt", -2
    model.template, model.layer = "prompteol", -1
    assert identify(model) == before == identify(PromptEOL(causal_lms["opt"]))


def test_an_adapter_s_scaling_is_part_of_it(causal_lms: dict[str, str]) -> None:
    identities = []
    for alpha in (8, 16):
        torch.manual_seed(0)
        model = PromptEOL(causal_lms["opt"])
        model.add_adapter(lora_config(r=4, lora_alpha=alpha))
        identities.append(identify(model))
    assert identities[0]["weights"] == identities[1]["weights"]
    assert identities[0]["adapters"] != identities[1]["adapters"]


@pytest.mark.parametrize("change", ["eps", "scaling", "activation_fn"])
def test_a_number_or_activation_of_the_body_is_part_of_it(causal_lms: dict[str, str], change: str) -> None:
    model = PromptEOL(causal_lms["opt"])
    identity, embedding = identify(model), model.encode("A man sings.")
    for module in list(model[0].model.modules()):
        if hasattr(module, change):
            setattr(module, change, torch.nn.Tanh() if change == "activation_fn" else getattr(module, change) * 100)
    assert not np.allclose(model.encode("A man sings."), embedding, atol=1e-6)
    assert identify(model) != identity


def test_weights_that_hold_nothing_are_said(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"]).to("meta")
    with pytest.raises(ValueError, match="on the device 'meta', so they hold nothing"):
        identify(model)


def test_corpora_results_and_the_search_know_a_model_by_the_same(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"])
    settings, key = Run.of(model, causal_lms["opt"], "x").settings, model_key(model)
    assert {name: settings[name] for name in settings if name != "method"} == identify(model)
    one_number(model)
    assert Run.of(model, causal_lms["opt"], "x").settings["weights"] != settings["weights"]
    assert model_key(model)["identity"] != key["identity"]
    shown = PromptEOL(causal_lms["opt"], demonstrations=[Demonstration("a.", "B")], layer=-2)
    assert model_key(shown)["identity"] == key["identity"]  # the recipe stands in every line


class Interrupted(PromptEOL):
    """A model that lets another run go first, when its own run has looked and not yet written."""

    meanwhile: Callable[[], object] | None = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.meanwhile is not None:
            run, self.meanwhile = self.meanwhile, None
            run()
        return super().state_dict(*args, **kwargs)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_of_two_runs_at_the_same_time_one_gets_the_destination(
    causal_lms: dict[str, str], corpus: Path, tmp_path: Path, precision: Any
) -> None:
    arguments: dict[str, Any] = {**TEN, "precision": precision}
    first, second = PromptEOL(causal_lms["opt"], layer=-2), Interrupted(causal_lms["opt"])
    second.meanwhile = lambda: encode_corpus(first, corpus, tmp_path / "out", **arguments)
    with pytest.raises(FileExistsError, match="made otherwise"):
        encode_corpus(second, corpus, tmp_path / "out", **arguments)
    assert encode_corpus(first, corpus, tmp_path / "out", **arguments).encoded_rows == 0
    same = Interrupted(causal_lms["opt"], layer=-2)
    same.meanwhile = lambda: encode_corpus(first, corpus, tmp_path / "both", **arguments)
    assert encode_corpus(same, corpus, tmp_path / "both", **arguments).rows == 20


def test_a_part_of_another_run_is_noticed_in_the_end(causal_lms: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    """As two runs leave it in a storage that cannot say who was first."""
    encode_corpus(PromptEOL(causal_lms["opt"], layer=-2), corpus, tmp_path / "other", **TEN)

    class Overwritten(PromptEOL):
        calls = 0

        def encode(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                part = "part-000000-000000.parquet"
                (tmp_path / "out" / part).write_bytes((tmp_path / "other" / part).read_bytes())
            return super().encode(*args, **kwargs)

    model = Overwritten(causal_lms["opt"])
    report = encode_corpus(model, corpus, tmp_path / "out", **TEN)
    assert (report.rows, report.parts) == (10, 1)
    assert "part-000000-000000.parquet is of another run" in report.failures[0]
    assert encode_corpus(model, corpus, tmp_path / "out", **TEN).failures == ()


def test_of_many_that_create_a_file_one_does(tmp_path: Path) -> None:
    from st_prompteol.corpus.storage import Storage

    for address in (str(tmp_path / "here"), "memory://there"):
        storage = Storage(address)
        storage.make()
        start, won = threading.Barrier(8), []

        def create(number: int, storage: Any = storage, start: Any = start, won: Any = won) -> None:
            start.wait()
            if storage.create("_manifest.json", f"{number}".encode() * 1000):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert storage.read("_manifest.json") == f"{won[0]}".encode() * 1000
        if storage.is_local:  # fsspec's memory has no exclusive creation of its own
            assert len(won) == 1
