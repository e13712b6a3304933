"""Reading rows: one rule for each format, wherever rows are read; what cannot be read is told, the rest is read."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_prompteol.corpus.formats import read_batches
from st_prompteol.recipes import read_candidates, read_pairs
from st_prompteol.tables import LINE, Bad, Row, look_into, read_rows

# name, content, the cells of the rows (None: a row that is told to be bad), what is told of the bad rows or the file
TABLE: list[tuple[str, bytes, list[Any], str]] = [
    ("a.csv", b"id,text\n1,a\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    ("a.csv", b"\xef\xbb\xbfid,text\r\n1,\"a, \"\"b\"\"\"\r\n", [["1", 'a, "b"']], ""),
    ("a.csv", b'id,text\n1,"two\nlines"\n2,b\n', [["1", "two\nlines"], ["2", "b"]], ""),
    ("a.csv", b'id,text\n1,5\' 3" tall\n2,b"c"\n', [["1", "5' 3\" tall"], ["2", 'b"c"']], ""),
    ("a.csv", b"text\na\n\nb\n", [["a"], [""], ["b"]], ""),
    ("a.csv", b"id,text\n1,a\n\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    ("a.csv", b"id,text\n1,a,,\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    # a sentence that begins with a quotation mark swallowed the rows behind it
    ("a.csv", b'id,text\n1,"Hello\n2,b\n3,c\n4,d\n', [None, ["2", "b"], ["3", "c"], ["4", "d"]], "Line 2 .*end of"),
    ("a.csv", b'id,text\n1,"Hello\n2,b\n3,"c" d\n4,d\n', [None, ["2", "b"], None, ["4", "d"]], "Line 2|Line 4"),
    ("a.csv", b'text\n"a\nb\nc\nd\n', [None, ["b"], ["c"], ["d"]], "Line 2 .*end of data"),
    ("a.csv", b'id,text\n1,"One day" she said\n2,b\n', [None, ["2", "b"]], "Line 2 .*not CSV's"),
    ("a.csv", b"id,text\n1,Hello, world\n2,b\n", [None, ["2", "b"]], "Line 2 .* has 3 columns, but its header 2"),
    ("a.csv", b"id,text\n1\n2,b\n", [None, ["2", "b"]], "Line 2 .* has 1 columns"),
    ("a.csv", b"id,text\n1,\xff\n2,b\n", [None, ["2", "b"]], "Line 2 .* is not UTF-8"),
    ("a.csv", b"id,text\n1," + b"x" * 200_000 + b"\n2," + b'"' + b"y\n" * 100_000 + b'"\n',
     [["1", "x" * 200_000], ["2", "y\n" * 100_000]], ""),
    ("a.csv", b"id,text\r1,a\r2,b\r", [], "end in a carriage return alone"),
    ("a.txt", b"one\rtwo\rthree", [], "end in a carriage return alone"),
    ("a.csv", b"text,text\na,b\n", [], "has 2 columns 'text'"),
    ("a.tsv", b'id\ttext\n1\t"One day" she said\n2\t"a""b\n', [["1", '"One day" she said'], ["2", '"a""b']], ""),
    ("a.tsv", b"id\ttext\n1\ta\tb\n2\tb\n", [None, ["2", "b"]], "Line 2 .* has 3 columns"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": ' + b"1" * 4301 + b'}\nno\n[1]\n{"text": "b"}\n',
     [["a"], None, None, None, ["b"]], "Line 3 .*JSON|Line 4 .*JSON|Line 5 .*JSON object"),
    ("a.jsonl", b"[" * 100_000 + b'\n{"text": "b"}\n', [None, ["b"]], "Line 1 .* not JSON"),
    ("a.jsonl", b'{"text": "\xff"}\n{"text": "b"}\n', [None, ["b"]], "Line 1 .* is not UTF-8"),
    ("a.txt", b"a\n\n\xff\n\tb \n", [["a"], [""], None, ["\tb "]], "Line 3 .* is not UTF-8"),
    ("a.parquet", b"no", [], "is not a Parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected", "told"), TABLE)
def test_every_row_is_read_or_told(tmp_path: Path, name: str, content: bytes, expected: list[Any], told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if not expected:
        with pytest.raises(ValueError, match=told):
            list(read_rows(path))
        return
    rows = list(read_rows(path))
    assert [None if isinstance(row, Bad) else list(row.cells.values()) for row in rows] == expected
    for row in rows:
        if isinstance(row, Bad):
            assert re.search(told, row.problem)
            assert str(path) in row.problem


def test_csv_is_read_as_python_s_own_reader_reads_it(tmp_path: Path) -> None:
    chooser = random.Random(0)
    for trial in range(200):
        width = chooser.randrange(2, 5)
        rows = [["".join(chooser.choices('ab",\n ', k=chooser.randrange(5))) for _ in range(width)] for _ in range(9)]
        names = [f"c{number}" for number in range(width)]
        text = io.StringIO()
        csv.writer(text, lineterminator=chooser.choice(["\n", "\r\n"])).writerows([names, *rows])
        path = tmp_path / f"{trial}.csv"
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
        assert [list(row.cells.values()) for row in read_rows(path)] == rows
        assert look_into(path, header=True).columns == names


def test_rows_that_may_be_swallowed_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"Hello\n2,b\n3,"\n4,d\n', encoding="utf-8")  # valid, and unlikely
    assert len(list(read_rows(tmp_path / "a.csv"))) == 2
    assert "1 rows of" in caplog.text
    assert "the first at line 4, hold line breaks in quotation marks, and every line of them looks like" in caplog.text
    caplog.clear()
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"He said ""no"""\n', encoding="utf-8")  # as csv.writer has it
    assert list(read_rows(tmp_path / "a.tsv")) == [Row("line 2", {"id": "1", "text": '"He said ""no"""'})]
    assert "1 rows of" in caplog.text
    assert "have cells that look quoted, and quotation marks of a .tsv file are text" in caplog.text


