"""The card that every save writes: complete, kept when a model is opened again, never in place of somebody's own."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
from sentence_transformers.sentence_transformer.modules import Normalize

from st_prompteol import Demonstration, PromptEOL, PromptTemplate, extras, lora_config
from st_prompteol.card import PromptEOLModelCardData
from st_prompteol.card.data import may_write_card
from st_prompteol.card.earlier import is_ours, read_card, sign
from st_prompteol.hub import CardOptions, build_model_card
from st_prompteol.recipes import read_pairs, search
from training.report import record_scores

from . import ROOT
from .helpers.quantized import save_bitsandbytes

PAIRS = [
    ("A man plays a guitar.", "A man sings.", 3.0),
    ("A dog runs.", "A big dog runs on the beach.", 4.0),
    ("A cat sits.", "The woman sings.", 0.5),
    ("A horse walks.", "A small horse rides.", 2.0),
]
SAVED_WITHOUT_RESULTS = "No results are recorded"


def saved(model: PromptEOL, folder: Path) -> ModelCard:
    model.save_pretrained(str(folder))
    return ModelCard.load(folder / "README.md")


def section(card: ModelCard, heading: str) -> str:
    return card.text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def train(model: PromptEOL, folder: Path, **options: Any) -> None:
    rows = Dataset.from_dict({"anchor": ["a dog", "a cat", "<b>x</b>"], "positive": ["a | dog", "cat", "[x](y)"]})
    columns = [list(column) for column in zip(*PAIRS, strict=True)]
    SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(folder), max_steps=2, learning_rate=1e-3, logging_steps=1, report_to="none", use_cpu=True,
            disable_tqdm=True, per_device_train_batch_size=2, **options,
        ),
        train_dataset=rows,
        loss=MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 8]),
        evaluator=EmbeddingSimilarityEvaluator(*columns, name="pairs-dev", write_csv=False),
    ).train()  # fmt: skip


@pytest.fixture(scope="module")
def trained(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that sentence-transformers' own trainer has trained and saved, and its checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    model = PromptEOL(causal_lms["llama"], device="cpu")
    model.add_adapter(lora_config(r=4))
    model.model_card_data.limits = "Only *dogs*."
    model.model_card_data.license = "mit"
    train(model, folder, eval_strategy="steps", eval_steps=1, save_steps=1)
    model.save_pretrained(str(folder / "adapter"))
    return folder


def test_a_plain_save_says_what_the_model_is_and_a_push_writes_the_same(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["opt"], template="knowledge", device="cpu")
    card = saved(model, tmp_path)
    assert "PromptEOL" in type(model.model_card_data).__name__
    assert "a sentence-transformers model trained" not in card.text
    assert model.template.render("A jockey is riding a horse.") in card.text
    assert 'SentenceTransformer("' in card.text
    assert 'PromptEOL("' in card.text
    assert {"prompteol", "sentence-transformers"} <= set(card.data.tags)
    assert card.data.library_name == "sentence-transformers"
    assert SAVED_WITHOUT_RESULTS in section(card, "Evaluation")
    published = build_model_card(PromptEOL(str(tmp_path), device="cpu"), "alice/model")
    lines = set(str(published).splitlines()) ^ set(str(card).splitlines())
    assert not {
        line for line in lines if not re.search("alice/model|sentence_transformers_model_id|^# |sha256|vllm", line)
    }
    similarities = [line for line in card.text.splitlines() if line.startswith(("# tensor", "#      "))]
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    embeddings = plain.encode(["A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again"])
    assert [line[2:] for line in similarities] == str(plain.similarity(embeddings, embeddings)).splitlines()


def test_a_training_stands_on_the_card_through_opening_saving_and_merging(trained: Path, tmp_path: Path) -> None:
    first = ModelCard.load(trained / "adapter/README.md")
    training, results = section(first, "Training Details"), section(first, "Evaluation")
    for part in (
        "`MatryoshkaLoss`", "matryoshka_dims", "- Rows: 3", "a \\| dog", "\\[x\\](y)", "&lt;b&gt;x&lt;/b&gt;",
        "- `learning_rate`: 0.001", "### Training Logs", "### Framework Versions", "CPU cores",
    ):  # fmt: skip
        assert part in training, part
    assert "spearman\\_cosine" in results
    (result, *_) = first.data.eval_results
    again = saved(PromptEOL(str(trained / "adapter"), device="cpu"), tmp_path / "again")
    assert str(again) == str(first)
    model = PromptEOL(str(tmp_path / "again"), device="cpu")
    model.merge_adapter()
    merged = saved(model, tmp_path / "merged")
    third = saved(PromptEOL(str(tmp_path / "merged"), device="cpu"), tmp_path / "third")
    for card in (merged, third):
        assert section(card, "Training Details") == training
        assert section(card, "Evaluation") == results
        assert result in card.data.eval_results
        assert card.data.license == "mit"
        assert "Only *dogs*." in section(card, "Limits")
        assert "loss:MatryoshkaLoss" in card.data.tags
    assert "vllm serve" not in section(first, "Serving")
    assert "vllm serve" in section(merged, "Serving")


def test_a_trainer_s_checkpoints_have_the_card(trained: Path) -> None:
    for step in (1, 2):
        card = ModelCard.load(trained / f"checkpoint-{step}/README.md")
        assert "This sentence :" in card.text
        assert "`MatryoshkaLoss`" in card.text
        assert is_ours(str(card))


@pytest.mark.parametrize(
    "change", ["template", "layer", "preprocessing", "demonstration", "truncated", "standardized"]
)
def test_results_of_a_model_that_was_changed_are_called_so_and_leave_the_metadata(
    trained: Path, tmp_path: Path, change: str
) -> None:
    model = PromptEOL(str(trained / "adapter"), device="cpu", truncate_dim=4 if change == "truncated" else None)
    if change == "template":
        model.template = "prompt"
    elif change == "layer":
        model.layer = -2
    elif change == "preprocessing":
        model.template = PromptTemplate(model.template.text, preprocessing="none")
    elif change == "demonstration":
        model.template = PromptTemplate(model.template.text, (Demonstration("It rains.", "Rain"),))
    elif change == "standardized":
        model.standardize([pair[0] for pair in PAIRS])
    card = saved(model, tmp_path)
    evaluation = section(card, "Evaluation")
    assert "pairs-dev" in evaluation
    assert "measured before the model was changed" in evaluation
    assert card.data.eval_results is None
    assert "`MatryoshkaLoss`" in section(card, "Training Details")
    assert ("Embeddings are standardized by the statistics" in card.text) == (change == "standardized")


def test_what_search_measured_stands_on_the_card(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model, pairs = PromptEOL(causal_lms["llama"], device="cpu"), list(read_pairs(ROOT / "examples/pairs.tsv"))
    result = search(model, pairs, templates=["prompteol", "prompt"], layers=[-1, -2], holdout=0.3)
    assert result.holdout is not None
    first = saved(model, tmp_path / "first")
    again = build_model_card(PromptEOL(str(tmp_path / "first"), device="cpu"), "alice/found")
    for card in (first, again):
        evaluation = section(card, "Evaluation")
        for trial in (result.winner, result.holdout):
            assert f"| {trial.pairs} |" in evaluation
            assert f"{trial.score:.2f} | {trial.gain}" in evaluation
        assert SAVED_WITHOUT_RESULTS not in card.text
        assert "measured before" not in evaluation


def test_scores_of_the_training_script_stand_on_the_card_in_place_of_the_last_checkpoint_s(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["llama"], device="cpu")
    scores = {"STS-B dev": (0.5, 0.7054), "STS-B test": (0.4, 0.6198)}
    saved(model, tmp_path)
    record_scores(model, scores, chosen=True, dataset="sentence-transformers/stsb")
    model.model_card_data.write(tmp_path)
    again = saved(PromptEOL(str(tmp_path), device="cpu"), tmp_path / "again")
    for card in (ModelCard.load(tmp_path / "README.md"), again):
        assert "| STS-B dev | 50.00 | 70.54 |" in card.text
        assert "| STS-B test | 40.00 | 61.98 |" in card.text
        assert "STS-B dev chose the checkpoint" in card.text
        assert {(one.dataset_split, one.metric_value) for one in card.data.eval_results} == {
            ("dev", 70.54),
            ("test", 61.98),
        }


def test_an_evaluation_of_another_checkpoint_than_the_kept_one_is_left_out(trained: Path) -> None:
    model = PromptEOL(str(trained / "checkpoint-1"), device="cpu")
    data = model.model_card_data
    columns = [list(column) for column in zip(*PAIRS, strict=True)]
    evaluator = EmbeddingSimilarityEvaluator(*columns, name="pairs-dev", write_csv=False)
    data.earlier = type(data.earlier)()
    data.training_logs = [{"Step": step, evaluator.primary_metric or "": 0.5} for step in (1, 2)]
    data.set_evaluation_metrics(evaluator, {"pairs-dev_spearman_cosine": 0.9}, step=2)
    evaluator.primary_metric = "pairs-dev_spearman_cosine"
    data.training_logs = [{"Step": step, "pairs-dev_spearman_cosine": 0.5} for step in (1, 2)]
    for kept, shown in ((1, False), (2, True), (None, True)):
        data.best_model_step = kept
        assert ("| spearman\\_cosine | 0.9000 |" in str(build_model_card(model, "alice/model"))) == shown


MINE = "# My model\n\nWritten by hand.\n"


@pytest.mark.parametrize("kind", ["by hand", "edited", "upstream's", "not UTF-8"])
def test_a_card_of_others_is_never_replaced(causal_lms: dict[str, str], tmp_path: Path, kind: str) -> None:
    model = PromptEOL(causal_lms["opt"], device="cpu")
    path = tmp_path / "model/README.md"
    saved(model, path.parent)
    if kind == "edited":
        path.write_text(path.read_text(encoding="utf-8").replace("## Limits", "Use with care.\n\n## Limits"))
    elif kind == "upstream's":
        plain = SentenceTransformer(modules=[*PromptEOL(causal_lms["opt"], device="cpu")])
        plain._create_model_card(str(path.parent))
    else:
        path.write_bytes(MINE.encode() if kind == "by hand" else "# Modèle".encode("latin-1"))
    content = path.read_bytes()
    model.save_pretrained(str(path.parent))
    assert path.read_bytes() == content
    if kind == "not UTF-8":
        return
    opened = PromptEOL(str(path.parent), device="cpu")
    opened.save_pretrained(str(path.parent))
    opened.save_pretrained(str(tmp_path / "copy"))
    assert path.read_bytes() == content == (tmp_path / "copy/README.md").read_bytes()
    options = CardOptions(license="mit", base_model="alice/base")
    card = build_model_card(opened, "alice/model", options)
    assert card.text.strip() == ModelCard(content.decode(), ignore_metadata_errors=True).text.strip()
    assert (card.data.license, card.data.base_model) == ("mit", "alice/base")
    assert "prompteol" in card.data.tags
    path.unlink()
    assert "This sentence :" in saved(PromptEOL(str(path.parent), device="cpu"), path.parent).text


RESULT = EvalResult("similarity", "a/b", "B", "spearman", 1.0, dataset_split="test")
HAND = """---
# my own
model-index:
- name: mine
  results:
  - task: {type: similarity}
    dataset: {type: a/b, name: B, split: test}
    metrics:
    - {type: spearman, value: 1.0}

