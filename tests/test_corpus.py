"""Encoding files: every format in and out, rows in order, memory flat, mistakes named, nothing half written."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sentence_transformers.util import quantize_embeddings

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_file

from .helpers.processes import run_program
from .helpers.sentences import SENTENCES

SENTENCES = [sentence for sentence in SENTENCES if sentence] + ["", 'comma, "quote"', "tab\tinside"]


@pytest.fixture(scope="module")
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["opt"])


def write(path: Path, sentences: list[str]) -> Path:
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *([number, text] for number, text in enumerate(sentences))])
    elif path.suffix == ".tsv":  # whose cells hold everything but tabs and line breaks, as it is
        lines = (f"{number}\t{text}\n" for number, text in enumerate(sentences))
        path.write_text("id\ttext\n" + "".join(lines), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = (json.dumps({"text": text, "n": 1}, ensure_ascii=False) + "\n" for text in sentences)
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": sentences, "n": list(range(len(sentences)))}), path)
    else:
        path.write_text("".join(f"{text}\n" for text in sentences), encoding="utf-8")
    return path


def read(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        return load_file(path)["embeddings"]
    return np.array(pq.read_table(path)["embedding"].to_pylist())


@pytest.mark.parametrize("source", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_row_i_is_sentence_i_in_every_format(
    model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("st_prompteol.corpus.file.CHUNK_BATCHES", 2)  # several chunks
    sentences = [sentence for sentence in SENTENCES if source != ".tsv" or "\t" not in sentence]
    path, expected = write(tmp_path / f"in{source}", sentences), model.encode(sentences)
    for destination in (".npy", ".safetensors", ".parquet"):
        out = tmp_path / f"out{destination}"
        shape = encode_file(model, path, out, column=None if source == ".txt" else "text", batch_size=2)
        assert shape == (len(sentences), 32)
        np.testing.assert_allclose(read(out), expected, rtol=1e-4, atol=1e-5)
    assert pq.read_table(out)["sentence"].to_pylist() == sentences
    assert sorted(os.listdir(tmp_path)) == [path.name, "out.npy", "out.parquet", "out.safetensors"]


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_precisions_equal_those_of_encoding_all_at_once(
    model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr("st_prompteol.corpus.file.CHUNK_BATCHES", 1)
    path = write(tmp_path / "in.txt", SENTENCES)
    chunks = [
        model.encode(SENTENCES[start : start + 3], normalize_embeddings=True) for start in range(0, len(SENTENCES), 3)
    ]
    for destination in (".npy", ".safetensors", ".parquet"):
        out = tmp_path / f"out{destination}"
        encode_file(model, path, out, batch_size=3, precision=precision, normalize_embeddings=True)
        np.testing.assert_array_equal(read(out), quantize_embeddings(np.concatenate(chunks), precision))


def test_reads_standard_input(model: PromptEOL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO("\ufeffün\r\nzwei\n\nvier".encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert encode_file(model, "-", tmp_path / "out.npy") == (4, 32)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.encode(["ün", "zwei", "", "vier"]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("in.txt", b"fine\n\xff\xfe\n", None, r"Line 2 of .* is not UTF-8: .*iconv"),
        ("in.csv", b"a,b\n1,2\n3\n", "b", r"Line 3 of .* has 1 columns, but its header 2"),
        ("in.csv", b"a,b\n1,2\n", "text", r"has no column 'text': choose one of 'a', 'b'"),
        ("in.csv", b"a,b\n1,2\n", None, r"in.csv' has 2 columns: choose one of 'a', 'b' with column"),
        ("in.csv", b"", None, r"has no column: write a header and rows"),
        ("in.csv", b"", "text", r"has no column 'text': choose one of none at all"),
        ("in.jsonl", b'{"text": "x"}\n{"text"', "text", r"Line 2 of .* is not JSON"),
        ("in.jsonl", b'{"text": null}\n', "text", r"The sentence in line 1 of .* is None, not text"),
        ("in.jsonl", b"[1]\n", "text", r"Line 1 of .* each must be a JSON object"),
        ("in.txt", b"", None, r"holds no sentence"),
        ("in.txt", b"x\n", "text", r"read as one sentence a line, so it has no column 'text'"),
        ("in.parquet", b"", "text", r"(?i)parquet"),
        ("in.parquet", None, "text", r"The sentence in row 1 of .* is None, not text"),
    ],
)
def test_mistakes_in_the_input_are_named_and_nothing_is_written(
    model: PromptEOL, tmp_path: Path, name: str, content: bytes | None, column: str | None, message: str
) -> None:
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "out.npy").write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        encode_file(model, tmp_path / name, tmp_path / "out.npy", column=column)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out.npy"])
    assert (tmp_path / "out.npy").read_bytes() == b"old"


def test_outputs_that_cannot_be_written_are_named_before_anything_is_encoded(model: PromptEOL, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", SENTENCES)
    with pytest.raises(ValueError, match=r"Unknown output format .*end its name in \.npy, \.safetensors, \.parquet"):
        encode_file(model, source, tmp_path / "out.csv")
    with pytest.raises(FileNotFoundError, match="does not exist: make it"):
        encode_file(model, source, tmp_path / "missing" / "out.npy")
    with pytest.raises(ValueError, match="scaled by the ranges of all rows, but there is only one: use float32"):
        encode_file(model, write(tmp_path / "one.txt", ["x"]), tmp_path / "out.npy", precision="int8")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        encode_file(model, tmp_path / "missing.txt", tmp_path / "out.npy")


def test_a_full_disk_leaves_the_old_output(model: PromptEOL, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it is an OSError, half-way through."""
    source = write(tmp_path / "in.txt", SENTENCES * 40)
    (tmp_path / "out.npy").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            encode_file(model, source, tmp_path / "out.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.npy"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    small, large = write(tmp_path / "s.txt", ["x"] * 5_000), write(tmp_path / "l.txt", ["x"] * 100_000)
    done = run_program("encode_files", str(small), str(large), str(tmp_path / "out.npy"))
    _, before, *after = map(int, done.stdout.split())
    assert np.load(tmp_path / "out.npy", mmap_mode="r").shape == (100_000, 512)
    assert (max(after) - before) * 1024 < 60e6  # the embeddings alone are 205 MB in float32
