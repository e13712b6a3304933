"""Reading rows: one rule for each format, wherever rows are read; what cannot be read is told, the rest is read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_prompteol.corpus.formats import read_batches
from st_prompteol.files import LINE, Bad, Row, look_into, read_rows
from st_prompteol.recipes import read_candidates, read_pairs

# name, content, the cells of the rows (None: a row that is told to be bad), what is told of the bad rows or the file
TABLE: list[tuple[str, bytes, list[Any], str]] = [
    ("a.csv", b"id,text\n1,a\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    ("a.csv", b"\xef\xbb\xbfid,text\r\n1,\"a, \"\"b\"\"\"\r\n", [["1", 'a, "b"']], ""),
    ("a.csv", b'id,text\n1,"two\nlines"\n2,b\n', [["1", "two\nlines"], ["2", "b"]], ""),
    ("a.csv", b'id,text\n1,5\' 3" tall\n2,b"c"\n', [["1", "5' 3\" tall"], ["2", 'b"c"']], ""),
    ("a.csv", b"text\na\n\nb\n", [["a"], [""], ["b"]], ""),
    ("a.csv", b"id,text\n1,a\n\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    ("a.csv", b"id,text\n1,a,,\n2,b\n", [["1", "a"], ["2", "b"]], ""),
    # a quotation that takes in other lines: nobody can say which of them begin a row
    ("a.csv", b'id,text\n1,"Hello\n2,b\n3,c\n4,d\n', [], r"Line 2 .*end of data at line 5\)"),
    ("a.csv", b'id,text\n1,"Hello\n2,b\n3,"c" d\n4,d\n', [], r"Line 2 .* expected .* at line 4\)"),
    ("a.csv", b'text\n"a\nb\nc\nd\n', [], "Line 2 .*end of data"),
    ("a.csv", b'text\na\n"b', [["a"], None], "Line 3 .*end of data"),
    ("a.csv", b'id,text\r\n1,"two\r\nlines"\r\n2,b\r\n', [["1", "two\r\nlines"], ["2", "b"]], ""),
    ("a.csv", b"id,text\n1,a\rb\n2,b\n", [None, ["2", "b"]], "Line 2 .*new-line character"),
    ("a.csv", b"id,text\n1,a\x00b\n2,c\n", [["1", "a\0b"], ["2", "c"]], ""),
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


def test_cells_of_a_tsv_that_look_quoted_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"He said ""no"""\n', encoding="utf-8")  # as csv.writer has it
    assert list(read_rows(tmp_path / "a.tsv")) == [Row("line 2", {"id": "1", "text": '"He said ""no"""'})]
    assert "Line 2 of" in caplog.text
    assert "has cells that look quoted, and quotation marks of TSV are text" in caplog.text


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
    (tmp_path / "a.txt").write_text("{text}: [1]\n", encoding="utf-8")
    assert look_into(tmp_path / "a.txt").columns == [LINE]


