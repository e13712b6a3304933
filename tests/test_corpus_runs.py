"""Encoding corpora on one machine: every row once and in order, runs that go on, mistakes named."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers.util import quantize_embeddings
from typer.testing import CliRunner

from st_prompteol import PromptEOL
from st_prompteol.cli import app
from st_prompteol.corpus import encode_corpus
from st_prompteol.corpus.formats import read_batches
from st_prompteol.corpus.fragments import cut, list_sources

from .helpers.corpora import CLOSE, TEN, Counting, embeddings_of, manifest_of, read, sentences, write_parquet
from .helpers.processes import Forked, command_line, run_program
from .helpers.sentences import SENTENCES


@pytest.fixture(scope="module")
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["opt"])


def test_rows_of_every_format_come_once_in_order_with_their_columns(model: PromptEOL, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "d").mkdir(parents=True)
    formats = ("csv", "jsonl", "parquet")
    texts = {name: [f"{text} {name}" for text in [*SENTENCES, 'comma, "quote"']] for name in formats}
    with open(source / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts["csv"])])
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts["jsonl"])]
    (source / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    write_parquet(source / "d" / "c.parquet", list(texts["parquet"]), row_group_size=2)
    (source / "d" / "_SUCCESS").write_text("")
    (source / "README.md").write_text("no data")

    report = encode_corpus(
        model, source, tmp_path / "out", column="text", keep=["id", "text"], fragment_rows=3, batch_size=4
    )

    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    expected = [text for name in formats for text in texts[name]]
    assert [text for part in parts for text in part["text"].to_pylist()] == expected
    assert [int(number) for part in parts for number in part["id"].to_pylist()] == 3 * list(range(len(SENTENCES) + 1))
    assert parts[-1].schema.field("id").type == pa.int32()  # Parquet's columns keep their types
    assert {str(part.schema.field("embedding").type) for part in parts} == {"fixed_size_list<element: float>[32]"}
    got = np.array([row for part in parts for row in part["embedding"].to_pylist()])
    np.testing.assert_allclose(got, model.encode(expected), **CLOSE)
    assert (report.rows, report.bad_rows, report.encoded_rows) == (len(expected), 0, len(expected))
    assert report.parts == len(parts) > 4
    assert 0 < report.padding < 1
    manifest = manifest_of(tmp_path / "out")
    assert manifest["complete"] is True
    assert manifest["totals"]["rows"] == sum(part["rows"] for part in manifest["parts"]) == len(expected)
    assert manifest["identity"]["template"] == model.template.to_dict()
    assert manifest["about"]["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert pq.ParquetFile(sorted((tmp_path / "out").glob("part-*"))[0]).num_row_groups == 1


def test_rows_without_text_are_null_and_counted(model: PromptEOL, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "one"}\n{"text": null}\n{"text": 5}\n{"other": "x"}\nno json\n[1]\n\xff\xfe\n\n{"text": "nine"}\n'
    )
    (tmp_path / "b.csv").write_bytes(b"id,text\n1,ten\n2\n3,\xff\n4,\n")
    write_parquet(tmp_path / "c.parquet", ["x", None, None, "y"])
    sources = [tmp_path / name for name in ("a.jsonl", "b.csv", "c.parquet")]
    report = encode_corpus(model, sources, tmp_path / "out", column="text", fragment_rows=2)
    table = read(tmp_path / "out")
    expected = ["one", *[None] * 6, "nine", "ten", None, None, "", "x", None, None, "y"]
    assert table["text"].to_pylist() == expected
    assert [row is None for row in table["embedding"].to_pylist()] == [text is None for text in expected]
    assert (report.rows, report.bad_rows) == (16, 10)
    got = embeddings_of(table.filter(table["embedding"].is_valid()))
    np.testing.assert_allclose(got, model.encode([text for text in expected if text is not None]), **CLOSE)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_fragments_of_a_file_are_all_of_it_once(tmp_path: Path, suffix: str) -> None:
    chooser = random.Random(0)
    for trial in range(20):
        lengths = [chooser.randrange(0, 300) for _ in range(chooser.randrange(0, 40))]
        texts = ["".join(chooser.choices("aä😀 ", k=length)) for length in lengths]
        path = tmp_path / f"{trial}{suffix}"
        if suffix == ".parquet":
            write_parquet(path, list(texts), row_group_size=chooser.randrange(1, 30))
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        else:
            path.write_text("\r\n".join(texts), encoding="utf-8", newline="")
            texts = path.read_bytes().decode().split("\r\n")[: len(texts) - (texts[-1:] == [""])]
        column = None if suffix == ".txt" else "text"
        fragments = cut(list_sources([str(path)]), chooser.randrange(1, 6), column, ())
        assert [fragment.number for fragment in fragments] == list(range(len(fragments)))
        got = []
        for fragment in fragments:
            with open(path, "rb") as file:
                span = (fragment.start, fragment.stop)
                for batch in read_batches(file, str(path), 4, column=column, span=span):
                    got += batch.sentences
        assert got == texts
        if suffix == ".parquet" and len(texts) > 12:
            assert len(fragments) > 1


def test_large_row_groups_are_cut_and_small_ones_joined(tmp_path: Path) -> None:
    write_parquet(tmp_path / "large.parquet", ["x"] * 1000, row_group_size=1000)
    write_parquet(tmp_path / "small.parquet", ["x"] * 1000, row_group_size=7)
    large, small = (
        [fragment.stop - fragment.start for fragment in cut(list_sources([str(path)]), 100, "text", ())]
        for path in (tmp_path / "large.parquet", tmp_path / "small.parquet")
    )
    assert large == [100] * 10
    assert small == [105] * 9 + [55]


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_precisions_are_those_of_sentence_transformers(model: PromptEOL, tmp_path: Path, precision: Any) -> None:
    texts = sentences(40)
    source = write_parquet(tmp_path / "in.parquet", [*texts, None])
    encode_corpus(model, source, tmp_path / "out", precision=precision, normalize_embeddings=True, **TEN)
    table = read(tmp_path / "out").slice(0, 40)
    exact = model.encode(texts, normalize_embeddings=True)
    expected = exact.astype(np.float16) if precision == "float16" else quantize_embeddings(exact, precision)
    got = embeddings_of(table).astype(expected.dtype)
    kind = str(table.schema.field("embedding").type.value_type)
    assert kind == ("halffloat" if precision == "float16" else expected.dtype.name)
    assert got.shape == expected.shape
    if precision == "float16":
        np.testing.assert_allclose(got, expected, atol=1e-3)
    else:  # batches of other sizes differ in the last digit, which may lie on an edge
        steps = np.unpackbits(got.view(np.uint8)) != np.unpackbits(expected.view(np.uint8))
        differences = steps if precision.endswith("binary") else np.abs(got.astype(int) - expected.astype(int)) > 1
        assert differences.mean() < 0.001


def test_ranges_are_those_of_the_first_run(model: PromptEOL, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", list(sentences(30)))
    arguments = {**TEN, "precision": "int8"}
    encode_corpus(model, source, tmp_path / "out", **arguments)
    before, ranges = read(tmp_path / "out"), manifest_of(tmp_path / "out")["ranges"]
    (tmp_path / "out" / "part-000000-000001.parquet").unlink()
    report = encode_corpus(model, source, tmp_path / "out", **arguments)
    assert report.encoded_rows == 10
    assert manifest_of(tmp_path / "out")["ranges"] == ranges
    assert read(tmp_path / "out").equals(before)
    with pytest.raises(ValueError, match="scaled by the ranges of many sentences, but there are none: use float32"):
        encode_corpus(model, write_parquet(tmp_path / "one.parquet", ["x"]), tmp_path / "other", **arguments)


def test_a_run_that_broke_goes_on_and_a_finished_one_does_nothing(causal_lms: dict[str, str], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", list(sentences(60)))
    model = Counting(causal_lms["opt"])
    encode_corpus(model, source, tmp_path / "whole", **TEN)
    model.calls, model.fail_at = 0, 4
    with pytest.raises(RuntimeError, match="the machine broke"):
        encode_corpus(model, source, tmp_path / "out", **TEN)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(first) == ["_manifest.json", *(f"part-000000-{number:06d}.parquet" for number in range(3))]
    assert manifest_of(tmp_path / "out")["complete"] is False
    torn = tmp_path / "out" / "part-000000-000003.parquet"  # as a file system without rename may leave it
    torn.write_bytes((tmp_path / "out" / "part-000000-000002.parquet").read_bytes()[:-20])
    (tmp_path / "out" / ".part-000000-000004.parquet.0123.tmp").write_bytes(b"of a process that was killed")

    model.calls, model.fail_at = 0, -1
    report = encode_corpus(model, source, tmp_path / "out", **TEN)
    assert (report.rows, report.encoded_rows, model.calls) == (60, 30, 3)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert all(after[name] == first[name] for name in first if name.startswith("part"))
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))

    model.calls = 0
    report = encode_corpus(model, source, tmp_path / "out", **TEN)
    assert (report.rows, report.encoded_rows, model.calls) == (60, 0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == after


def test_a_destination_of_something_else_is_refused(
    model: PromptEOL, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    texts: list[str | None] = list(sentences(20))
    source, out = write_parquet(tmp_path / "in.parquet", texts), tmp_path / "out"
    encode_corpus(model, source, out, **TEN)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for other, changed, difference in [
        (PromptEOL(causal_lms["llama"]), {}, "weights '.*' there and '.*' here"),
        (PromptEOL(causal_lms["opt"], template="prompt"), {}, "template {.*one word.*} there and {.*means'.*} here"),
        (PromptEOL(causal_lms["opt"], layer=-2), {}, r"\(layer -1 there and -2 here\)"),
        (model, {"precision": "float16"}, "precision 'float32' there and 'float16' here"),
        (model, {"fragment_rows": 5}, "fragment_rows 10 there and 5 here"),
    ]:
        with pytest.raises(FileExistsError, match=f"made otherwise .*{difference}.*choose another destination"):
            encode_corpus(other, source, out, **{**TEN, **changed})
    with pytest.raises(FileExistsError, match=r"embeddings of other files \(1 there, 2 here\)"):
        encode_corpus(model, [source, write_parquet(tmp_path / "more.parquet", texts)], out, **TEN)
    os.utime(source, (1, 1))
    with pytest.raises(FileExistsError, match=r"in\.parquet' has changed since .*part-000000-\*, to encode it anew"):
        encode_corpus(model, source, out, **TEN)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "tables").mkdir()
    write_parquet(tmp_path / "tables" / "mine.parquet", texts)
    with pytest.raises(FileExistsError, match="holds Parquet files, but not of an encoded corpus"):
        encode_corpus(model, source, tmp_path / "tables", **TEN)
    with pytest.raises(ValueError, match="lies in the source"):
        encode_corpus(model, tmp_path, out, **TEN)
    (out / "_manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest .* is damaged"):
        encode_corpus(model, source, out, **TEN)


def test_a_corpus_is_standardized_and_never_by_two_statistics(
    model: PromptEOL, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    texts = sentences(20)
    source, name = write_parquet(tmp_path / "in.parquet", [*texts]), causal_lms["opt"]
    arguments: dict[str, Any] = {**TEN, "standardize": SENTENCES}
    report = encode_corpus(name, source, tmp_path / "out", **arguments)
    sample = model.encode(SENTENCES)
    expected = (model.encode(texts) - sample.mean(axis=0)) / sample.std(axis=0)
    np.testing.assert_allclose(embeddings_of(read(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "out/part-000000-000001.parquet").unlink()
    report = encode_corpus(name, source, tmp_path / "out", batch_size=4, **arguments)
    assert (report.rows, report.encoded_rows) == (20, 10)
    np.testing.assert_allclose(embeddings_of(read(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)
    others = [{"standardize": SENTENCES[1:]}, {"standardize": ()}, {"standardization": "center"}]
    for other in others:
        with pytest.raises(FileExistsError, match=r"made otherwise \(standardization .*choose another destination"):
            encode_corpus(name, source, tmp_path / "out", **{**arguments, **other})
    with pytest.raises(ValueError, match=r"pass its name, or standardize the model first"):
        encode_corpus(model, source, tmp_path / "new", **arguments)
    with pytest.raises(ValueError, match="standardization='whiten' has no effect without standardize"):
        encode_corpus(name, source, tmp_path / "new", standardization="whiten", **TEN)
    assert not (tmp_path / "new").exists()


def test_an_unreadable_file_in_the_middle_is_named_and_the_rest_is_done(model: PromptEOL, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in "abc":
        write_parquet(source / f"{name}.parquet", list(sentences(20, seed=ord(name))), row_group_size=10)
    whole = (source / "b.parquet").read_bytes()
    (source / "b.parquet").write_bytes(whole[:100])  # no footer
    report = encode_corpus(model, source, out, **TEN)
    assert len(report.failures) == 1
    assert "b.parquet' cannot be read: " in report.failures[0]
    assert (report.rows, report.parts, manifest_of(out)["complete"]) == (40, 4, False)
    assert "b.parquet" in manifest_of(out)["failures"]["part-000001-000000.parquet"]

    damaged = bytearray(whole)
    place = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(0).column(1).data_page_offset
    damaged[place : place + 20] = bytes(20)  # of the first row group only
    (source / "b.parquet").write_bytes(damaged)
    report = encode_corpus(model, source, out, **TEN)
    assert (report.rows, report.encoded_rows, len(report.failures)) == (50, 10, 1)
    (source / "b.parquet").write_bytes(whole)
    with pytest.raises(FileExistsError, match="has changed since"):  # and half of it was encoded before
        encode_corpus(model, source, out, **TEN)
    (out / "part-000001-000001.parquet").unlink()
    report = encode_corpus(model, source, out, **TEN)
    assert (report.rows, report.encoded_rows, report.failures) == (60, 20, ())
    expected = [text for name in "abc" for text in sentences(20, seed=ord(name))]
    assert read(out)["text"].to_pylist() == expected
    np.testing.assert_allclose(embeddings_of(read(out)), model.encode(expected), **CLOSE)


def test_files_that_ended_the_run_are_named_or_read_and_the_rest_is_done(model: PromptEOL, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "d").mkdir(parents=True)
    (source / "a.csv").write_bytes(b"text\rone\rtwo\r")
    pq.write_table(pa.table([["x"], ["y"]], names=["text", "text"]), source / "b.parquet")
    (source / "c.jsonl").write_bytes(b'{"text": "three"}\n{"text": ' + b"1" * 4301 + b'}\n{"text": "four"}\n')
    with open(os.fsencode(source) + b"/d/\xff.txt", "wb") as file:
        file.write(b"five\n")
    (source / "e.csv").write_text('text\n"six\n' + "long " * 30_000 + "\n", encoding="utf-8")
    texts = [source / "d", source / "a.csv", source / "b.parquet", source / "c.jsonl", source / "e.csv"]
    with pytest.raises(ValueError, match="read as one sentence a line"):
        encode_corpus(model, texts, tmp_path / "out", **TEN)
    report = encode_corpus(model, texts[0], tmp_path / "lines", fragment_rows=10)
    assert (report.rows, report.failures) == (1, ())
    assert read(tmp_path / "lines")["sentence"].to_pylist() == ["five"]
    report = encode_corpus(model, texts[1:], tmp_path / "out", **TEN)
    assert [failure.split("' cannot")[0][-5:] for failure in report.failures] == ["a.csv", "rquet", "e.csv"]
    assert "carriage return alone" in report.failures[0]
    assert "has 2 columns 'text'" in report.failures[1]
    assert "Line 2 of" in report.failures[2]
    assert "at line 3" in report.failures[2]
    assert read(tmp_path / "out")["text"].to_pylist() == ["three", None, "four"]
    assert report.bad_rows == 1


def test_a_folder_that_links_lead_back_to_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "d" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "d" / "elsewhere").symlink_to(tmp_path / "d", target_is_directory=True)
    assert [file.path for file in list_sources([str(tmp_path)])] == [str(tmp_path / "a.txt")]


def test_mistakes_are_named_before_anything_is_encoded(
    model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_parquet(tmp_path / "in.parquet", ["x"])
    (tmp_path / "in.csv").write_text("id,text\n1,x\n", encoding="utf-8")
    (tmp_path / "in.jsonl").write_text('{"id": 1}\n{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "in.txt").write_text("x\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "ray", None)
    mistakes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"source": "in.csv", "column": "title"}, ValueError, "in.csv' has no column 'title': choose one of 'id', 't"),
        ({"source": "in.jsonl", "column": None}, ValueError, "in.jsonl' has 2 columns: choose one of 'id', 'text'"),
        ({"source": "in.txt"}, ValueError, "read as one sentence a line, so it has no column 'text'"),
        ({"keep": ["title"]}, ValueError, "has no column 'title': choose one of 'id', 'text'"),
        ({"column": "id"}, ValueError, "column 'id' of .* holds int32, not text"),
        ({"source": "missing"}, FileNotFoundError, "is neither a file nor a folder"),
        ({"source": "empty"}, FileNotFoundError, "There is no file in .*empty"),
        ({"engine": "spark"}, ValueError, "Unknown engine 'spark': choose local or ray"),
        ({"engine": "ray"}, ValueError, "pass its name or folder, not the model"),
        ({"engine": "ray", "model": "tiny"}, ImportError, r"engine='ray' needs .*pip install 'st-prompteol\[ray\] @"),
        ({"address": "auto", "workers": 2}, ValueError, "address='auto', workers=2 has no effect with engine='local'"),
        ({"cpus_per_worker": 1}, ValueError, "cpus_per_worker=1 has no effect with engine='local'"),
        ({"keep": ["embedding"]}, ValueError, "none of which is 'embedding'"),
        ({"keep": "text"}, ValueError, "must be a list of columns"),
        ({"fragment_rows": 0}, ValueError, "must be at least 1"),
        ({"model_options": {"layer": -2}}, ValueError, "for a model that is yet to be opened"),
    ]
    for arguments, error, message in mistakes:
        given = {"model": model, "column": "text", **arguments, "source": tmp_path / arguments.get("source", source)}
        with pytest.raises(error, match=message):
            encode_corpus(destination=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory: you tried")],
    ids=lambda error: type(error).__name__,
)
def test_where_memory_ends_batches_are_halved(
    causal_lms: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Narrow(PromptEOL):
        batches: list[int] = []  # noqa: RUF012

        def forward(self, features: dict[str, Any], **kwargs: Any) -> Any:
            if len(features["input_ids"]) > 5:
                raise error
            self.batches.append(len(features["input_ids"]))
            return super().forward(features, **kwargs)

    texts = sentences(30)
    model = Narrow(causal_lms["opt"])
    source = write_parquet(tmp_path / "in.parquet", list(texts))
    encode_corpus(model, source, tmp_path / "out", column="text", batch_size=16, fragment_rows=10)
    assert max(model.batches) == 4
    assert [record.getMessage() for record in caplog.records if "Out of memory" in record.getMessage()] == [
        "Out of memory: going on with batches of 8 sentences.",
        "Out of memory: going on with batches of 4 sentences.",
    ]
    got = embeddings_of(read(tmp_path / "out"))
    np.testing.assert_allclose(got, PromptEOL(causal_lms["opt"]).encode(texts), **CLOSE)


def test_addresses_that_fsspec_opens(model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(30)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus/in/a.parquet", buffer.getvalue())
    memory.pipe_file("/corpus/in/b.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    memory.pipe_file("/corpus/in/c.csv", "".join(f"{text}\n" for text in ["text", *texts]).encode())
    for _ in range(2):
        report = encode_corpus(model, "memory://corpus/in", "memory://corpus/out", column="text", fragment_rows=8)
    assert (report.rows, report.encoded_rows) == (90, 0)
    names = sorted(path.rsplit("/", 1)[1] for path in memory.ls("/corpus/out", detail=False))
    assert names[0] == "_manifest.json"
    table = pa.concat_tables(pq.read_table(memory.open(f"/corpus/out/{name}")) for name in names[1:])
    assert table["text"].to_pylist() == 3 * texts
    np.testing.assert_allclose(embeddings_of(table), model.encode(3 * texts), **CLOSE)
    write_parquet(tmp_path / "in.parquet", list(texts))
    encode_corpus(model, f"file://{tmp_path}/in.parquet", f"file://{tmp_path}/out", column="text")
    assert read(tmp_path / "out")["text"].to_pylist() == texts
    with pytest.raises(ValueError, match="Nothing opens 'gopher:"):
        encode_corpus(model, "gopher://corpus", tmp_path / "other")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match="'s3://bucket/in' needs a package: Install s3fs"):
        encode_corpus(model, "s3://bucket/in", tmp_path / "other")


@pytest.mark.slow
def test_a_full_disk_and_one_that_may_not_be_written_to_are_named(causal_lms: dict[str, str], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", list(sentences(4000)))
    small, fixed = tmp_path / "small", tmp_path / "fixed"
    small.mkdir()
    fixed.mkdir()
    mounts = [
        shlex.join(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)])
        for folder, options in ((small, "size=400k"), (fixed, "ro"))
    ]
    inside = ["unshare", "--mount", "sh", "-c", f'{" && ".join(mounts)} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs to mount small file systems")
    done = run_program("meet_full_disks", causal_lms["opt"], str(source), str(small), str(fixed), inside=inside)
    first, second, third, names, rows = done.stdout.splitlines()
    assert first == second == f"OSError: The disk of '{small}/out' is full: free space, and the same call goes on."
    assert third.startswith(f"OSError: The destination '{fixed}/out' cannot be written: ")
    assert third.endswith("Read-only file system.")
    assert 500 <= int(rows) < 4000
    assert int(rows) % 500 == 0
    assert ".tmp" not in names


@pytest.mark.slow
def test_an_interrupted_command_goes_on(stories: str, tmp_path: Path) -> None:
    """After `kill -9`, see `kills` in attack.py."""
    texts = sentences(6000)
    source, out = write_parquet(tmp_path / "in.parquet", list(texts)), tmp_path / "out"
    command = ["corpus", stories, str(source), "-o", str(out), "--column", "text", "--fragment-rows", "200"]
    process = Forked(command_line, *command)
    while not (out / "part-000000-000002.parquet").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    message = process.communicate()
    done = len(list(out.glob("part-*")))
    assert 3 <= done < 30
    assert process.returncode == 130
    assert f"st-prompteol: Interrupted: {done} of 30 parts are in '{out}', and the same call goes on." in message
    assert "Traceback" not in message
    assert not list(out.glob(".*"))
    again = Forked(command_line, *command).communicate()
    assert "6000 rows, 0 of them without text, in 30 parts" in again
    assert f"{6000 - 200 * done} encoded now" in again
    assert not list(out.glob(".*"))
    assert read(out)["text"].to_pylist() == texts
    np.testing.assert_allclose(embeddings_of(read(out)), PromptEOL(stories).encode(texts), **CLOSE)


@pytest.mark.slow
def test_several_devices_have_a_process_each(causal_lms: dict[str, str], tmp_path: Path) -> None:
    texts = sentences(200)
    source = write_parquet(tmp_path / "in.parquet", [*texts, None])
    options = {"column": "text", "fragment_rows": 100, "devices": ["cpu", "cpu"], "standardization": "center"}
    report = encode_corpus(causal_lms["opt"], source, tmp_path / "out", standardize=texts, **options)
    assert (report.rows, report.bad_rows, report.padding) == (201, 1, None)
    got, embeddings = embeddings_of(read(tmp_path / "out").slice(0, 200)), PromptEOL(causal_lms["opt"]).encode(texts)
    np.testing.assert_allclose(got, embeddings - embeddings.mean(axis=0), **CLOSE)


def test_the_command_says_what_came_of_it(causal_lms: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["corpus", causal_lms["opt"], *arguments], env={"COLUMNS": "200"})
        assert result.stdout == ""
        return result.exit_code, result.stderr

    source = tmp_path / "in"
    source.mkdir()
    write_parquet(source / "a.parquet", ["x", None, "y"])
    command = [str(source), "-o", str(tmp_path / "out"), "--column", "text"]
    code, message = run(*command, "--keep", "id,text", "--precision", "float16", "--layer", "-2")
    assert (code, "3 rows, 1 of them without text, in 1 parts" in message) == (0, True), message
    assert read(tmp_path / "out").column_names == ["id", "text", "embedding"]
    code, message = run(*command)
    assert (code, message.count("\n")) == (2, 1)
    assert "layer -2 there and -1 here" in message
    (source / "b.parquet").write_bytes(b"nothing")
    code, message = run(*command[:2], str(tmp_path / "other"), *command[3:])
    assert code == 1
    assert f"st-prompteol: '{source}/b.parquet' cannot be read: " in message


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small = write_parquet(tmp_path / "s.parquet", ["x"] * 100_000, row_group_size=2_000_000)
    large = write_parquet(tmp_path / "l.parquet", ["x"] * 400_000, row_group_size=2_000_000)
    done = run_program("encode_corpora", str(small), str(large))
    before, after = map(int, done.stdout.split())
    assert pq.read_metadata(f"{large}-out/part-000000-000000.parquet").num_rows > 28_000
    assert (after - before) * 1024 < 60e6  # the embeddings alone are 307 MB more; 32 MiB of them are held at a time


def test_a_file_without_rows_is_done_at_once(model: PromptEOL, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    report = encode_corpus(model, tmp_path / "none.txt", tmp_path / "none")
    assert (report.rows, report.parts, report.failures) == (0, 0, ())
