"""The command line: what it prints, its exit codes, and that a mistake is one sentence."""

from __future__ import annotations

import inspect
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from st_prompteol import TINY, PromptEOL
from st_prompteol.cli import app
from st_prompteol.cli.options import read_model_options
from st_prompteol.saved import released

from . import ROOT
from .helpers.models import publish_adapter
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess, run, run_program
from .helpers.searches import write_search
from .helpers.sentences import SENTENCES

CANDIDATES = str(ROOT / "examples/candidates.tsv")


def test_help_is_quick_and_needs_no_pytorch() -> None:
    commands = ["", *get_command(app).commands]  # type: ignore[attr-defined]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run_program("show_help", *commands)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5  # seconds of a core, for all of them


def test_every_command_that_opens_a_model_has_its_options() -> None:
    """And what they say is how the model is opened."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in ("info", "encode", "corpus", "similarity", "evaluate", "export", "push", "search", "serve"):
        options = {parameter.name for parameter in commands[name].params}
        assert options >= set(inspect.signature(read_model_options).parameters), name


def test_info_shows_what_the_model_runs_with(causal_lms: dict[str, str]) -> None:
    code, out, _ = run("info", causal_lms["opt"], "--layer", "-2", "--template", "[red]{sentence}")
    facts = dict(line.strip().split(maxsplit=1) for line in out.replace("template tokens", "tokens").splitlines())
    assert code == 0
    assert facts["template"] == "[red]{sentence}"
    assert (facts["layer"], facts["dimension"], facts["dtype"]) == ("-2", "32", "float32")
    assert facts["architecture"] == "OPTModel"
    assert facts["parameters"] == f"{PromptEOL(causal_lms['opt'])[0].model.num_parameters():,}" == "45,504"


def test_a_model_is_opened_as_its_options_say(causal_lms: dict[str, str], tmp_path: Path) -> None:
    shown = tmp_path / "shown.tsv"
    shown.write_text("sentence\tword\nA jockey riding a horse.\tEquestrian\n", encoding="utf-8")
    options = ["--demonstrations", str(shown), "--dtype", "bfloat16", "--max-seq-length", "99", "--truncate-dim", "8"]
    code, out, error = run("info", causal_lms["opt"], "--device", "cpu", *options)
    assert code == 0, error
    assert "A jockey riding a horse" in out
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if line.split()[0] not in ("template", "behind"))
    found = [facts[name].strip() for name in ("demonstrations", "dtype", "max_seq_length", "dimension")]
    assert found == ["1", "bfloat16", "99", "8"]


def test_encode_streams_lines_to_a_file(causal_lms: dict[str, str], tmp_path: Path) -> None:
    stdin = "".join(f"{sentence}\n" for sentence in SENTENCES).encode()
    out = tmp_path / "out.npy"
    code, printed, message = run(
        "encode", causal_lms["opt"], "-", "-o", str(out), "--normalize", "--truncate-dim", "8", stdin=stdin
    )
    assert (code, printed) == (0, "")
    assert f"{len(SENTENCES)} embeddings of 8 numbers (float32) in {out}" in message
    expected = PromptEOL(causal_lms["opt"], truncate_dim=8).encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_encode_takes_the_packaged_model_when_none_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    released._say_what_it_is_for.cache_clear()
    out = tmp_path / "out.npy"
    assert run("encode", "-o", str(out), stdin=b"A jockey riding a horse.\n")[0] == 0
    assert caplog.text.count("for trying things out") == 1
    np.testing.assert_allclose(np.load(out), PromptEOL(TINY).encode(["A jockey riding a horse."]), atol=1e-4)
    assert caplog.text.count("for trying things out") == 1  # once a process


def test_similarity_prints_a_small_matrix(causal_lms: dict[str, str]) -> None:
    code, out, _ = run("similarity", causal_lms["opt"], "a [b]cat[/b]", "a dog")
    model = PromptEOL(causal_lms["opt"])
    embeddings = model.encode(["a [b]cat[/b]", "a dog"])
    value = f"{model.similarity(embeddings, embeddings)[0, 1].item():.4f}"
    assert code == 0
    assert out.count(value) == 2
    assert out.count("1.0000") == 2
    assert "a [b]cat[/b]" in out


def test_export_merges_an_adapter_into_a_folder_for_anyone(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    adapter = publish_adapter(causal_lms["llama"], tmp_path / "adapter")
    code, out, message = run("export", adapter, str(tmp_path / "full"))
    assert (code, out) == (0, "")
    assert "open it with SentenceTransformer" in message
    assert not (tmp_path / "full" / "adapter_config.json").exists()
    expected = PromptEOL(adapter).encode(SENTENCES)
    assert_alike(plain.encode(tmp_path / "full", SENTENCES), expected)


def test_export_standardizes(causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess) -> None:
    sentences, folder = tmp_path / "sentences.tsv", str(tmp_path / "full")
    sentences.write_text("".join(f"1\t{line}\n" for line in ["id", *SENTENCES]), encoding="utf-8")
    options = ["--standardize", str(sentences), "--standardization", "center", "--column", "2", "--no-header"]
    code, _, message = run("export", causal_lms["opt"], folder, *options)
    assert (code, "open it with" in message) == (0, True)
    model = PromptEOL(causal_lms["opt"])
    expected = model.encode(SENTENCES) - model.encode(["id", *SENTENCES]).mean(axis=0)
    np.testing.assert_allclose(plain.encode(folder, SENTENCES), expected, atol=1e-5)
    code, _, message = run("export", causal_lms["opt"], folder, *options[:2], "--column", "text", "--header")
    assert (code, "has no column 'text'" in message) == (2, True)


def test_similarity_and_encode_standardize(causal_lms: dict[str, str], tmp_path: Path) -> None:
    """By the column of the input if the other file has it, else by the column `sentence`."""
    (tmp_path / "in.csv").write_text("text\na cat\na dog\n", encoding="utf-8")
    for name in ("text", "sentence"):
        rows = [f"id\t{name}", *(f"{number}\t{sentence}" for number, sentence in enumerate(SENTENCES))]
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    model = PromptEOL(causal_lms["opt"])
    embeddings, sample = model.encode(["a cat", "a dog"]), model.encode(SENTENCES)
    expected = (embeddings - sample.mean(axis=0)) / sample.std(axis=0)
    encode = ["encode", causal_lms["opt"], str(tmp_path / "in.csv"), "--column", "text", "-o", str(tmp_path / "x.npy")]
    for name in ("text.tsv", "sentence.tsv", "lines.txt"):
        code, _, message = run(*encode, "--standardize", str(tmp_path / name))
        assert code == 0, message
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-3)
    source = str(tmp_path / "in.csv")  # a file that gives both is shown once
    code, _, message = run(*encode, "--standardize", source)
    assert (code, message.count("in.csv: 2 rows")) == (0, 1), message
    similarity = ["similarity", causal_lms["opt"], "a cat", "a dog"]
    code, out, message = run(*similarity, "--standardize", str(tmp_path / "sentence.tsv"))
    assert (code, out.count(f"{model.similarity(*expected[:, None])[0, 0]:.4f}")) == (0, 2)
    assert "--standardize" not in message


def test_similarity_names_the_cure_for_embeddings_that_are_all_alike(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    model = PromptEOL(causal_lms["llama"])
    for sentences, is_told in ((["It rains.", "It rains!"], True), (["It rains.", "", "Rates go up"], False)):
        lowest = model.similarity(*[model.encode(sentences)] * 2).min()
        assert (lowest > 0.6) == is_told, lowest
        code, out, message = run("similarity", causal_lms["llama"], *sentences)
        assert (code, "--standardize" in out) == (0, False)
        assert (f"All similarities are {lowest:.2f} or more" in message and "--standardize FILE" in message) == is_told
    model.standardize(SENTENCES)
    model.save_pretrained(str(tmp_path))
    assert "--standardize" not in run("similarity", str(tmp_path), "It rains.", "It rains!")[2]


def test_mistakes_are_one_sentence_and_exit_code_2(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model, out, missing = causal_lms["opt"], str(tmp_path / "out.npy"), str(tmp_path / "missing")
    (tmp_path / "latin1.txt").write_bytes("\xfc".encode("latin-1"))
    (tmp_path / "fine.txt").write_text("fine\n", encoding="utf-8")
    latin, fine = str(tmp_path / "latin1.txt"), str(tmp_path / "fine.txt")
    build, search = ["candidates", "c.tsv"], ["search", "tiny", CANDIDATES]
    (tmp_path / "empty.tsv").touch()
    shown, *pairs = write_search(tmp_path, 3)
    (tmp_path / "found").mkdir()
    found = ["search", model, shown, *pairs, "-o", str(tmp_path / "found")]
    mistakes = [
        (["info", missing], "not found"),
        (["info", model, "--template", "no hole"], "Unknown template 'no hole': choose one of prompteol, prompt"),
        (["info", model, "--template", "{sentence}{sentence}"], "has 2 places for the sentence"),
        (["info", model, "--layer", "5"], "out of range"),
        (["info", model, "--max-seq-length", "3"], "leaves no room for a sentence"),
        (["info", model, "--adapter", "legal"], "write --adapter legal=user/legal-adapter"),
        (["similarity", model, "alone"], "nothing to be similar to"),
        (["encode", model, latin, "-o", out], "Line 1"),
        (["encode", model, fine, "-o", str(tmp_path / "out.xyz")], "Unknown output format"),
        (["encode", model, fine, "-o", missing + "/out.npy"], "does not exist"),
        (["encode", model, missing + ".txt", "-o", out], "is not a file"),
        (["export", model, "/dev/null/folder"], "/dev/null"),
        (["export", model, out, "--standardize", latin], "latin1.txt"),
        (["export", model, out, "--standardize", fine], "got 1: pass some hundred"),
        (["encode", model, fine, "-o", out, "--standardize", missing], "missing"),
        # an option has an effect or is refused
        (["corpus", model, fine, "-o", out, "--address", "auto"], "--address has no effect without --engine ray"),
        (["corpus", model, fine, "-o", out, "--engine", "local", "--workers", "2", "--cpus-per-worker", "1"],
         "--workers and --cpus-per-worker have no effect without --engine ray"),
        *[([*command, "--standardization", "center"], "--standardization has no effect without --standardize")
          for command in (["export", model, out], ["similarity", model, "a", "b"], ["encode", model, fine, "-o", out],
                          ["corpus", model, fine, "-o", out], ["serve", model])],
        (["evaluate", "tiny", "--at-layer", "-2"], "--at-layer has no effect without --methods"),
        (["evaluate", "tiny", "--methods", "--layer", "-2"], "--layer has no effect beside --methods"),
        (["evaluate", "tiny", "--mteb", "STS12", "--data-dir", "x"], "--data-dir has no effect on MTEB's tasks"),
        ([*build, "--dictionary", "d", "--llm-count", "3"], "--llm-count has no effect"),
        ([*build, "--llm", "x", "--timeout", "9"], "--timeout has no effect on an LLM"),
        ([*build, "--llm", "x", "--provider", "auto", "--device", "cpu"], "--device has no effect on an LLM at an"),
        ([*search, "--pairs", "p.tsv", "--data-dir", "d"], "--data-dir has no effect"),
        (["search", "tiny", "--pairs", "p.tsv", "--exhaustive"], "--exhaustive has no effect without candidates"),
        ([*search, "--demonstrations", CANDIDATES], "--demonstrations has no effect where they are searched for"),
        ([*search, "--column", "1"], "--column has no effect without --sentences"),
        ([*search, "--no-header"], "--header has no effect without --pairs or --sentences"),
        ([*search, "--sentences", fine, "--no-standardize"], "--sentences has no effect beside --no-standardize"),
        ([*found, "--sentences", fine], "two different sentences or more, got 1: pass"),
        (["search", model, *pairs, "--shots", "2"], "--shots has no effect without candidates"),
        (["search", model, str(tmp_path / "empty.tsv"), *pairs], "holds no demonstration"),
        (["search", model, missing + ".tsv", *pairs], "missing.tsv"),
        ([*found, "--layers", "first"], "not a list of layers"),
        ([*found, "--layers", "-1,-7"], "out of range"),
        ([*found, "--templates", "none"], "a demonstration's word has no place"),
        (build, "nothing to build from"),
        ([*build, "--base-url", "http://x"], "add --llm NAME"),
        ([*build, "--dictionary", "/missing"], "neither a folder"),
        ([*build, "--llm", "m", "--provider", "nobody", "--sentences", shown, "--key-variable", "NONE"], "NONE"),
    ]  # fmt: skip
    before = sorted(os.listdir(tmp_path))
    for arguments, message in mistakes:
        code, printed, error = run(*arguments)
        assert (code, printed) == (2, ""), arguments
        assert error.startswith("st-prompteol: ")
        assert message in error
        assert error.count("\n") == 1, error
    assert sorted(os.listdir(tmp_path)) == before


def test_unknown_options_are_usage_errors(causal_lms: dict[str, str]) -> None:
    assert run("encode", causal_lms["opt"], "--precision", "int4", "-o", "x.npy")[0] == 2
    assert run("encode", causal_lms["opt"])[0] == 2
    assert run("unknown")[0] == 2