def test_one_tsv_is_the_same_wherever_rows_are_read(tmp_path: Path) -> None:
    """Candidates, pairs, training data and corpora: a quotation mark is a quotation mark."""
    from training.data import read_file

    sentence = '"One day" she said'
    (tmp_path / "c.tsv").write_text(f"sentence\tword\n{sentence}\tDay\n", encoding="utf-8")
    (tmp_path / "p.tsv").write_text(f"sentence1\tsentence2\tscore\n{sentence}\t{sentence}\t1\n", encoding="utf-8")
    assert read_candidates(tmp_path / "c.tsv")[0].demonstration.sentence == sentence
    assert read_pairs(tmp_path / "p.tsv") == [(sentence, sentence, 1.0)]
    assert next(read_file(tmp_path / "c.tsv")).cells["sentence"] == sentence
    with open(tmp_path / "c.tsv", "rb") as file:
        assert next(read_batches(file, "c.tsv", 10, column="sentence")).sentences == [sentence]


def test_parquet_cells_that_are_not_utf_8_are_none(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", None, "ä".encode()]).cast(pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 4, texts.buffers())}), tmp_path / "a.parquet")
    assert [row.cells["text"] for row in read_rows(tmp_path / "a.parquet")] == ["a", None, None, "ä"]


def test_columns_that_are_there_twice_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "text", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet", columns=["id"])) == [Row("row 0", {"id": "c"})]
    with pytest.raises(ValueError, match="has 2 columns 'text', of which none is meant: rename them"):
        list(read_rows(tmp_path / "a.parquet", columns=["text"]))
    assert look_into(tmp_path / "a.parquet").columns == ["text", "text", "id"]


def test_lines_have_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(json.dumps({"text": 1}), encoding="utf-8")
    assert look_into(tmp_path / "a.txt").columns == [LINE]