# content, the columns asked for, the answer: is there a header? None: it is asked for
HEADERS: list[tuple[str, list[str], bool | None]] = [
    ("0\tIt rains.\n1\tIt snows.\n", [], False),
    ("0\tIt rains.\n1\tIt snows.\n", ["2"], False),
    ("id\ttext\n0\tIt rains.\n", ["text"], True),
    ("id\ttext\n0\tIt rains.\n", [], True),
    ("\ttext\n0\tIt rains.\n", ["text"], True),  # a data frame's index
    ("0\ttext\n1\tIt snows.\n", ["text"], None),  # data in one column, a header in the other
    ("0\tscore\n1\t5\n2\t3\n", [], None),
    ("1\t2\n3\t4\n", [], False),
    ("1\n2\n", [], False),
    ("1\n", [], None),
    ("A man sings.\nIt rains.\n", [], None),
    ("A man sings.\n", [], None),
    ("text\nIt rains.\n", [], True),
    ("Sentence\nIt rains.\n", [], True),
    ("utterances\nIt rains.\n", [], None),
    ("utterances\nIt rains.\n", ["utterances"], True),
    ("d1\tIt rains.\nd2\tIt snows.\n", ["2"], None),
    ("1\tIt rains.\n2\tIt snows.\n", ["2"], False),
    ("a\t2\nb\tIt snows.\n", ["2"], True),  # a column that is called like a number
    ("country\t2019\t2020\nA\t1.5\t2\n", ["2020"], None),
    ("id\tscore\n", ["score"], True),
    ("", [], True),
    ("\ufefftext\r\nIt rains.\r\n", [], True),
]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_the_first_row_is_never_lost_unasked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for text, columns, expected in HEADERS:
        content = text if suffix == ".tsv" else text.replace("\t", ",")
        path.write_text(content, encoding="utf-8", newline="")
        lines = content.splitlines()
        if expected is None:
            with pytest.raises(ValueError, match="may be a header or the first row of data: say --header or --no-"):
                look_into(path, columns=columns)
        else:
            assert look_into(path, columns=columns).header is expected, text
            assert len(list(read_rows(path, columns=columns or None))) == max(0, len(lines) - expected), text
        if text:
            assert len(list(read_rows(path, header=False))) == len(lines)
            assert len(list(read_rows(path, header=True))) == len(lines) - 1


def test_columns_without_a_header_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("7\tIt rains.\n8\tIt snows.\n", encoding="utf-8")
    assert next(read_rows(tmp_path / "a.tsv")).cells == {"1": "7", "2": "It rains."}
    found = look_into(tmp_path / "a.tsv")
    assert found.describe(2) == f"{tmp_path / 'a.tsv'}: 2 rows, no header, columns 1, 2"
    found = look_into(tmp_path / "a.tsv", header=["id", "text"])
    assert found.describe(1234) == f"{tmp_path / 'a.tsv'}: 1,234 rows, no header, columns id, text"


ROWS = [{"id": "1", "text": "It rains."}, {"id": "2", "text": 'é "😀"'}]
CSV = 'id,text\n1,It rains.\n2,"é ""😀"""\n'.encode()
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=2).encode()


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same in every process that collects tests


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", zipped(CSV)),
        ("a.csv", zipped(CSV)),  # recognized by its content
        ("a.csv.gz", CSV),  # unpacked on the way, and still called so
        ("A.CSV.GZ", zipped(CSV)),
        ("a.csv.gz", zipped(CSV[:20]) + zipped(CSV[20:])),
        ("a.tsv.zst", zstd(b"id\ttext\n1\tIt rains.\n2\t" + 'é "😀"\n'.encode())),
        ("a.csv.zstd", zstd(CSV[:20]) + zstd(CSV[20:])),
        ("a.jsonl.gz", zipped(LINES)),
        ("a.jsonl.zst", zstd(LINES)),
        ("a.txt", LINES),
        ("a.csv", LINES),
        ("a", LINES),
        ("a.json", LINES),
        ("a.json", ARRAY),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("a.jsonl", ARRAY),
        ("a.txt", ARRAY),
        ("a.json.gz", zipped(ARRAY)),
    ],
)
def test_the_content_says_how_a_file_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row.cells for row in read_rows(tmp_path / name)] == ROWS
    assert look_into(tmp_path / name).columns == ["id", "text"]


