"""Files of text where commands and the library read them: said in a line, asked where it is not certain."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus, encode_file
from st_prompteol.files import look_into
from st_prompteol.recipes import read_candidates, read_pairs

from .helpers.corpora import Counting
from .helpers.processes import run

TEXTS = ["It rains.", "A man sings.", "北京是首都。", ""]
PASSAGES = "".join(f"{number}\t{text}\n" for number, text in enumerate(TEXTS)).encode()


@pytest.fixture(scope="module")
def model(causal_lms: dict[str, str]) -> PromptEOL:
    return PromptEOL(causal_lms["opt"])


def test_passages_without_a_header_keep_their_first_row(
    causal_lms: dict[str, str], model: PromptEOL, tmp_path: Path
) -> None:
    path, out = tmp_path / "passages.tsv", tmp_path / "out.npy"
    path.write_bytes(PASSAGES)
    expected = model.encode(TEXTS)
    for options in ([], ["--no-header"]):
        code, _, message = run("encode", causal_lms["opt"], str(path), "-o", str(out), "--column", "2", *options)
        assert code == 0, message
        assert f"{path}: 4 rows, no header, columns 1, 2\n" in message
        np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    code, _, message = run("encode", causal_lms["opt"], str(path), "-o", str(out), "--column", "text")
    assert (code, "has no column 'text': choose one of '1', '2'" in message) == (2, True)
    code, _, message = run("encode", causal_lms["opt"], str(path), "-o", str(out), "--column", "0", "--header")
    assert (code, f"{path}: 3 rows, columns 0, It rains." in message) == (0, True)


def test_a_column_of_sentences_is_asked_about(causal_lms: dict[str, str], model: PromptEOL, tmp_path: Path) -> None:
    path, out = tmp_path / "sentences.tsv", tmp_path / "out.npy"
    path.write_text("It rains.\nA man sings.\n", encoding="utf-8")
    encode = ["encode", causal_lms["opt"], str(path), "-o", str(out)]
    code, _, message = run(*encode)
    assert code == 2
    assert message.count("\n") == 1
    assert "('It rains.') may be a header or the first row of data: say --header or --no-header" in message
    assert not out.exists()
    code, _, message = run(*encode, "--no-header")
    assert (code, f"{path}: 2 rows, no header, column 1\n" in message) == (0, True)
    np.testing.assert_allclose(np.load(out), model.encode(["It rains.", "A man sings."]), atol=1e-5)
    with pytest.raises(ValueError, match=r"header=True or header=False in Python"):
        encode_file(model, path, out)
    assert encode_file(model, path, out, header=True)[0] == 1
    code, _, message = run("export", causal_lms["opt"], str(tmp_path / "full"), "--standardize", str(path))
    assert (code, "say --header or --no-header" in message) == (2, True)
    code, _, message = run("export", causal_lms["opt"], str(tmp_path / "full"), "--no-header")
    assert (code, "has no effect without --standardize" in message) == (2, True)


def test_a_detected_header_that_looks_like_sentences_is_shown_with_the_remedy(
    model: PromptEOL, tmp_path: Path
) -> None:
    path, hint = tmp_path / "two.tsv", " (if they are the first row of data: --no-header)"
    path.write_text("It rains.\ttext\nIt snows.\tA man sings.\n", encoding="utf-8")
    assert look_into(path, columns=["text"]).describe(1) == f"{path}: 1 row, columns It rains., text{hint}"
    assert hint not in look_into(path, header=True).describe(1)
    for column in ("sentence", None):
        with pytest.raises(ValueError, match=rf"choose one of 'It rains\.', 'text'.*{re.escape(hint)}\.$"):
            encode_file(model, path, tmp_path / "out.npy", column=column)
    path.write_text("sentence\ttext\nIt snows.\tA man sings.\n", encoding="utf-8")
    assert hint not in look_into(path).describe(1)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("".join(f"{text}\n" for text in TEXTS).encode(), "-: 4 lines"),
        (gzip.compress("".join(f"{text}\n" for text in TEXTS).encode(), mtime=0), "-: 4 lines"),
        ("".join(f"{json.dumps({'t': text})}\n" for text in TEXTS).encode(), "-: 4 rows of JSON lines, column t"),
        (json.dumps(TEXTS).encode(), "-: 4 rows of JSON"),
    ],
)
def test_standard_input_is_read_by_its_content(
    causal_lms: dict[str, str], model: PromptEOL, tmp_path: Path, content: bytes, line: str
) -> None:
    out = tmp_path / "out.npy"
    code, _, message = run("encode", causal_lms["opt"], "-", "-o", str(out), stdin=content)
    assert code == 0, message
    assert f"{line}\n" in message
    np.testing.assert_allclose(np.load(out), model.encode(TEXTS), atol=1e-5)


def test_a_packed_corpus_goes_on_after_a_stop(causal_lms: dict[str, str], tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    rows = [{"id": str(number), "text": f"{number} birds sing."} for number in range(40)]
    lines = [f"{json.dumps(row)}\n".encode() for row in rows]
    (source / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:9])) + gzip.compress(b"".join(lines[9:10])))
    table = "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows[10:20])
    (source / "b.csv.zst").write_bytes(pa.compress(table.encode(), codec="zstd", asbytes=True))
    (source / "c.json").write_text(json.dumps(rows[20:30], indent=1), encoding="utf-8")
    (source / "d.txt").write_bytes(b"".join(lines[30:]))  # JSON lines, whatever their name is
    stopped = Counting(causal_lms["opt"])
    stopped.fail_at = 3
    options: dict[str, Any] = {"column": "text", "keep": ["id", "text"], "fragment_rows": 1}
    with pytest.raises(RuntimeError, match="the machine broke"):
        encode_corpus(stopped, source, out, **options)
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(done) == 2
    with pytest.raises(FileExistsError, match="header None there and True here"):
        encode_corpus(PromptEOL(causal_lms["opt"]), source, out, header=True, **options)
    report = encode_corpus(PromptEOL(causal_lms["opt"]), source, out, **options)
    assert (report.rows, report.bad_rows, report.failures) == (40, 0, ())
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    parts = [pq.read_table(path) for path in sorted(out.glob("part-*"))]
    assert [row for part in parts for row in part.select(["id", "text"]).to_pylist()] == rows
    assert len(parts) > 4  # what is not packed is cut into fragments
    embeddings = np.array([row for part in parts for row in part["embedding"].to_pylist()])
    np.testing.assert_allclose(
        embeddings, PromptEOL(causal_lms["opt"]).encode([row["text"] for row in rows]), atol=1e-5
    )


def test_a_packed_file_that_is_cut_off_is_named_and_the_rest_is_done(model: PromptEOL, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    whole = gzip.compress(b"It rains.\n" * 9000)
    (tmp_path / "in/a.txt.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/b.txt").write_text("It snows.\n", encoding="utf-8")
    report = encode_corpus(model, tmp_path / "in", tmp_path / "out")
    (failure,) = report.failures
    assert "a.txt.gz' cannot be unpacked to its end" in failure
    assert (report.rows, report.parts) == (1, 1)


def test_a_corpus_says_what_it_reads_and_asks_before_anything_is_encoded(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tsv").write_bytes(PASSAGES)
    (tmp_path / "in/b.tsv").write_bytes(PASSAGES)
    corpus = ["corpus", causal_lms["opt"], str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    code, _, message = run(*corpus, "--column", "2", "--keep", "1,2")
    assert code == 0, message
    assert "2 files of TSV, no header, columns 1, 2\n" in message
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["1", "2", "embedding"]
    assert table["2"].to_pylist() == 2 * TEXTS
    (tmp_path / "in/c.tsv").write_text("It rains.\nIt snows.\n", encoding="utf-8")
    code, _, message = run("corpus", causal_lms["opt"], str(tmp_path / "in/c.tsv"), "-o", str(tmp_path / "c"))
    assert (code, "c.tsv' ('It rains.') may be a header" in message) == (2, True)
    assert not (tmp_path / "c").exists()


def test_pairs_without_a_header_are_asked_about(tmp_path: Path) -> None:
    rows = [("a", "b", 1.0), ("c", "d", 2.5)]
    (tmp_path / "p.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"has no header with sentence1, sentence2, score but '1', '2', '3': .* --no-"
    ):
        read_pairs(tmp_path / "p.tsv")
    assert read_pairs(tmp_path / "p.tsv", header=False) == rows
    names = ("sentence1", "sentence2", "score")
    (tmp_path / "p.json").write_text(
        json.dumps([dict(zip(names, row, strict=True)) for row in rows]), encoding="utf-8"
    )
    assert read_pairs(tmp_path / "p.json") == rows
    code, _, message = run("search", "tiny", "--pairs", str(tmp_path / "p.tsv"))
    assert (code, "say --no-header" in message) == (2, True)


def test_a_header_of_candidates_with_other_names_is_no_candidate(tmp_path: Path) -> None:
    for header in ("Sentence\tWord", "definition\tterm"):
        (tmp_path / "c.tsv").write_text(f"{header}\nmeat from a deer\tvenison\n", encoding="utf-8")
        with pytest.raises(ValueError, match="looks like a header: call its columns 'sentence' and 'word'"):
            read_candidates(tmp_path / "c.tsv")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "meat from a deer", "word": "venison"}\n'))
    assert read_candidates(tmp_path / "c.jsonl.gz")[0].demonstration.word == "venison"
