"""Training data in every format, every row checked; sentences cut as the reference cuts them."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

pytest.importorskip("datasets")

from datasets import Dataset

from training.arguments import DataArguments
from training.data import cut_sentences, load_triplets, sts_benchmark

from .helpers.models import quick
from .helpers.tokenizers import build_tokenizer

ROWS = [
    {"anchor": 'He said "no", twice.', "positive": "NA", "negative": "12"},
    {"anchor": "It rains,\nand rains.", "positive": "Rain falls.", "negative": "None"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    backend: Tokenizer = build_tokenizer(tmp_path_factory.mktemp("tokenizer")).backend_tokenizer
    return backend


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        getattr(Dataset.from_list(rows), f"to_{path.suffix[1:]}")(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_rows_come_through_to_the_character(
    tmp_path: Path, tokenizer: Tokenizer, suffix: str, streaming: bool
) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    args = DataArguments(train_file=path, max_sentence_tokens=100, streaming=streaming)
    data = load_triplets(args, tokenizer)
    assert list(data.column_names) == ["anchor", "positive", "negative"]
    assert sorted(data, key=lambda row: row["anchor"]) == sorted(ROWS, key=lambda row: row["anchor"])


def test_simcse_s_columns_and_any_others_are_mapped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"sent0": "a", "sent1": "b", "hard_neg": "c"}
    path = write(tmp_path / "simcse.csv", [row])
    assert load_triplets(DataArguments(train_file=path), tokenizer)[0] == dict(
        zip(("anchor", "positive", "negative"), "abc", strict=True)
    )
    data = load_triplets(DataArguments(train_file=path, columns=["hard_neg", "sent0"]), tokenizer)
    assert data[0] == {"anchor": "c", "positive": "a"}


def test_missing_columns_are_told_with_those_found(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", [{"query": "a", "answer": "b"}])
    with pytest.raises(ValueError, match="has the columns 'query', 'answer', but not anchor positive negative: name"):
        load_triplets(DataArguments(train_file=path), tokenizer)
    with pytest.raises(ValueError, match="but not query response"):
        load_triplets(DataArguments(train_file=path, columns=["query", "response"]), tokenizer)


BAD = [
    {"anchor": "one", "positive": "two", "negative": "three"},
    {"anchor": "one", "positive": " ", "negative": "three"},
    {"anchor": "four", "positive": "five", "negative": None},
    {"anchor": 6, "positive": "five", "negative": "three"},
    {"anchor": "seven", "positive": "eight", "negative": "nine"},
]


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_bad_rows_are_skipped_and_counted(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    path = write(tmp_path / "rows.jsonl", BAD)
    with caplog.at_level(logging.WARNING, logger="training"):
        data = list(load_triplets(DataArguments(train_file=path, streaming=streaming), tokenizer))
    assert {row["anchor"] for row in data} == {"one", "seven"}
    assert len(data) == 2
    assert "Skipped 3 rows" in caplog.text
    assert "positive is empty (1), negative is not text (1), anchor is not text (1)" in caplog.text
    assert "the first: line 2, line 3, line 4" in caplog.text


def test_strict_stops_at_the_first_bad_row_with_its_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('anchor,positive\n"two\nlines",b\nonly\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 4 of '.*rows\.csv' has 1 columns, but its header 2.* --strict"):
        load_triplets(DataArguments(train_file=str(path), strict=True), tokenizer)
    path.write_text('anchor,positive\n"two\nlines",b\nonly,\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv', line 4: positive is empty; fix the row, or drop --strict"):
        load_triplets(DataArguments(train_file=str(path), strict=True), tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "has no row"),
        ("header.csv", b"anchor,positive\n", "has no row"),
        ("bad.jsonl", b'{"anchor": "a"\n', r"has no row to train on \(Line 1 of .* is not JSON"),
        ("bad.parquet", b"no", "is not a Parquet file"),
        ("rows.xml", b"<a/>", r"train_file ends in \.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_triplets(DataArguments(train_file=str(tmp_path / name)), tokenizer)


def test_a_missing_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*gone\.csv' is neither a file nor a folder"):
        load_triplets(DataArguments(train_file=str(tmp_path / "gone.csv")), tokenizer)
    with pytest.raises(FileNotFoundError, match="must be a folder in SentEval's layout"):
        sts_benchmark("dev", str(tmp_path), 64)


@pytest.mark.shared
@pytest.mark.parametrize("name", quick(["opt", "llama2", "llama3"], "opt", "llama2"))
def test_sentences_are_cut_to_the_reference_s_tokens(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    sentences = sts_benchmark("dev", str(shared / "senteval"), 64).sentences1[-400:]
    for limit in (4, 16):
        expected = [tokenizer.decode(tokenizer.encode(s, add_special_tokens=False)[:limit]) for s in sentences]
        assert cut_sentences(sentences, tokenizer.backend_tokenizer, limit) == expected


LANGUAGES = [
    "北京是中华人民共和国的首都，也是全国的政治、文化、国际交往和科技创新中心，历史悠久。今天天气很好，我们去公园散步吧。",
    "東京は日本の首都であり、世界最大級の都市圏を形成している。昨日は友達と一緒に映画を見ました。",
    "भारत दक्षिण एशिया में स्थित एक देश है, जिसकी राजधानी नई दिल्ली है।",
    "😀🎉👩‍👩‍👧🚀🔥 party time 🥳🍕🍔🌍 and 🐶🐱🐭🐹🐰🦊🐻🐼 more 🎂🎈🎁 than 🇫🇷🇩🇪🇯🇵",
    "Москва является столицей Российской Федерации, крупнейшим по численности населения городом страны.",
    "L'été dernier, nous sommes allés à la plage où les élèves préférés étaient déjà très fatigués.",
]


@pytest.mark.shared
@pytest.mark.parametrize("name", quick(["opt", "llama2", "llama3"], "opt", "llama2"))
def test_a_cut_ends_at_a_whole_character(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name).backend_tokenizer
    broken = 0
    for sentence in LANGUAGES:
        ids = tokenizer.encode(sentence, add_special_tokens=False).ids
        for limit in range(5, 40):  # from 5 on, which a character and a space in front take at most
            (cut,) = cut_sentences([sentence], tokenizer, limit)
            assert cut
            assert sentence.startswith(cut)
            assert len(tokenizer.encode(cut, add_special_tokens=False).ids) <= max(limit, 5)
            reference = tokenizer.decode(ids[:limit], skip_special_tokens=False)
            if "\ufffd" not in reference:
                assert cut == (sentence if len(ids) <= limit else reference)
            else:
                broken += 1
                whole = reference.rstrip("\ufffd")  # a token may hold a space, or the like, and a part of a character
                assert len(cut) >= len(whole) - 2
    assert broken > 10
    own = "a \ufffd b\ufffd" * 30  # a character like any other
    for limit in range(5, 40):
        (cut,) = cut_sentences([own], tokenizer, limit)
        assert own.startswith(cut)
        assert len(cut) > limit / 4
    assert cut_sentences([own], tokenizer, 10_000) == [own]


def test_a_file_without_a_header_and_packed_ones_are_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "rows.tsv").write_text("It rains.\tRain falls.\nA man sings.\tSinging.\n", encoding="utf-8")
    expected = [{"anchor": "It rains.", "positive": "Rain falls."}, {"anchor": "A man sings.", "positive": "Singing."}]
    with pytest.raises(ValueError, match=r"has the columns .It rains\..*say --header false"):
        load_triplets(DataArguments(train_file=str(tmp_path / "rows.tsv")), tokenizer)
    args = DataArguments(train_file=str(tmp_path / "rows.tsv"), header=False)
    assert list(load_triplets(args, tokenizer)) == expected
    args = DataArguments(train_file=str(tmp_path / "rows.tsv"), header=False, columns=["2", "1"])
    assert next(iter(load_triplets(args, tokenizer))) == {"anchor": "Rain falls.", "positive": "It rains."}
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(expected).encode()))
    assert list(load_triplets(DataArguments(train_file=str(tmp_path / "rows.json.gz")), tokenizer)) == expected


@pytest.mark.shared
def test_sts_b_is_read_whole(shared: Path) -> None:
    dev, test = (sts_benchmark(split, str(shared / "senteval"), 64) for split in ("dev", "test"))
    assert [len(column) for column in (dev.sentences1, dev.sentences2, dev.scores, test.scores)] == [1500] * 3 + [1379]
    assert (dev.sentences1[0], dev.scores[0]) == ("A man with a hard hat is dancing.", 5.0)
