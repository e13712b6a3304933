"""How the packaged model was made: text without evaluation data, rows that keep texts apart, a run, its triplets."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from st_prompteol import PromptEOL
from st_prompteol.evaluation.senteval import _TASKS, STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS
from training.arguments import parse_arguments, parse_recipe
from training.tiny import pretrain as script
from training.tiny import triplets
from training.tiny.text import Text, evaluation_sentences, read_text, read_wordnet, render_documents

from . import ROOT
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES
from .helpers.training import logged, run_to_the_end

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning", "ignore:.*tokenizers.*fork.*")
SUBJECTS = ("A baker", "The old captain", "Our neighbour", "A tired nurse", "The youngest of the sisters", "My uncle")
VERBS = ("repairs", "paints", "forgets", "carries", "sells", "admires", "hides")
OBJECTS = ("a wooden boat", "the garden gate", "three umbrellas", "her violin", "some warm bread", "the blue kettle")
PLACES = ("near the harbour", "in the morning", "behind the station", "while it rains", "before dinner", "every week")
PROMPT = 'This sentence : "{}" means in one word:"'
# SentEval's formats
WITH_HEADER = ("SICKRelatedness", "MRPC")
LINES = dict.fromkeys(("STSBenchmark", STS_DEV_TASK), "g\tf\ty\t1\t{score}\t{first}\t{second}")
LINES |= {"SICKRelatedness": "1\t{first}\t{second}\t{score}", "MRPC": "1\t1\t1\t{first}\t{second}"}
LINES |= {"SST2": "{first}\t1", "TREC": "NUM:date {first}"}
STS_LINES = ("{first}\t{second}", "{score}")
WORDNET = """\
  1 The licence is indented.