def test_parquet_is_read_under_any_name(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.csv")
    assert [row.cells for row in read_rows(tmp_path / "a.csv")] == ROWS
    assert look_into(tmp_path / "a.csv").describe(2).endswith("a.csv: 2 rows of Parquet, columns id, text")
    (tmp_path / "a.parquet.gz").write_bytes(zipped((tmp_path / "a.csv").read_bytes()))
    with pytest.raises(ValueError, match="is a Parquet file inside gzip: unpack it"):
        list(read_rows(tmp_path / "a.parquet.gz"))


def test_an_array_of_strings_is_sentences_and_of_anything_else_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '["It rains.", "two\\nlines", 3, {"text": "x", "of": {"n": [1]}}]', encoding="utf-8"
    )
    *sentences, number, nested = read_rows(tmp_path / "a.json")
    assert [row.cells for row in sentences] == [{LINE: "It rains."}, {LINE: "two\nlines"}]
    assert "Row 2 of" in number.problem
    assert nested == Row("row 3", {"text": "x", "of": {"n": [1]}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "It rains.\n".encode("utf-16"), "is not UTF-8 but UTF-16 or binary data"),
        ("a.csv", "id,text\n".encode("utf-16-le"), "is not UTF-8 but UTF-16 or binary data"),
        ("a.tsv.gz", zipped("id\ttext\n".encode("utf-16")), "is not UTF-8 but UTF-16 or binary data"),
        ("a.csv", b"PK\x03\x04" + bytes(40), "is a ZIP archive, as Excel writes them: export it as .csv"),
        ("a.txt", b"\xfd7zXZ\x00" + bytes(40), "is packed by xz: unpack it"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.txt.gz", zipped(zipped(b"It rains.")), "is packed twice: unpack it"),
        ("a.txt.gz", zipped(b"It rains.\n" * 9000)[:-9], "cannot be unpacked to its end .* copy it again"),
        ("a.csv.zst", zstd(b"text\n" + b"It rains.\n" * 9000)[:-9], "cannot be unpacked to its end"),
        ("a.csv.gz", zipped(CSV)[:15] + b"xxxx" + zipped(CSV)[19:], "cannot be unpacked to its end"),
        ("a.json", b'{"rows":\n[1]}', "is neither a JSON array of objects or strings nor one JSON object a line"),
        ("a.json", b'[{"text": "It rains."}', "is not JSON that can be read"),
        ("a.csv", b"id;text\n1;a\n2;b\n", "seem to be separated by semicolons, but those of CSV are by commas"),
        ("a.csv", b"id\ttext\n1\ta\n", "seem to be separated by tabs"),
    ],
)
def test_files_that_are_not_read_are_named_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(told.value)
    assert "\n" not in str(told.value)


def test_zstd_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"It rains.\n"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"packed by zstd, needs .*pip install 'st-prompteol\[parquet\]"):
        list(read_rows(tmp_path / "a.txt.zst"))


def test_carriage_returns_inside_a_line_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "a.tsv"):
        (tmp_path / name).write_bytes(b"text\none\rtwo\nthree\n")
        rows = list(read_rows(tmp_path / name))[-2:]
        assert "Line 2 of" in rows[0].problem
        assert "carriage return alone" in rows[0].problem
        assert list(rows[1].cells.values()) == ["three"]


def test_a_long_cell_is_read_while_other_threads_read(tmp_path: Path) -> None:
    """The limit of `csv` is the process'; whoever restored it broke whoever was in the middle of a file."""
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f'text\na\n"{long}"\n' * 3, encoding="utf-8")
    first = read_rows(tmp_path / "a.csv")
    assert next(first).cells == {"text": "a"}
    assert len(list(read_rows(tmp_path / "a.csv"))) == 8  # begins later and ends before
    assert next(first).cells == {"text": long}

    def read(_: int) -> int:
        return sum(len(row.cells["text"]) for row in read_rows(tmp_path / "a.csv", header=True))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(40))) == {3 * (1 + len(long)) + 2 * len("text")}


def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tsv")
    content = b"sentence1\tsentence2\tscore\na\tb\t1\n"
    with ThreadPoolExecutor(1) as thread:
        thread.submit((tmp_path / "a.tsv").write_bytes, content)
        assert read_pairs(tmp_path / "a.tsv") == [("a", "b", 1.0)]


@pytest.mark.parametrize("count", [2, 9000])  # the longer line is longer than what the kind is detected from
def test_an_array_on_a_single_line_is_read_under_the_name_of_json_lines(tmp_path: Path, count: int) -> None:
    path, rows = tmp_path / "rows.jsonl", [{"text": f"sentence {number}"} for number in range(count)]
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    assert [row.cells for row in read_rows(path)] == rows
