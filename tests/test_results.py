"""Results are those of the model that ran: no two models share an entry, and the same model finds its own again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize

from st_prompteol import PromptEOL
from st_prompteol.evaluation import EmbeddingCache, evaluate_mteb
from st_prompteol.saved.identity import digest, identify

from .helpers.models import adapted
from .helpers.oracles import assert_alike
from .helpers.sentences import JOCKEY, SENTENCES

mteb_s_own = pytest.mark.filterwarnings(
    "ignore:The `get_sentence_embedding_dimension` method:FutureWarning",
    "ignore:SentenceTransformers that use prompts:UserWarning",
)


class Doubled(torch.nn.Module):
    """A module of somebody else's, whose number stands in no configuration."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("mean", torch.full((2,), factor), persistent=False)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


def off(model: PromptEOL) -> None:
    adapted(model)
    model.disable_adapters()


def merged(model: PromptEOL) -> None:
    adapted(model)
    model.merge_adapter()


def one_number(model: PromptEOL) -> None:
    model[0].model.embed_tokens.weight.data[3, 7] += 1.0


def cast_body(model: PromptEOL) -> None:
    """Not what is opened in bfloat16: what the body computes from its configuration is cast too."""
    model[0].model.to(torch.bfloat16)


CHANGES: dict[str, Callable[[PromptEOL], Any]] = {
    "template": lambda model: setattr(model, "template", "none"),
    "demonstrations": lambda model: setattr(model, "template", f"{JOCKEY.sentence} {{sentence}}"),
    "layer": lambda model: setattr(model, "layer", -2),
    "truncate_dim": lambda model: setattr(model, "truncate_dim", 8),
    "standardized": lambda model: model.standardize(SENTENCES),
    "adapter": adapted,
    "adapter off": off,
    "merged": merged,
    "data": one_number,
    "half": lambda model: model.half(),
    "cast body": cast_body,
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 40),
    "prompts": lambda model: model.prompts.update(STS="query: "),
    "default prompt": lambda model: vars(model).update(prompts={"STS": "query: "}, default_prompt_name="STS"),
    "normalized": lambda model: model.append(Normalize()),
    "dense": lambda model: model.append(Dense(32, 32)),
    "module": lambda model: model.append(Doubled(2.0)),
    "another factor": lambda model: model.append(Doubled(3.0)),
    "similarity": lambda model: setattr(model, "similarity_fn_name", "dot"),
    "cut": lambda model: (setattr(model, "layer", -2), model.cut()),
}


@pytest.fixture(scope="module")
def saved(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("results") / "saved"
    PromptEOL(causal_lms["llama"]).save_pretrained(str(folder))
    return str(folder)


class Recorder:
    """mteb, of which only the name and the revision that it keeps results by are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mteb = pytest.importorskip("mteb")
        monkeypatch.setattr(self.mteb, "evaluate", lambda wrapper, *_, **__: wrapper.mteb_model_meta)

    def entry(self, model: SentenceTransformer, **options: Any) -> Path:
        meta = evaluate_mteb(model, ["STS16"], **options)
        path: Path = self.mteb.ResultCache("results").get_task_result_path("STS16", meta)
        return path


@mteb_s_own
@pytest.mark.slow
def test_no_two_models_share_an_entry(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)
    published = record.entry(PromptEOL(saved))
    assert len(published.parent.name) == len("local-0123456789ab")  # the files alone say what ran
    entries = {"published": published}
    for name, change in CHANGES.items():
        model = PromptEOL(saved)
        change(model)
        entries[name] = record.entry(model)
        assert entries[name].parent.name.startswith(f"{published.parent.name}-")
    assert len(set(entries.values())) == len(CHANGES) + 1
    # the same again, in whatever way it is opened or computed
    for model in (PromptEOL(saved, fast=False), PromptEOL(saved, device="cpu"), PromptEOL(saved)):
        model.encode(SENTENCES)
        assert record.entry(model) == published
    assert record.entry(SentenceTransformer(saved, device="cpu")) == published  # which embeds the same
    model = PromptEOL(saved)
    adapted(model)
    with_adapter = record.entry(model)
    model.delete_adapter("default")
    assert record.entry(model) not in (with_adapter, entries["adapter"])


@mteb_s_own
@pytest.mark.slow
def test_an_adapter_s_results_are_not_its_base_s(
    causal_lms: dict[str, str], saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recorder(monkeypatch)
    model = PromptEOL(saved)
    torch.manual_seed(0)
    adapted(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    reopened = PromptEOL(str(tmp_path / "adapter"))
    # by the name of the base alone, and by its own
    assert record.entry(reopened) == record.entry(model) != record.entry(PromptEOL(saved))
    own = record.entry(reopened, name=str(tmp_path / "adapter"))
    assert own.parent.parent.name == "local__adapter"
    assert record.entry(PromptEOL(str(tmp_path / "adapter")), name=str(tmp_path / "adapter")) == own
    # a base LLM in a template is not what plain sentence-transformers makes of it
    base = causal_lms["llama"]
    entries = [PromptEOL(base), PromptEOL(base, template="prompt"), SentenceTransformer(base, device="cpu")]
    assert len({record.entry(model, name=base) for model in entries}) == 3


@pytest.mark.parametrize("name", ["template", "standardized", "adapter", "adapter off", "data", "another factor"])
def test_a_cache_of_embeddings_notices_a_change(saved: str, name: str) -> None:
    model = PromptEOL(saved)
    cache = EmbeddingCache(model)
    (before,) = cache.encode([SENTENCES])
    CHANGES[name](model)
    (after,) = cache.encode([SENTENCES])
    assert_alike(after, model.encode(SENTENCES))
    same = after.shape == before.shape and np.allclose(after, before, atol=1e-3)
    assert same == (name in ("adapter off", "another factor"))


def test_whatever_changes_embeddings_changes_the_identity(saved: str) -> None:
    identities = {"saved": digest(identify(PromptEOL(saved)))}
    for name, change in CHANGES.items():
        model = PromptEOL(saved)
        change(model)
        identities[name] = digest(identify(model))
    assert len(set(identities.values())) == len(CHANGES) + 1
    assert digest(identify(PromptEOL(saved, fast=False))) == identities["saved"]
