"""Model cards: valid metadata whatever names hold, nothing injected, results of this model and no other."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, parse_eval_result_entries

from st_prompteol import Demonstration, PromptEOL, PromptTemplate, lora_config
from st_prompteol.card.markdown import code, escape, fence
from st_prompteol.evaluation.results import Run
from st_prompteol.evaluation.runner import run_tasks
from st_prompteol.hub import CardOptions, build_model_card
from st_prompteol.hub.facts import run_of
from st_prompteol.hub.results import ModelResults, eval_result_files, eval_results, read_results

from . import ROOT
from .helpers.models import publish_adapter
from .helpers.senteval import build_senteval

EVIL = [
    '"quoted"\n---\nlicense: stolen\n---\n# Heading',
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![](https://evil.invalid/x) https://evil.invalid",
    "``` \n</code></pre> `tick` ``two``",
    "a | b | c\\| {{ 7 * 7 }} {% raw %} ${x} \u202e\x1b[31m",
    "- item\n1. one\n> quote\n<!-- comment",
]


def without_code(text: str) -> str:
    """The text outside blocks of code and inline code, as a renderer sees them."""
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text, flags=re.M | re.S)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_others_chose_acts_in_a_card(causal_lms: dict[str, str], tmp_path: Path, evil: str) -> None:
    model = PromptEOL(causal_lms["opt"])
    shot = Demonstration(" ".join(evil.split()), "Word")
    model.template = PromptTemplate(f"{evil} {{sentence}} means", (shot,), preprocessing="none")
    data = model.model_card_data
    data.model_name, data.language, data.license = evil, [evil], evil
    data.tags.append(evil)
    data.train_datasets = [{"name": evil, "columns": ["a"], "size": 3, "loss": {"fullname": evil}}]
    data.all_hyperparameters = data.non_default_hyperparameters = {"learning_rate": evil, evil: 1}
    card = build_model_card(model, "alice/model", CardOptions(hardware=evil))
    (tmp_path / "README.md").write_text(str(card), encoding="utf-8")
    metadata = metadata_load(tmp_path / "README.md")
    assert set(metadata) >= {"library_name", "pipeline_tag", "tags", "license"}
    assert metadata["license"] != "stolen"
    assert "\n" not in metadata["license"] + "".join(metadata["tags"])
    assert str(ModelCard(str(card)).data.to_dict()["library_name"]) == "sentence-transformers"
    text = without_code(card.text)
    assert not re.search(r"<(?!/?(details|summary|code|ul|li|br)\b)[a-z!]", text)
    assert not re.search(r"(?<!\\)\]\(javascript:", text)
    assert "](https://evil" not in text
    assert "\n# Heading" not in text
    assert "\x1b" not in card.content
    assert "\u202e" not in card.text
    assert card.text.count("\n## License") == 1
    assert "- `learning_rate`: " in card.text


def test_text_in_markdown_is_shown_as_it_is() -> None:
    assert escape("a_b *c* [d](e) <f> | `g`\nh") == r"a\_b \*c\* \[d\](e) &lt;f&gt; \| \`g\` h"
    assert [escape(text) for text in ("# a", "- a", "1. a", "---", "-1.5", "2 x a", "a - b")] == [
        r"\# a", r"\- a", r"1\. a", r"\---", "-1.5", "2 x a", "a - b",
    ]  # fmt: skip
    assert code("a `b` c") == "``a `b` c``"
    assert code("`b`") == "`` `b` ``"
    assert fence("a\n```\nb") == "````text\na\n```\nb\n````"


@pytest.fixture(scope="module")
def measured(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A saved model on a base, and results of both."""
    folder = tmp_path_factory.mktemp("measured")
    data, base, saved = build_senteval(folder / "senteval"), causal_lms["llama"], str(folder / "saved")
    PromptEOL(base).save(saved, create_model_card=False)
    for name in (base, saved):
        model = PromptEOL(name)
        run_tasks(model, Run.of(model, name, "PromptEOL"), data, ["STSBenchmark"], results_dir=folder / "results")
    return saved, folder / "results"


def card_of(source: str, results_dir: Path, **options: Any) -> ModelCard:
    """The card of a model with its results."""
    return build_model_card(
        PromptEOL(source), "alice/model", CardOptions(results_dir=results_dir, **options), source=source
    )