# the rest
license: mit
---

# My model

model-index: 1.00 on B
"""


def with_card_of_others(model: PromptEOL, folder: Path, kind: str) -> str:
    """Saves a model, and puts a card with a result in place of its own; returns its text."""
    model.model_card_data.measure("mine", "### Mine\n\n1", [RESULT])
    edited = str(saved(model, folder)).replace("## Limits", "Use with care.\n\n## Limits")
    text = edited if kind == "edited" else HAND
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def changed_in_memory(model: PromptEOL) -> None:
    with torch.no_grad():
        for weight in model[0].model.embed_tokens.parameters():
            weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["edited", "by hand"])
@pytest.mark.parametrize("change", [None, "weights", "layer", "at opening"])
def test_results_stay_on_a_card_of_others_as_long_as_they_are_the_model_s(
    causal_lms: dict[str, str], tmp_path: Path, kind: str, change: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = PromptEOL(causal_lms["llama"], device="cpu"), tmp_path / "model"
    text = with_card_of_others(model, folder, kind)
    model = PromptEOL(str(folder), device="cpu", layer=-2 if change == "at opening" else None)
    if change == "weights":
        changed_in_memory(model)
    elif change == "layer":
        model.layer = -2
    published = build_model_card(model, "alice/model")
    assert (published.data.eval_results is None) == bool(change)
    for place in (tmp_path / "copy", folder):
        model.save_pretrained(str(place))
        kept = (place / "README.md").read_text(encoding="utf-8")
        assert (kept == text) == (change is None)
        assert ("was removed" in caplog.text) == bool(change)
        assert kept == text or not re.search("^model-index", kept.split("---")[1], re.MULTILINE)
        removed = set(text.splitlines()) - set(kept.splitlines())
        assert len(removed) < 15
        assert set(kept.splitlines()) <= set(text.splitlines())
        assert "license: mit" in kept or kind == "edited"


@pytest.mark.parametrize("kind", ["edited", "by hand"])
def test_a_card_of_another_model_in_the_folder_loses_its_results(
    causal_lms: dict[str, str], tmp_path: Path, kind: str
) -> None:
    model = PromptEOL(causal_lms["llama"], device="cpu")
    text = with_card_of_others(model, tmp_path, kind)
    changed_in_memory(model)
    model.save_pretrained(str(tmp_path), create_model_card=False)  # which leaves all of it alone
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
    model.save_pretrained(str(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert card.text.strip() == ModelCard(text).text.strip()


def test_a_measurement_is_not_of_weights_that_were_changed_after_it(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["llama"], device="cpu")
    model.model_card_data.measure("mine", "### Mine\n\n1", [RESULT])
    changed_in_memory(model)
    card = saved(model, tmp_path)
    assert card.data.eval_results is None
    assert "measured before the model was changed" in card.text


def test_a_card_of_ours_is_known_by_its_text() -> None:
    card = sign("---\nlicense: mit\n---\n\n# A\n\ntext", (0.5, -0.25, 1.0))
    assert is_ours(card)
    assert is_ours(card.replace("\n", "\r\n") + "\n\n")
    assert read_card(card).cosines == (0.5, -0.25, 1.0)
    assert not is_ours(card.replace("text", "test"))
    assert not is_ours(card.replace("mit", "apache-2.0"))
    assert not is_ours(card + "\nMore.")
    assert not is_ours("")
    assert sign(card, (0.5, -0.25, 1.0)).count("sha256") == 2  # which is why a save signs only what it rendered


def test_plain_sentence_transformers_fills_in_the_repository(causal_lms: dict[str, str], tmp_path: Path) -> None:
    saved(PromptEOL(causal_lms["opt"], device="cpu"), tmp_path / "ours")
    plain = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    plain.model_card_data.set_model_id("alice/model")
    plain.save_pretrained(str(tmp_path / "plain"))
    text = (tmp_path / "plain/README.md").read_text(encoding="utf-8")
    assert 'model = SentenceTransformer("alice/model"' in text
    assert is_ours(text)


def outside_code(text: str) -> str:
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", "", text, flags=re.M | re.S)


HOSTILE = [
    "quotes \" ' and: a colon # not a comment",
    "---\nlicense: stolen\n---",
    "{{ 7 * 7 }} {% for x in y %} {# no #}",
    "<script>alert(1)</script> ``` ` | * _ [a](javascript:b) ![x](y)",
    "[//]: # (part training)\n\n[//]: # (end training)",
    "猫が座っている。 Кот сидит. القطة تجلس 😀\u202e\x07",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_template_or_demonstration_acts_in_the_card(
    causal_lms: dict[str, str], tmp_path: Path, text: str
) -> None:
    model = PromptEOL(causal_lms["llama"], device="cpu")
    model.template = PromptTemplate("{sentence}:", (Demonstration(" ".join(text.split()), "w|`x`<b>"),))
    assert is_ours(str(saved(model, tmp_path)))
    check_harmless(tmp_path, text)
    model.template = PromptTemplate(f"{text} {{sentence}}:", preprocessing="none")
    model.model_card_data.model_name = text
    assert is_ours(str(saved(model, tmp_path)))
    check_harmless(tmp_path, text)
    assert str(saved(PromptEOL(str(tmp_path), device="cpu"), tmp_path / "again")).count("## Training Details") == 1


def check_harmless(tmp_path: Path, text: str) -> None:
    card = ModelCard.load(tmp_path / "README.md")
    _, front, _ = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert "license" not in metadata
    assert set(metadata) <= {"library_name", "pipeline_tag", "tags"}
    assert not re.search(r"\b49\b", outside_code(section(card, "What it computes").split("The template,")[1]))
    outside = outside_code(card.text)
    assert not re.search(r"<[a-z!/]", outside)
    assert not re.search(r"(?<!\\)\]\((javascript|y)", outside)
    assert "\x07" not in card.content
    assert "\u202e" not in card.content
    if "猫" in text:
        assert "猫が座っている。" in card.text


def test_serving_is_offered_where_a_server_reads_what_the_model_reads(
    causal_lms: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    def serving(model: PromptEOL, name: str) -> str:
        return section(saved(model, tmp_path / name), "Serving")

    def opened(**options: Any) -> PromptEOL:
        return PromptEOL(causal_lms["llama"], device="cpu", **options)

    assert "vllm serve" in serving(opened(), "full")
    normalized = opened()
    normalized.append(Normalize())
    assert "vllm serve" in serving(normalized, "normalized")
    inner = opened(layer=-2)
    assert "vllm serve" not in (told := serving(inner, "inner"))
    assert "--cut" in told
    inner.cut()
    assert "vllm serve" in serving(inner, "cut")
    adapter = PromptEOL(str(trained / "adapter"), layer=-2, device="cpu")
    assert "vllm serve" not in (told := serving(adapter, "adapter"))
    assert "merge it first" in told
    assert "--cut" in told


def test_a_quantized_model_s_card_says_so(causal_lms: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_bitsandbytes(Path(causal_lms["llama-64"]), tmp_path / "quantized", "nf4")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "quantized" / file).write_bytes((Path(causal_lms["llama-64"]) / file).read_bytes())
    card = saved(PromptEOL(str(tmp_path / "quantized"), device="cpu"), tmp_path / "saved")
    assert "| Quantized |" in card.text
    assert "bitsandbytes" in card.text.split("```bash")[1].split("```")[0]
    assert "vllm serve" not in card.text


def test_the_dtype_on_the_card_is_that_of_the_saved_configuration(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"], device="cpu", model_kwargs={"dtype": "bfloat16"})
    card = saved(model, tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": "auto"})
    assert f"| Computes in | `{str(opened.dtype).removeprefix('torch.')}` |" in card.text


def test_a_save_embeds_three_sentences_and_asks_no_network(
    causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PromptEOL(causal_lms["opt"], device="cpu")
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]["input_ids"])))
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("a save asked the network"))
    saved(model, tmp_path / "with")
    assert sum(seen) <= 4  # the sentences, and what they share
    seen.clear()
    model.model_card_data.generate_widget_examples = False
    card = saved(model, tmp_path / "without")
    assert not seen
    assert "# tensor" not in card.text
    assert is_ours(str(card))


def test_no_card_is_written_when_none_is_wanted(causal_lms: dict[str, str], tmp_path: Path) -> None:
    PromptEOL(causal_lms["opt"], device="cpu").save(str(tmp_path / "a"), create_model_card=False)
    assert not (tmp_path / "a/README.md").exists()
    assert may_write_card(tmp_path / "a/README.md")


def test_a_card_speaks_of_one_word_where_the_template_does(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["opt"])
    assert "a template that asks for one word" in str(build_model_card(model, "alice/model"))
    model.template = "none"
    card = str(build_model_card(model, "alice/model"))
    assert "word" not in card.partition("## Usage")[0]
    assert "The hidden state of the last token that the model reads is the sentence's embedding." in card


def test_an_author_s_own_card_data_are_on_the_card(causal_lms: dict[str, str], tmp_path: Path) -> None:
    data = PromptEOLModelCardData(
        license="mit", language="en", model_name="Dogs & cats", hardware="2 x Abacus", limits="Only dogs."
    )
    data.train_datasets = [{"name": "dogs", "size": 12_345}]
    card = saved(PromptEOL(causal_lms["opt"], device="cpu", model_card_data=data), tmp_path)
    assert card.text.lstrip().startswith("# Dogs &amp; cats")
    assert (card.data.license, card.data.language) == ("mit", ["en"])
    for part in ("Only dogs.", "2 x Abacus", "Dataset: dogs", "- Rows: 12,345"):
        assert part in card.text, part
    again = saved(PromptEOL(str(tmp_path), device="cpu"), tmp_path / "again")
    for part in ("Only dogs.", "2 x Abacus", "Dataset: dogs", "- Rows: 12,345"):
        assert part in again.text, part


def test_card_data_of_upstream_s_class_do_as_well(causal_lms: dict[str, str], tmp_path: Path) -> None:
    data = SentenceTransformerModelCardData(license="mit", language="de", train_datasets=[{"name": "Hunde"}])
    card = saved(PromptEOL(causal_lms["opt"], device="cpu", model_card_data=data), tmp_path)
    assert (card.data.license, card.data.language) == ("mit", ["de"])
    assert "Dataset: Hunde" in card.text
    assert "prompteol" in card.data.tags


def test_a_measured_part_is_replaced_when_it_is_measured_again(causal_lms: dict[str, str], tmp_path: Path) -> None:
    def result(value: float) -> EvalResult:
        return EvalResult("similarity", "a/b", "B", "spearman", value, dataset_split="test")

    model = PromptEOL(causal_lms["opt"], device="cpu")
    model.model_card_data.measure("mine", "### Mine\n\n1", [result(1.0)])
    saved(model, tmp_path)
    model = PromptEOL(str(tmp_path), device="cpu")
    model.model_card_data.measure("mine", "### Mine\n\n2", [result(2.0)])
    card = saved(model, tmp_path)
    assert card.text.count("### Mine") == 1
    assert [one.metric_value for one in card.data.eval_results] == [2.0]
    with torch.no_grad():  # other weights: neither result is the model's
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    assert saved(model, tmp_path).data.eval_results is None


def test_an_extra_that_is_missing_is_named_with_a_command_that_can_be_run() -> None:
    error = extras.missing_extra("A plot", "matplotlib", "eval")
    assert isinstance(error, ImportError)
    assert str(error) == (
        "A plot needs the package matplotlib, of the extra eval: pip install 'st-prompteol[eval] @ "
        f"git+{extras.REPOSITORY}', or in a checkout pip install '.[eval]'."
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert declared["urls"]["Repository"] == extras.REPOSITORY
    assert {"Documentation", "Issues"} <= declared["urls"].keys()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["repository-code"] == extras.REPOSITORY
    assert f"git clone {extras.REPOSITORY}" in (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "st_prompteol").rglob("*"):
        if path.suffix in (".py", ".jinja", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pip install '?st-prompteol(\[[\w,]+\])?['`]", text), path
    asked = {extra for path in (ROOT / "st_prompteol").rglob("*.py") for extra in _extras(path)}
    assert asked
    assert asked <= declared["optional-dependencies"].keys()


def _extras(path: Path) -> list[str]:
    return re.findall(r'missing_extra\(.*, "(\w+)"\)', path.read_text(encoding="utf-8"))


def test_a_card_that_cannot_be_written_does_not_lose_the_model(
    causal_lms: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = PromptEOL(causal_lms["opt"], device="cpu")
    model.model_card_data.template_path = tmp_path / "missing"
    with caplog.at_level(logging.ERROR):
        model.save_pretrained(str(tmp_path / "model"))
    assert "Skipping model card creation" in caplog.text
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("x").shape


@pytest.mark.parametrize("change", ["max_seq_length", "prompt"])
def test_numbers_are_marked_when_another_option_has_changed(
    causal_lms: dict[str, str], tmp_path: Path, change: str
) -> None:
    model = PromptEOL(causal_lms["opt"])
    result = EvalResult("similarity", "a/b", "B", "spearman", 1.0, dataset_split="test")
    model.model_card_data.measure("mine", "### Mine\n\n1", [result])
    if change == "prompt":
        model.prompts["query"], model.default_prompt_name = "query: ", "query"
    else:
        model.max_seq_length = 20
    model.save_pretrained(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "measured before the model was changed" in card
    assert "model-index" not in card
