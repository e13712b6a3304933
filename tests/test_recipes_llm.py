"""Words from an LLM: over real HTTP against an endpoint that misbehaves, and from a causal LM on this machine."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from st_prompteol import Demonstration, failures
from st_prompteol.failures import retry_after
from st_prompteol.recipes import Endpoint, LocalLM, build_demonstrations, read_candidates
from st_prompteol.recipes import endpoint as endpoint_module
from st_prompteol.recipes.llm import PROMPT, as_word

from .helpers.chat import ChatServer, fails, says
from .helpers.models import build_causal_lm
from .helpers.senteval import build_senteval

SENTENCES = [f"Sentence number {name}." for name in ("one", "two", "three", "four", "five", "six")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "RETRY_WAITS", (0.01, 0.01))
    monkeypatch.setattr(endpoint_module, "_MOST_ANSWERS", 3)


def word_of(sentence: str) -> str:
    return sentence.split()[-1].strip(".").title() + "-word"


def endpoint(server: ChatServer | str, **options: Any) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    return Endpoint("some-model", base_url=url, **{"concurrency": 3, **options})


def answers_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_become_candidates_with_the_question_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")

    def slow(sentence: str, before: int) -> Any:
        time.sleep(0.05)
        return says(f'"{word_of(sentence).lower()}."')

    with ChatServer(slow) as server:
        out = tmp_path / "c.jsonl"
        found = build_demonstrations(out, llm=endpoint(server, key_variable="MY_KEY"), sentences=SENTENCES)
    assert {one.demonstration for one in found} == {Demonstration(one, word_of(one)) for one in SENTENCES}
    assert {one.source for one in found} == {"some-model"}
    assert read_candidates(out) == found
    assert set(server.keys) == {"Bearer sesame"}
    assert 1 < server.most_at_once <= 3
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert {request["model"] for request in server.requests} == {"some-model"}
    rows = answers_of(tmp_path / "c.answers.jsonl")
    assert {row["prompt"] for row in rows} == {PROMPT}
    assert {(row["sentence"], row["word"]) for row in rows} == {(one, word_of(one)) for one in SENTENCES}


def test_failures_and_nonsense_are_tried_again_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    first = {
        SENTENCES[0]: fails(503),
        SENTENCES[1]: fails(429, retry_after="0.2"),
        SENTENCES[2]: says("Two words, that is what I say"),
        SENTENCES[3]: (200, {"content-type": "text/html"}, b"<html>maintenance</html>"),
        SENTENCES[4]: says(None),
    }

    def reply(sentence: str, before: int) -> Any:
        return first[sentence] if before == 0 and sentence in first else says(word_of(sentence))

    with ChatServer(reply) as server:
        start = time.perf_counter()
        found = build_demonstrations(tmp_path / "c.jsonl", llm=endpoint(server), sentences=SENTENCES)
        assert time.perf_counter() - start > 0.2  # what the server asked for
        assert len(found) == 6
        assert len(server.requests) == 11
        (corrected,) = (one for one in server.requests if len(one["messages"]) > 1)
        assert corrected["messages"][1]["content"] == "Two words, that is what I say"
        assert len(answers_of(tmp_path / "c.answers.jsonl")) == 7
        again = build_demonstrations(tmp_path / "c.jsonl", llm=endpoint(server), sentences=SENTENCES)
        assert again == found
        assert len(server.requests) == 11


def test_what_a_server_asks_to_wait_is_believed_up_to_a_minute() -> None:
    asked = {"3": 3.0, "0.5": 0.5, "7200": 60.0, "-1": 0.0, "nan": 0.0, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0, "": 0.0}
    with ChatServer(lambda wait, before: fails(429, retry_after=wait) if wait else fails(503)) as server:
        client = InferenceClient(base_url=server.url, api_key="none")
        for value, seconds in asked.items():
            with pytest.raises(HfHubHTTPError) as caught:
                client.chat_completion([{"role": "user", "content": PROMPT.format(sentence=value)}], model="m")
            assert retry_after(caught.value) == seconds
    assert retry_after(TimeoutError()) == 0.0


def test_it_goes_on_with_what_is_there_and_counts_what_is_missing(tmp_path: Path) -> None:
    def reply(sentence: str, before: int) -> Any:
        if sentence == SENTENCES[0]:
            return fails(500)
        return says("no idea, sorry") if sentence == SENTENCES[1] else says(word_of(sentence))

    lines: list[str] = []
    with ChatServer(reply) as server:
        llm = endpoint(server, concurrency=1)
        found = build_demonstrations(tmp_path / "c.jsonl", llm=llm, sentences=SENTENCES, show=lines.append)
        assert len(found) == 4
        assert "4 from some-model; 2 of 6 sentences are missing a word" in lines[0]
        assert "the endpoint answered 500" in lines[0]
        asked = [request["sentence"] for request in server.requests]
        assert (asked.count(SENTENCES[0]), asked.count(SENTENCES[1])) == (3, 3)
        # the answers that were paid for are not paid again, only what had none is asked
        build_demonstrations(tmp_path / "c.jsonl", llm=llm, sentences=SENTENCES)
        assert [request["sentence"] for request in server.requests[len(asked) :]] == [SENTENCES[0]] * 3


def test_a_stalling_endpoint_is_given_up_in_time(tmp_path: Path) -> None:
    def reply(sentence: str, before: int) -> Any:
        if sentence == SENTENCES[0]:
            time.sleep(1.5)
        return says(word_of(sentence))

    lines: list[str] = []
    with ChatServer(reply) as server:
        llm = endpoint(server, timeout=0.2)
        start = time.perf_counter()
        found = build_demonstrations(tmp_path / "c.jsonl", llm=llm, sentences=SENTENCES, show=lines.append)
        assert time.perf_counter() - start < 1.4
    assert len(found) == 5
    assert "1 of 6 sentences are missing a word, of the last one the endpoint could not be reached in time" in lines[0]


def test_an_endpoint_that_is_down_does_not_take_the_dictionary_with_it(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        (tmp_path / "d.tsv").write_text("meat from a deer\tvenison\n", encoding="utf-8")
        lines: list[str] = []
        start = time.perf_counter()
        found = build_demonstrations(
            tmp_path / "c.jsonl",
            llm=endpoint(url),
            sentences=[f"{number}." for number in range(200)],
            dictionary=tmp_path / "d.tsv",
            dictionary_count=1,
            show=lines.append,
        )
        assert time.perf_counter() - start < 10
        assert [one.demonstration.word for one in found] == ["Venison"]
        assert "100 of 100 sentences are missing a word" in lines[1]
        with pytest.raises(ValueError, match="no candidate to write"):
            build_demonstrations(tmp_path / "n.jsonl", llm=endpoint(url), sentences=SENTENCES)
    assert not (tmp_path / "n.jsonl").exists()


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [(401, PermissionError, "refuses the key"), (404, FileNotFoundError, "knows no model"), (400, ValueError, "400")],
)
def test_what_no_patience_mends_is_said_at_once(tmp_path: Path, status: int, kind: Any, message: str) -> None:
    with ChatServer(lambda sentence, before: fails(status)) as server:
        with pytest.raises(kind, match=message):
            build_demonstrations(tmp_path / "c.jsonl", llm=endpoint(server), sentences=SENTENCES * 20)
        assert len(server.requests) <= 6


def test_keys_that_are_not_set_are_missed_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with ChatServer(lambda sentence, before: says(word_of(sentence))) as server:
        with pytest.raises(ValueError, match="MY_KEY, which is to hold the key, is not set"):
            build_demonstrations(
                tmp_path / "c.jsonl", llm=endpoint(server, key_variable="MY_KEY"), sentences=SENTENCES
            )
        assert server.requests == []
        build_demonstrations(tmp_path / "c.jsonl", llm=endpoint(server), sentences=SENTENCES)
        assert not any("hf_secret" in str(key) for key in server.keys)  # not that server's business
    monkeypatch.setattr("st_prompteol.recipes.endpoint.get_token", lambda: None)
    with pytest.raises(ValueError, match="providers need a token"):
        build_demonstrations(tmp_path / "d.jsonl", llm=Endpoint("user/model"), sentences=SENTENCES)


def test_answers_that_are_one_word() -> None:
    sentence = "A jockey riding a horse."
    assert as_word(" equestrian.\n", sentence) == "Equestrian"
    assert as_word("“Horseback-riding”", sentence) == "Horseback-riding"
    assert as_word("**Reiten**", sentence) == "Reiten"
    assert as_word("équitation", sentence) == "Équitation"
    for answer in ("", "two words", "a1", "x", "A jockey riding a horse.", "-", "horse-", '"', "w" * 40, "a\nb"):
        assert as_word(answer, sentence) is None
    assert as_word("jockey", "Jockey!") is None  # an echo
    assert as_word("Jockey", sentence) == "Jockey"


def test_stopped_in_the_middle_nothing_is_asked_twice(tmp_path: Path) -> None:
    out, answers = tmp_path / "c.jsonl", tmp_path / "c.answers.jsonl"
    sentences = [f"Sentence number {chr(97 + number)}." for number in range(26)]
    kept: list[int] = []
    refuses = [True]

    def reply(sentence: str, before: int) -> Any:
        kept.append(answers.read_bytes().count(b"\n") if answers.exists() else 0)
        return fails(401) if refuses[0] and len(kept) > 8 else says(word_of(sentence))

    with ChatServer(reply) as server:
        with pytest.raises(PermissionError):
            build_demonstrations(out, llm=endpoint(server, concurrency=1), sentences=sentences)
        assert kept[-1] >= 5  # each is written when it comes
        assert not out.exists()
        with open(answers, "ab") as file:
            file.write('{"sentence": "Bär"}'.encode()[:16])  # as a crash cuts a line, within a character
        before = {row["sentence"] for row in answers_of_whole_lines(answers)}
        requests, refuses[0] = len(server.requests), False
        found = build_demonstrations(out, llm=endpoint(server), sentences=sentences)
        after = {request["sentence"] for request in server.requests[requests:]}
    assert 5 <= len(before) < 26
    assert after == set(sentences) - before
    assert {one.demonstration for one in found} == {Demonstration(one, word_of(one)) for one in sentences}


def answers_of_whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_a_causal_lm_on_this_machine_completes(tmp_path: Path) -> None:
    path = build_causal_lm(tmp_path / "lm")
    llm = LocalLM(path, device="cpu", batch_size=2)
    sentences = ['He said "no".', "A jockey riding a horse.", "The cat sat on the mat."]
    with pytest.raises(ValueError, match="no candidate to write"):  # random weights babble
        build_demonstrations(tmp_path / "c.jsonl", llm=llm, sentences=sentences)
    rows = {row["sentence"]: row["answer"] for row in answers_of(tmp_path / "c.answers.jsonl")}
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    for sentence in sentences:
        text = llm.prompt.replace("{sentence}", sentence.replace('"', "'"))
        assert text.endswith(f'.This sentence : "{sentence.replace(chr(34), chr(39))}" means in one word:"')
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        length = ids.shape[1]
        for _ in range(16):  # greedy, step by step
            with torch.no_grad():
                token = model(ids).logits[0, -1].argmax()
            if token == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token[None, None]], dim=1)
        assert rows[sentence] == tokenizer.decode(ids[0, length:], skip_special_tokens=True).split('"')[0]


@pytest.mark.shared
def test_a_real_causal_lm_is_asked_and_its_stories_are_no_words(stories: str, tmp_path: Path) -> None:
    lines: list[str] = []
    sentences = ["Lily has a big red ball.", "Tom is very sad.", "The dog ran to the park."]
    (tmp_path / "d.tsv").write_text("meat from a deer\tvenison\n", encoding="utf-8")
    llm = LocalLM(stories, device="cpu")
    options = {"dictionary": tmp_path / "d.tsv", "dictionary_count": 1, "sentences": sentences}
    found = build_demonstrations(tmp_path / "c.tsv", llm=llm, show=lines.append, **options)
    rows = {row["sentence"]: row for row in answers_of(tmp_path / "c.answers.jsonl")}
    assert set(rows) == set(sentences)
    assert "said Tommy" in rows["Tom is very sad."]["answer"]  # a model of 260k parameters goes on with its story
    valid = [row for row in rows.values() if row["word"] is not None]
    assert len(found) == 1 + len(valid)
    assert f"{3 - len(valid)} of 3 sentences are missing a word" in lines[1]


def test_both_sources_mix_as_in_the_paper(tmp_path: Path) -> None:
    data = build_senteval(tmp_path / "senteval")
    lines = "".join(
        f"the thing of number {chr(97 + n % 26)} {n}\tthing{chr(97 + n // 26)}{chr(97 + n % 26)}\n" for n in range(250)
    )
    (tmp_path / "d.tsv").write_text(lines, encoding="utf-8")
    with ChatServer(lambda sentence, before: says("Word")) as server:
        found = build_demonstrations(
            tmp_path / "c.jsonl", dictionary=tmp_path / "d.tsv", llm=endpoint(server), data_dir=data
        )
        asked = {request["sentence"] for request in server.requests}
    train = (data / "STS/STSBenchmark/sts-train.csv").read_text(encoding="utf-8")
    assert all(sentence in train for sentence in asked)
    distinct = {cell for line in train.splitlines() for cell in line.split("\t")[5:7]}
    assert len(asked) == min(100, len(distinct))
    assert [one.source for one in found] == ["some-model"] * len(asked) + ["d"] * 200


def test_nothing_to_build_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to build from"):
        build_demonstrations(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"end its name in \.jsonl or \.tsv"):
        build_demonstrations(tmp_path / "c.txt", dictionary=tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_demonstrations(tmp_path / "missing/c.tsv", dictionary=tmp_path)