def test_results_stand_in_table_metadata_and_result_files(measured: tuple[str, Path]) -> None:
    saved, results_dir = measured
    card = card_of(saved, results_dir, license="mit", language="en", datasets=["a/b"])
    results = read_results(results_dir, run_of(PromptEOL(saved), saved), None)
    score = results.own["STSBenchmark"]["score"]
    assert f"| alice/model | this model | {score:.2f} |" in card.text
    data: Any = ModelCard(str(card)).data
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["a/b"])
    assert {"prompteol", "sentence-transformers"} <= set(data.tags)
    assert data.model_name == "alice/model"
    (result,) = data.eval_results
    assert isinstance(result, EvalResult)
    assert (result.dataset_config, result.metric_value) == ("STSBenchmark", pytest.approx(score, abs=1e-4))
    ((name, text),) = eval_result_files(results).items()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (name, entry.dataset_id) == ("datasets-for-simcse.yaml", "princeton-nlp/datasets-for-simcse")
    assert (entry.task_id, entry.value) == ("STSBenchmark", pytest.approx(score, abs=1e-4))
    assert entry.date is not None


def test_a_result_names_the_part_of_the_data_that_it_is_of() -> None:
    tasks = ("STSBenchmark", "STSBenchmark-dev", "MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
    entries = eval_results(ModelResults({task: {"score": 50.0} for task in tasks}, ()))
    folds = ("train", "Main score x100, mean of 10 held-out folds")
    assert {entry.dataset_config: (entry.dataset_split, entry.metric_name) for entry in entries} == {
        "STSBenchmark": ("test", "Spearman cosine x100"),
        "STSBenchmark-dev": ("dev", "Spearman cosine x100"),
        **dict.fromkeys(("MR", "CR", "SUBJ", "MPQA"), folds),  # whose sentences are one part
        **dict.fromkeys(("SST2", "TREC", "MRPC"), ("test", "Main score x100")),
    }


def test_results_are_added_to_a_card_that_was_written_by_hand(measured: tuple[str, Path], tmp_path: Path) -> None:
    saved, results_dir = measured
    shutil.copytree(saved, tmp_path / "model")
    mine = EvalResult("similarity", "a/b", "B", "spearman", 1.0, dataset_split="test")
    card = ModelCard(f"---\n{ModelCardData(model_name='mine', eval_results=[mine])}\n---\n\n# My model\n")
    (tmp_path / "model/README.md").write_text(str(card), encoding="utf-8")
    card = card_of(str(tmp_path / "model"), results_dir)
    assert card.text.strip() == "# My model"
    assert [entry.dataset_name for entry in card.data.eval_results] == ["B", "SentEval STS-B"]
    other = PromptEOL(str(tmp_path / "model"), layer=-2)
    assert build_model_card(other, "alice/model").data.eval_results is None


@pytest.mark.slow
def test_mteb_s_own_results_stand_beside_them(measured: tuple[str, Path], tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    saved, _ = measured
    run = run_of(PromptEOL(saved), saved)
    subset = {"main_score": 0.625, "cosine_spearman": 0.625, "hf_subset": "default", "languages": ["eng-Latn"]}
    for revision, score in {run.revision: 0.625, f"{run.revision}-0123abcd": 0.9}.items():  # the other: other settings
        content = mteb.results.TaskResult.from_task_results(
            mteb.get_task("STS12"), {"test": {"default": {**subset, "main_score": score}}}, 1
        )
        path = tmp_path / "mteb/results/local__saved" / revision / "STS12.json"
        path.parent.mkdir(parents=True)
        content.to_disk(path)
    card = card_of(saved, tmp_path)
    assert "STS12 (MTEB)" in card.text
    assert "62.50" in card.text
    assert "90.00" not in card.text
    (entry,) = ModelCard(str(card)).data.eval_results
    assert (entry.dataset_type, entry.metric_value, entry.metric_type) == ("mteb/sts12-sts", 62.5, "spearman_cosine")
    results = read_results(tmp_path, run, None)
    ((name, text),) = eval_result_files(results).items()
    (parsed,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (name, parsed.dataset_id) == ("sts12-sts.yaml", "mteb/sts12-sts")
    assert (parsed.task_id, parsed.value) == ("STS12", 62.5)
    changed = PromptEOL(saved, layer=-2)  # in memory: the plain revision's results are the published model's
    with pytest.raises(ValueError, match="holds no result of"):
        read_results(tmp_path, run_of(changed, saved), None)


def test_a_base_that_was_a_folder_goes_by_its_repository(
    measured: tuple[str, Path], causal_lms: dict[str, str], tmp_path: Path
) -> None:
    _, results_dir = measured
    adapter = publish_adapter(causal_lms["llama"], tmp_path / "adapter")
    model = PromptEOL(adapter)
    run = Run.of(model, adapter, "PromptEOL + adapter")
    run_tasks(model, run, results_dir.parent / "senteval", ["STSBenchmark"], results_dir=results_dir)
    card = card_of(adapter, results_dir, base_model="user/llama", license="mit")
    assert "| user/llama | PromptEOL, no training |" in card.text
    assert "| alice/model | this model |" in card.text
    assert causal_lms["llama"] not in str(card)


def test_results_of_another_model_are_refused(measured: tuple[str, Path], tmp_path: Path) -> None:
    saved, results_dir = measured
    options = CardOptions(results_dir=results_dir)
    model = PromptEOL(saved)
    model.template = "prompt"
    with pytest.raises(ValueError, match=r"holds no result of .* as it is now"):
        build_model_card(model, "alice/model", options, source=saved)
    model = PromptEOL(saved)
    model[0].model.embed_tokens.weight.data[3] += 1.0  # edited in memory, the folder is as it was
    with pytest.raises(ValueError, match=r"holds no result of .* as it is now"):
        build_model_card(model, "alice/model", options, source=saved)
    model = PromptEOL(saved)
    model.add_adapter(lora_config(r=4))  # the results are those of its base
    with pytest.raises(ValueError, match="holds no result of"):
        build_model_card(model, "alice/model", options)
    model = PromptEOL(saved)
    model.model_card_data.add_tags("generated_from_trainer")  # as a trainer does
    with pytest.raises(ValueError, match="trained since it was opened: save it, run `st-prompteol evaluate`"):
        build_model_card(model, "alice/model", options)
    PromptEOL(saved, layer=-2).save(str(tmp_path / "other"), create_model_card=False)
    with pytest.raises(ValueError, match=r"evaluate .* with this --results-dir first"):
        card_of(str(tmp_path / "other"), results_dir)
    (results_dir / "MR.json").write_text("no JSON", encoding="utf-8")
    (results_dir / "CR.json").write_text(json.dumps({"task": "CR"}), encoding="utf-8")
    card_of(saved, results_dir)


def test_what_was_known_of_training_stays_when_a_model_is_opened_and_published_again(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["opt"])
    data = model.model_card_data
    data.add_tags("generated_from_trainer")
    data.non_default_hyperparameters = data.all_hyperparameters = {"learning_rate": 0.0005}
    data.training_logs = [{"Epoch": 1, "Step": 1, "Training Loss": 2.5}]
    model.save(str(tmp_path / "run"))
    (tmp_path / "run" / "curves.png").write_bytes(b"")
    for number in range(2):  # sentence-transformers' card, then ours
        opened = PromptEOL(str(tmp_path / "run"))
        options = CardOptions(hardware="2 x Abacus")
        card = build_model_card(opened, "alice/model", options, source=str(tmp_path / "run"))
        assert "- `learning_rate`: 0.0005" in card.text, number
        assert card.text.count("### Training Logs") == 1
        assert card.text.count("2 x Abacus") == 1
        assert "![Training loss" in card.text
        assert card.text.count("### Framework Versions") == 1
        assert card.text.count("@inproceedings{jiang") == 1
        (tmp_path / "run" / "README.md").write_text(str(card), encoding="utf-8")


def released() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "hub_cards/push.py"))


def test_the_cards_of_released_models_are_those_that_their_facts_and_results_give() -> None:
    names = released()
    listed = {names["card_file"](release) for release in names["RELEASED"]}
    assert listed == set(names["FOLDER"].glob("*.md"))
    for release in names["RELEASED"]:
        card = names["card_file"](release)
        assert str(names["rendered"](release)) == card.read_text(encoding="utf-8"), f"run {names['COMMAND']}"
        assert ModelCard.load(card).data.to_dict()["library_name"] == "sentence-transformers"


def test_a_released_card_follows_its_results_without_the_model(measured: tuple[str, Path], tmp_path: Path) -> None:
    saved, results_dir = measured
    names = released()
    options = CardOptions(license="mit", language=("en",), hardware="1 x Abacus")
    release = names["Release"](saved, "alice/model", options)
    shutil.copytree(results_dir, names["results_folder"](release, tmp_path))
    card = names["render"](release, tmp_path)
    direct = build_model_card(PromptEOL(saved), "alice/model", replace(options, results_dir=results_dir), source=saved)
    assert card.read_text(encoding="utf-8") == str(direct) == str(names["rendered"](release, tmp_path))
    for path in names["results_folder"](release, tmp_path).rglob("STSBenchmark.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "score": 98.76}), encoding="utf-8")
    assert "| alice/model | this model | 98.76 |" in str(names["rendered"](release, tmp_path))