00000100 03 n 01 tool 0 001 ~ 00000200 n 0000 | an implement that people work with; "he hung every tool on the wall"
00000200 03 n 02 hammer 0 claw_hammer 0 001 @ 00000100 n 0000 | a tool that drives nails; it pulls them, too
00000300 03 n 01 Helvetia 0 001 @i 00000100 n 0000 | an old name of Switzerland
00000400 03 n 01 saw 0 001 @ 00000100 n 0000 | a tool with teeth that parts wood
00000500 03 n 01 plane 0 001 @ 00000100 n 0000 | a tool that smooths; secret sentence of a test
"""


def letters(sentence: str) -> str:
    return "".join(filter(str.isalnum, sentence.lower()))


def invent(draw: random.Random) -> str:
    return " ".join(draw.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)) + "."


def write_task(folder: Path, task: str, draw: random.Random) -> None:
    """Writes the files of a SentEval task, with 12 sentences or pairs each, none of them in another file."""
    for files in _TASKS[task].files.values():
        for side, name in enumerate(files):
            form = LINES.get(task) or (STS_LINES[side] if task in STS_TASKS else f"{side} {{first}}")
            lines = [form.format(first="header", second="header", score=0)] if task in WITH_HEADER else []
            for number in range(12):
                first, second = (f"{task.lower()} {name.lower()} {number}{part} {invent(draw)}" for part in "ab")
                lines.append(form.format(first=first, second=second, score=number % 5))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All three folders in small: SentEval, inference and WordNet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, draw = tmp_path_factory.mktemp("world"), random.Random(0)
    for task in (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS):
        write_task(folder / "senteval", task, draw)
    tests = folder / "senteval/STS/STS12-en-test/STS.input.MSRpar.txt"
    tests.write_text("Secret, sentence of a TEST!\tAn ordinary sentence.\n" + tests.read_text().split("\n", 1)[1])
    rows = [f"g\tf\ty\t{number}\t4.5\t{invent(draw)}\t{invent(draw)}" for number in range(20)]
    rows.append("g\tf\ty\t99\t4.5\tA secret sentence of a test .\tWhat stands beside it.")
    rows.append("g\tf\ty\t99\t5.0\tsecret sentence of a test\tWhat stands beside that.")
    (folder / "senteval/STS/STSBenchmark/sts-train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "senteval/SICK/SICK_train.txt").write_text(
        f"pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\t{invent(draw)}\t{invent(draw)}\t4.9\n",
        encoding="utf-8",
    )
    (folder / "nli").mkdir()
    table = [
        {"premise": premise, "hypothesis": f"{invent(draw)} {number} {label}", "label": label}
        for number, premise in enumerate(f"{invent(draw)} {number}" for number in range(100))
        for label in (0, 1, 2)[: 1 + number % 3]
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "nli/rows.parquet")
    (folder / "wordnet").mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"wordnet/data.{part}").write_text(WORDNET if part == "noun" else "", encoding="utf-8")
    return {f"{name}_dir": str(folder / name) for name in ("senteval", "nli", "wordnet")}


def test_no_sentence_of_an_evaluation_is_read(world: dict[str, str]) -> None:
    text = read_text(**world)
    found = set(map(letters, text.sentences))
    assert len(found) == len(text.sentences) > 400
    assert "secretsentenceofatest" not in found
    assert {"asecretsentenceofatest", "whatstandsbesidethat", "hehungeverytoolonthewall"} <= found
    everything = " ".join(text.sentences)
    for part in ("stsbenchmark/sts-dev", "sts-test", "sts14", "sick_test", "sentiment", "trec_10", "paraphrase_test"):
        assert part not in everything
    for part in ("rt-polarity", "custrev", "subj.", "mpqa.", "train_5500", "paraphrase_train"):
        assert part in everything
    assert text.definitions == [
        ("an implement that people work with", "tool"),
        ("a tool that drives nails; it pulls them, too", "hammer"),
        ("a tool with teeth that parts wood", "saw"),
    ]


def test_a_sentence_is_held_out_wherever_it_stands() -> None:
    sentences = [f"sentence number {number}" for number in range(2000)]
    text = Text(sentences, [(sentence, "word") for sentence in sentences])
    train, held_out = text.split(20)
    assert {*train.sentences} | {*held_out.sentences} == {*sentences}
    assert not {*train.sentences} & {*held_out.sentences}
    assert [sentence for sentence, _ in held_out.definitions] == held_out.sentences
    assert 60 <= len(held_out.sentences) <= 140
    assert Text(sentences[::-1], []).split(20)[1].sentences == held_out.sentences[::-1]


def test_documents_are_bare_and_in_the_template_with_a_word() -> None:
    text = Text(["He Said that", "Rain, rain!"], [("a tool", "saw"), ("a tool", "hammer")])
    documents = render_documents(text, seed=0)
    bare = [document for document in documents if not document.startswith("This sentence")]
    assert Counter(bare) == Counter(["He Said that", "Rain, rain!", "a tool"])
    assert PROMPT.format("a tool.") + ' saw".' in documents
    assert PROMPT.format("a tool.") + ' hammer".' in documents
    for sentence, words in (("He Said that.", ("said", "that")), ("Rain, rain!.", ("rain",))):
        for spelling in (sentence, sentence.lower()):
            prompt = PROMPT.format(spelling)
            (word,) = (document.removeprefix(prompt) for document in documents if document.startswith(prompt))
            assert word in [f' {word}".' for word in words]
    assert render_documents(text, seed=0) == documents


@given(st.lists(st.integers(1, 30), max_size=200))
@settings(deadline=None, max_examples=25)
def test_rows_hold_every_document_whole(lengths: list[int]) -> None:
    documents = [[number] * length for number, length in enumerate(lengths)]
    rows = script.pack(documents, 20)
    assert sorted(document for row in rows for document in row) == [document[:20] for document in documents]
    assert all(sum(map(len, row)) <= 20 for row in rows)
    assert len(rows) <= 2 * math.ceil(sum(min(length, 20) for length in lengths) / 20)


@pytest.fixture(scope="module")
def tokenizer(world: dict[str, str]) -> Any:
    return script.train_tokenizer(read_text(**world).sentences, 400, 128)


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_the_tokenizer_takes_any_text(tokenizer: Any, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text


def test_texts_in_a_row_do_not_see_each_other(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = script.build_model(script.ArchitectureArguments(hidden_size=64, num_hidden_layers=2), tokenizer).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    documents = ["A baker paints three umbrellas.", "My uncle sells her violin.", "The blue kettle."]
    rows = script.Rows(tokenizer, documents, 96)
    assert len(rows) == 1
    row = rows[0]
    with torch.inference_mode():
        loss = model(**{name: value[None] for name, value in row.items()}, use_cache=False).loss
        losses = []
        for document in documents:
            ids = torch.tensor([[*tokenizer(document)["input_ids"], tokenizer.eos_token_id]])
            losses.append((model(input_ids=ids, labels=ids).loss, ids.shape[1] - 1))
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)
    assert int((row["labels"] >= 0).sum()) == sum(count for _, count in losses)


def words(world: dict[str, str], output_dir: Path, *more: str) -> list[str]:
    """The command line of a run of 24 steps, with a checkpoint after every eight."""
    fixed = {"output_dir": str(output_dir), "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, **world}
    fixed |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "held_out_every": 10}
    fixed |= {"max_steps": 24, "warmup_steps": 4, "save_steps": 8, "eval_steps": 8, "logging_steps": 1}
    fixed |= {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "row_length": 64, "precision": "float32"}
    return [*(f"--{key}={value}" for key, value in fixed.items()), "--disable_tqdm", "true", *more]


@pytest.fixture(scope="module")
def finished(world: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An unbroken run, and what it said; read only."""
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_to_the_end(script.main, words(world, output_dir), output_dir)


