"""Models side by side: methods against pipelines written out here, resumed runs, damaged results, the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from st_prompteol import PromptEOL, PromptTemplate
from st_prompteol.cli import app
from st_prompteol.evaluation import STS_TASKS, TRANSFER_TASKS, Comparison, Run, run_tasks, runner
from st_prompteol.evaluation.methods import (
    MaskTokenPooling,
    apply_decoder_methods,
    apply_encoder_methods,
    apply_ensembles,
)
from st_prompteol.evaluation.runner import expand_tasks

from .helpers.models import build_causal_lm, sized
from .helpers.oracles import assert_alike
from .helpers.processes import Forked, command_line
from .helpers.sentences import SENTENCES, VENISON, WORDS
from .helpers.senteval import build_senteval


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT with a word-level tokenizer: [CLS] sentence [SEP]."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS.split(), *"\".:'01234"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = sized(BertConfig, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64)(len(vocabulary))
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_senteval(tmp_path_factory.mktemp("senteval"))


def test_decoder_methods_are_the_pipelines_that_they_say(causal_lms: dict[str, str]) -> None:
    path = causal_lms["llama"]
    shot = VENISON
    embeddings = {
        name: model.encode(SENTENCES)
        for name, model in list(apply_decoder_methods(PromptEOL(path), "facebook/opt-13b", layers=(-1, -2)))
    }
    bare = PromptEOL(path, template="none")
    mean = SentenceTransformer(modules=[bare[0], Pooling(32, "mean")])
    expected = {
        "mean of tokens": mean.encode(SENTENCES),
        "last token": bare.encode(SENTENCES),
        "prompt without the one-word limit": PromptEOL(path, template="prompt").encode(SENTENCES),
        "PromptEOL": PromptEOL(path).encode(SENTENCES),
        "PromptEOL + 1 demonstration": PromptEOL(path, demonstrations=[shot]).encode(SENTENCES),
        "PromptEOL, layer -2": PromptEOL(path, layer=-2).encode(SENTENCES),
    }
    assert len(embeddings) == 10
    for name, rows in expected.items():
        np.testing.assert_allclose(embeddings[name], rows, atol=1e-5, err_msg=name)


def test_the_masked_prompt_reads_the_mask_and_survives_long_sentences(bert: str) -> None:
    sentences = ["a man rides a horse", "the dog sings", "a cat " * 100, "big [ MASK ] dog"]
    by_name = {name: model.encode(sentences) for name, model in list(apply_encoder_methods(bert, device="cpu"))}
    assert list(by_name) == ["mean of tokens", "masked prompt", "masked prompt without the period"]
    transformer = Transformer(bert)
    body, tokenizer = transformer.model.eval(), transformer.tokenizer
    for name, end in (("masked prompt", "."), ("masked prompt without the period", "")):
        for sentence, row in zip(sentences, by_name[name], strict=True):
            text = f'This sentence : "{sentence}." means [MASK]{end}'
            ids = tokenizer(text)["input_ids"]
            if len(ids) > 64:  # the sentence loses its own end
                tail = tokenizer(f" means [MASK]{end}", add_special_tokens=False)["input_ids"] + [3]
                ids = ids[: 64 - len(tail)] + tail
            with torch.no_grad():
                hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
            position = max(index for index, token in enumerate(ids) if token == 4)
            np.testing.assert_allclose(row, hidden[position].numpy(), atol=1e-5)


def test_a_mask_in_a_sentence_is_text(bert: str) -> None:
    for name, model in apply_encoder_methods(bert, device="cpu"):
        masks = (model.preprocess(["big [MASK] dog"])["input_ids"] == 4).sum()
        assert masks == ("masked" in name)


def test_a_row_without_mask_is_refused(causal_lms: dict[str, str]) -> None:
    pooling = MaskTokenPooling(mask_token_id=4)
    with pytest.raises(ValueError, match="without the mask token"):
        pooling({"input_ids": torch.tensor([[1, 4], [1, 2]]), "token_embeddings": torch.zeros(2, 2, 8)})
    with pytest.raises(ValueError, match="neither a decoder LLM nor a masked language model"):
        list(apply_encoder_methods(causal_lms["opt"]))


def test_groups_of_tasks() -> None:
    assert expand_tasks(["sts", "STS12", "MR"]) == [*STS_TASKS, "MR"]
    assert expand_tasks(["all"]) == [*STS_TASKS, *TRANSFER_TASKS]


class TestResultsOnDisk:
    """A finished task is not run again, and nothing stale or damaged is read."""

    @pytest.fixture
    def model(self, causal_lms: dict[str, str]) -> PromptEOL:
        return PromptEOL(causal_lms["llama"])

    def run(self, model: PromptEOL, data_dir: Path, results: Path, **options: Any) -> dict[str, bool]:
        """Runs two tasks and says of each whether it was there already."""
        done: dict[str, bool] = {}
        run_tasks(
            model,
            Run.of(model, model[0].config.name_or_path, "PromptEOL"),
            data_dir,
            ["STSBenchmark", "MR"],
            results_dir=results,
            callback=lambda result, finished: done.update({result.task: finished}),
            **options,
        )
        return done

    def test_finished_tasks_are_kept_until_something_changes(
        self, model: PromptEOL, data_dir: Path, tmp_path: Path
    ) -> None:
        both, neither = {"STSBenchmark": True, "MR": True}, {"STSBenchmark": False, "MR": False}
        assert self.run(model, data_dir, tmp_path) == neither
        assert self.run(model, data_dir, tmp_path) == both
        assert self.run(model, data_dir, tmp_path, rerun=True) == neither
        model.layer = -2
        assert self.run(model, data_dir, tmp_path) == neither
        model.template = PromptTemplate("{sentence} is")
        assert self.run(model, data_dir, tmp_path) == neither
        model.layer, model.template = -1, "prompteol"
        assert self.run(model, data_dir, tmp_path) == both

    def test_files_tell_their_origin_and_damaged_ones_or_those_of_other_data_do_not_count(
        self, model: PromptEOL, data_dir: Path, tmp_path: Path
    ) -> None:
        results, changed = tmp_path / "results", tmp_path / "senteval"
        self.run(model, data_dir, results)
        (path,) = results.rglob("MR.json")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        assert path.relative_to(results).parts[1] == content["revision"][:18]
        assert content["revision"].startswith("local-")
        assert {"score", "details", "settings", "data", "versions", "seconds", "date"} <= content.keys()
        assert "means in one word" in content["settings"]["template"]["text"]
        assert content["parameters"] == sum(p.numel() for p in model.parameters())

        path.write_text(text[:50], encoding="utf-8")
        assert self.run(model, data_dir, results) == {"STSBenchmark": True, "MR": False}
        assert path.with_name("MR.json.damaged").exists()
        assert json.loads(path.read_text(encoding="utf-8"))["score"] == content["score"]

        shutil.copytree(data_dir, changed)
        with open(changed / "MR" / "rt-polarity.neg", "a", encoding="latin-1") as file:
            file.write("one more\n")
        assert self.run(model, changed, results) == {"STSBenchmark": True, "MR": False}


def evaluate(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_of_every_kind_are_rows_of_one_table(
    causal_lms: dict[str, str], bert: str, data_dir: Path, here: Path
) -> None:
    SentenceTransformer(bert).save_pretrained("sbert")
    PromptEOL(causal_lms["opt"], layer=-2).save_pretrained("saved")
    code, out, err = evaluate(
        *(causal_lms["llama"], "saved", "sbert", bert),
        *("--data-dir", str(data_dir), "--task", "STSBenchmark", "-o", "table.json"),
    )
    assert code == 0, err
    rows = json.loads(Path("table.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["PromptEOL", "PromptEOL, layer -2", "as it is", "as it is"]
    for row in rows:
        assert f"{row['scores']['STSBenchmark']:.2f}" in out
        assert f"{row['method']}: STSBenchmark {row['scores']['STSBenchmark']:.2f}" in err
    assert rows[2]["scores"] == rows[3]["scores"]
    assert rows[0]["scores"] != rows[1]["scores"]


@pytest.mark.slow
def test_methods_table_and_scaling_plot_over_three_models_of_growing_size(
    data_dir: Path, bert: str, here: Path
) -> None:
    sizes = ["llama", "opt-64", "opt"]
    for seed, name in enumerate(sizes):
        build_causal_lm(here / name, name, seed=seed)
    code, out, err = evaluate(
        *sizes,
        *("--data-dir", str(data_dir), "--task", "STSBenchmark", "--methods", "--plot", "scaling.png", "-o", "t.csv"),
    )
    assert code == 0, err
    lines = Path("t.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 5 * len(sizes)
    assert Path("scaling.png").stat().st_size > 10_000
    assert Path("scaling.svg").exists()
    code, out, err = evaluate(bert, "--data-dir", str(data_dir), "--task", "STSBenchmark", "--methods")
    assert code == 0, err
    assert out.count("masked prompt") == 2


def test_mistakes_are_named_before_any_model_is_opened(causal_lms: dict[str, str], data_dir: Path, here: Path) -> None:
    model, data = causal_lms["opt"], ("--data-dir", str(data_dir))
    for arguments, message in [
        ((model, *data, "--task", "STS99"), r"STS99.*STSBenchmark"),
        ((model, *data, "--task", "SICKRelatedness"), r"is missing"),
        ((model, "--data-dir", "missing"), r"is not a folder"),
        ((model, *data, "--task", "MR", "-o", "table.doc"), r"end its name in \.md"),
        ((model, *data, "--task", "MR", "--plot", "x.jpg"), r"end its name in \.png"),
        ((model, *data, "--task", "MR", "-o", "missing/table.md"), r"does not exist"),
        ((str(here / "missing"), *data, "--task", "MR"), r"missing"),
    ]:
        code, out, err = evaluate(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("st-prompteol: ")
        assert re.search(message, err), err
    assert not Path("results").exists()


def test_a_model_that_returns_nan_stops_with_the_sentence(
    causal_lms: dict[str, str], data_dir: Path, here: Path
) -> None:
    PromptEOL(causal_lms["opt"]).save_pretrained("broken")
    tensors = load_file("broken/model.safetensors")
    tensors["decoder.layers.0.fc1.weight"].fill_(float("nan"))
    save_file(tensors, "broken/model.safetensors", metadata={"format": "pt"})
    code, _, err = evaluate("broken", "--data-dir", str(data_dir), "--task", "STSBenchmark")
    assert code == 2
    assert "holds NaN or infinity" in err


def evaluate_and_hang(*arguments: str) -> None:
    """Hangs in the second task."""
    runner.evaluate_transfer_task = lambda *args, **kwargs: time.sleep(600)
    command_line("evaluate", *arguments)


@pytest.mark.slow
def test_killed_half_way_it_continues_where_it_stopped(causal_lms: dict[str, str], data_dir: Path, here: Path) -> None:
    arguments = [causal_lms["opt"], "--data-dir", str(data_dir), "--task", "STSBenchmark", "--task", "MR"]
    process = Forked(evaluate_and_hang, *arguments)
    deadline = time.monotonic() + 120
    while not list(Path("results").rglob("STSBenchmark.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path.name for path in Path("results").rglob("*.json")}
    assert finished == {"STSBenchmark.json"}
    status, out, err = evaluate(*arguments)
    assert status == 0
    assert "STSBenchmark" in err
    assert err.count("(finished before)") == 1
    unbroken = evaluate(*arguments, "--results-dir", "other")
    assert "(finished before)" not in unbroken[2]
    assert unbroken[1] == out
    assert not [name for name in os.listdir(here) if name.endswith(".tmp")]


def test_an_ensemble_is_the_mean_over_templates_and_is_not_saved(
    causal_lms: dict[str, str], data_dir: Path, here: Path
) -> None:
    templates = ("knowledge", "pretended-cot")
    for layer, (name, model) in zip(
        (-1, -2), apply_ensembles(PromptEOL(causal_lms["opt-350m"]), [templates], (-1, -2)), strict=True
    ):
        assert name == "mean of knowledge and pretended-cot" + (", layer -2" if layer == -2 else "")
        alone = [PromptEOL(causal_lms["opt-350m"], template=one, layer=layer).encode(SENTENCES) for one in templates]
        expected = (alone[0] + alone[1]) / 2
        assert_alike(model.encode(SENTENCES), expected)
        with pytest.raises(ValueError, match="cannot be saved"):
            model.save_pretrained("mean")
    options = ("--data-dir", str(data_dir), "--task", "STSBenchmark", "--methods", "--ensemble", ",".join(templates))
    code, out, err = evaluate(causal_lms["opt"], *options)
    assert code == 0, err
    assert "mean of knowledge and pretended-cot" in out


def test_an_unknown_task_is_found_before_the_data_is_downloaded() -> None:
    with pytest.raises(ValueError, match="Unknown task 'NOPE': choose from STS12"):
        Comparison(tasks=("STSBenchmark", "NOPE")).check()