@pytest.mark.slow
def test_a_run_leaves_a_base_that_learned_the_text(finished: tuple[Path, str], plain: PlainProcess) -> None:
    output_dir, said = finished
    perplexities = [float(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "perplexity" in line]
    assert len(perplexities) == 4
    assert perplexities[0] > 1.2 * perplexities[-1]
    assert perplexities[-1] < 100  # of 400 tokens
    model = PromptEOL(str(output_dir))
    assert model.get_embedding_dimension() == 64
    model.save_pretrained(str(output_dir.parent / "saved"))
    embeddings = torch.tensor(plain.encode(output_dir.parent / "saved", SENTENCES))
    torch.testing.assert_close(embeddings, torch.tensor(model.encode(SENTENCES)), atol=1e-5, rtol=1e-5)


def test_the_learning_rate_is_constant_and_then_decays(finished: tuple[Path, str]) -> None:
    rates = logged(finished[0], 24, "learning_rate")
    assert all(rates[step] == pytest.approx(1e-2) for step in range(5, 19))
    assert all(rates[step] > rates[step + 1] for step in range(19, 23))
    assert rates[24] < 2e-3


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_unbroken_one(
    finished: tuple[Path, str], world: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "checkpoint-16", run / "checkpoint-16")
    with pytest.raises(SystemExit, match="has a run already"):
        script.main(words(world, run))
    script.main(words(world, run, "--resume_from_checkpoint", "auto"))
    assert logged(run, 24) == pytest.approx(logged(finished[0], 24), abs=1e-3)
    one, other = (load_file(folder / "model.safetensors") for folder in (run, finished[0]))
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--wordnet_dir", "gone"], "gone/data.noun is missing: wordnet_dir is the folder"),
        (["--max_steps", "0"], "max_steps=0 must be positive"),
        (["--output_dir", ""], "A run needs an output_dir"),
        (["--hiden_size", "3"], "Unknown flag '--hiden_size': did you mean '--hidden_size'?"),
    ],
)
def test_a_mistake_ends_in_a_sentence(world: dict[str, str], tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main(words(world, tmp_path / "run", *more))
    assert str(stopped.value).startswith("pretrain.py: ")
    assert message in str(stopped.value)


def test_triplets_come_from_everything_but_evaluation(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs/triplets.jsonl"
    triplets.main([*(f"--{key}_dir={world[f'{key}_dir']}" for key in ("senteval", "nli")), f"--output={path}"])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert f"{len(rows):,} triplets" in capsys.readouterr().out
    forbidden = evaluation_sentences(world["senteval_dir"])
    for row in rows:
        assert list(row) == ["anchor", "positive", "negative"]
        assert not set(map(letters, row.values())) & set(forbidden)
    pairs = Counter((row["anchor"], row["positive"]) for row in rows)
    assert pairs["A secret sentence of a test .", "What stands beside it."] == 1
    assert not any("stands beside that" in row["positive"] for row in rows)
    entailments = [row for row in rows if re.fullmatch(r".*\. \d+ 0", row["positive"])]
    assert len(entailments) == 100
    for row in entailments:
        number = row["anchor"].rsplit(" ", 1)[1]
        assert row["positive"].endswith(f" {number} 0")
        if int(number) % 3 == 2:  # there is a contradiction
            assert row["negative"].endswith(f" {number} 2")


def test_the_recipes_make_a_model_of_eight_megabytes_of_float16(tokenizer: Any) -> None:
    kinds = (script.TextArguments, script.ArchitectureArguments, script.PretrainingArguments)
    _, architecture, run = parse_recipe(kinds, ["--config", str(ROOT / "training/tiny/pretrain.yaml")])
    parameters = script.build_model(architecture, tokenizer).num_parameters()  # with the tokens of a small tokenizer
    parameters += (architecture.vocab_size - len(tokenizer)) * architecture.hidden_size
    assert 2e6 <= parameters <= 8e6 / 2
    model, data, tuning = parse_arguments(["--config", str(ROOT / "training/tiny/fine-tune.yaml")])
    assert (model.model_name_or_path, model.lora_r) == (run.output_dir, 0)
    assert data.train_file == "runs/tiny-triplets.jsonl"
    assert (tuning.merge, tuning.merge_dtype, tuning.merge_layer) == (True, "float16", -2)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_text_holds_no_sentence_of_the_sts_tasks(shared: Path) -> None:
    wordnet = "/usr/share/wordnet"
    if not Path(wordnet).is_dir():
        pytest.skip("needs Debian's wordnet-base")
    text = read_text(str(shared / "senteval"), str(shared / "hub/datasets/nli"), wordnet)
    seen = set(map(letters, [*text.sentences, *(definition for definition, _ in text.definitions)]))
    for name in ("dev", "test"):
        with open(shared / f"senteval/STS/STSBenchmark/sts-{name}.csv", encoding="utf-8") as file:
            for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                assert not set(map(letters, row[5:7])) & seen
    assert len(text.sentences) > 100_000
    assert len(text.definitions) > 100_000
    words, definition, examples = next(synset for synset in read_wordnet(wordnet) if "domestic dog" in synset[0])
    assert words == ["dog", "domestic dog", "Canis familiaris"]
    assert definition.startswith("a member of the genus Canis (probably descended from the common wolf)")
    assert examples == ["the dog barked all night"]
