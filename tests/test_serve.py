"""`st-prompteol serve`: OpenAI's own client on a real server process, and the application for what a process hides."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx2
import numpy as np
import openai
import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from sentence_transformers.sentence_transformer.modules import Normalize
from typer.testing import CliRunner

from st_prompteol import TINY, PromptEOL
from st_prompteol.cli import app as command
from st_prompteol.server.app import make_app
from st_prompteol.server.batching import Batcher, Embedded

from . import ROOT
from .helpers.processes import Forked, command_line, free_port
from .helpers.sentences import SENTENCES

NAME = str(TINY)
JSON = {"Content-Type": "application/json"}


class Server:
    """A server process of its own on a free port of loopback; `close` is a scheduler's SIGTERM."""

    def __init__(self, *options: str, port: int = 0, **environment: str) -> None:
        arguments = ["serve", str(TINY), "--port", str(port), "--device", "cpu", *options]
        self.process = Forked(command_line, *arguments, **environment)
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.output:
            self.lines.append(line)
            if found := re.search(r" is served at (http://\S+)/v1, with", line):
                self.url = found[1]
                break
        self.rest = threading.Thread(target=lambda: self.lines.extend(self.process.output), daemon=True)
        self.rest.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def close(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)  # none, if it has ended
        code = self.process.wait(timeout=120)
        self.rest.join(timeout=10)
        self.process.output.close()
        return code


@contextlib.contextmanager
def serving(*options: str, **environment: str) -> Iterator[Server]:
    server = Server(*options, **environment)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--served-model-name", "org/tiny") as running:
        yield running
        assert running.close() == 0


@pytest.fixture(scope="module")
def model() -> PromptEOL:
    return PromptEOL(TINY, device="cpu")


def client_of(model: PromptEOL, **options: Any) -> Any:
    settings = {"batch_size": 32, "normalize": False, "max_inputs": 2048, "api_key": None, **options}
    return TestClient(make_app(model, "m", **settings), raise_server_exceptions=False)


def post(client: Any, **body: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "m", **body})


def rows_of(response: Any) -> np.ndarray:
    return np.array([row["embedding"] for row in response.json()["data"]], dtype=np.float32)


def assert_same(found: Any, expected: np.ndarray) -> None:
    """Up to rounding, which depends on the sentences that are computed together."""
    difference = np.abs(np.asarray(found, dtype=np.float64) - expected).max()
    assert difference <= 1e-6 * np.abs(expected).max()


def count_tokens(model: PromptEOL, sentences: list[str]) -> int:
    """Of what the model reads: the tokens of each sentence in its template, cut at max_seq_length."""
    tokenizer = model.tokenizer
    return sum(len(tokenizer(sentence, truncation=True)["input_ids"]) for sentence in sentences)


# ---- OpenAI's client, on a process


@pytest.mark.slow
def test_openais_client_gets_what_encode_returns(server: Server, model: PromptEOL) -> None:
    expected = model.encode(SENTENCES)
    client = server.client()
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"user": "someone"}):
        answer = client.embeddings.create(model="org/tiny", input=SENTENCES, **options)
        assert (answer.object, answer.model) == ("list", "org/tiny")
        assert [row.index for row in answer.data] == list(range(len(SENTENCES)))
        vectors = [
            np.frombuffer(base64.b64decode(row.embedding), "<f4") if isinstance(row.embedding, str) else row.embedding
            for row in answer.data
        ]
        assert_same(np.array(vectors), expected)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == count_tokens(model, SENTENCES)
    one = client.embeddings.create(model="org/tiny", input=SENTENCES[0]).data
    assert_same(one[0].embedding, expected[0])


@pytest.mark.slow
def test_base64_holds_the_same_numbers_as_a_list(server: Server) -> None:
    answers = [
        httpx2.post(
            f"{server.url}/v1/embeddings",
            json={"model": "org/tiny", "input": SENTENCES, "encoding_format": encoding},
        ).json()["data"]
        for encoding in ("float", "base64")
    ]
    for row, packed in zip(*answers, strict=True):
        assert np.frombuffer(base64.b64decode(packed["embedding"]), dtype="<f4").tolist() == row["embedding"]


@pytest.mark.slow
def test_many_at_once_get_their_own_embeddings(server: Server, model: PromptEOL) -> None:
    sentences = [f"{number} birds sing" + " and sing" * (number % 7) for number in range(64)]
    requests = [sentences[start : start + 1 + start % 3] for start in range(len(sentences))]

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            calls = (client.embeddings.create(model="org/tiny", input=request) for request in requests)
            return await asyncio.gather(*calls)

    expected = dict(zip(sentences, model.encode(sentences), strict=True))
    for request, answer in zip(requests, asyncio.run(ask()), strict=True):
        assert answer.usage.prompt_tokens == count_tokens(model, request)
        for sentence, row in zip(request, answer.data, strict=True):
            assert_same(row.embedding, expected[sentence])


@pytest.mark.slow
def test_models_and_health(server: Server) -> None:
    client = server.client()
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == ("org/tiny", "model")
    assert abs(listed.created - time.time()) < 3600
    assert client.models.retrieve("org/tiny") == listed
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("org/other")
    assert error.value.code == "model_not_found"
    health = httpx2.get(f"{server.url}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"input": []}, "input", "empty list"),
    ({"input": ""}, "input", "empty string"),
    ({"input": ["a", ""]}, "input", r"input\[1\] is an empty string"),
    ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),  # what LangChain sends by default
    ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
    ({"input": ["a", 1.5]}, "input", r"input\[1\] is a number"),
    ({"input": [True]}, "input", r"input\[0\] is a boolean"),
    ({"input": None}, "input", "input is null"),
    ({"input": {"text": "a"}}, "input", "input is an object"),
    ({"input": 7}, "input", "input is a number"),
    ({"input": ["a"] * 2049}, "input", "holds 2049 strings, and one request may hold 2048"),
    ({"input": "a", "dimensions": 0}, "dimensions", "dimensions=0 is out of range: this model allows 1 to 256"),
    ({"input": "a", "dimensions": -1}, "dimensions", "out of range"),
    ({"input": "a", "dimensions": 257}, "dimensions", "out of range"),
    ({"input": "a", "dimensions": 10**40}, "dimensions", "."),
    ({"input": "a", "dimensions": "64"}, "dimensions", "valid integer"),
    ({"input": "a", "dimensions": 64.0}, "dimensions", "valid integer"),
    ({"input": "a", "dimensions": True}, "dimensions", "valid integer"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
    ({"input": "a", "normalize": True}, "normalize", "Unrecognized request argument 'normalize'"),
    ({"input": "a", "model": None}, "model", "valid string"),
    ({}, "input", "has no 'input'"),
]


@pytest.mark.parametrize(("body", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.slow
def test_a_bad_request_is_one_sentence_with_status_400(
    server: Server, body: dict[str, Any], param: str | None, message: str
) -> None:
    answer = httpx2.post(f"{server.url}/v1/embeddings", json={"model": "org/tiny", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert re.search(message, error["message"])
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "message"),
    [
        ("POST", "/v1/embeddings", JSON, b"no JSON", 400, "not valid JSON"),
        ("POST", "/v1/embeddings", JSON, b"", 400, "not valid JSON"),
        ("POST", "/v1/embeddings", JSON, b'{"model":"org/tiny","input":"\xff"}', 400, "not valid JSON in UTF-8"),
        ("POST", "/v1/embeddings", JSON, b'{"model":"org/tiny","input":"\\ud800"}', 400, "not valid JSON"),
        ("POST", "/v1/embeddings", JSON, '{"model":"org/tiny"}'.encode("utf-16"), 400, "not valid JSON"),
        ("POST", "/v1/embeddings", JSON, b"[" * 100_000, 400, "recursion limit"),
        ("POST", "/v1/embeddings", JSON, b"[]", 400, "Input should be an object"),
        ("POST", "/v1/embeddings", JSON, b'{"input":"a"}', 400, "has no 'model'"),
        ("POST", "/v1/embeddings", JSON, b'{"model":"x","input":"a"}', 404, "The model 'x' does not exist"),
        ("POST", "/v1/embeddings", {"Content-Type": "text/plain"}, b"{}", 415, "Content-Type: application/json"),
        ("POST", "/v1/embeddings", {}, b'{"model":"org/tiny","input":"a"}', 415, "Content-Type: application/json"),
        ("POST", "/v1/embeddings", JSON, b" " * (33 << 20), 413, "larger than 32 MiB"),
        ("GET", "/v1/embeddings", {}, b"", 405, "Method Not Allowed: GET /v1/embeddings"),
        ("GET", "/v1/models/%ED%A0%80%0A", {}, b"", 404, "does not exist"),
        ("GET", "/v2", {}, b"", 404, "Not Found: GET /v2"),
    ],
)
@pytest.mark.slow
def test_errors_have_openais_form(
    server: Server, method: str, path: str, headers: dict[str, str], content: bytes, status: int, message: str
) -> None:
    answer = httpx2.request(method, f"{server.url}{path}", headers=headers, content=content)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert message in answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_sentence_of_ten_megabytes_is_cut_as_encode_cuts_it(server: Server, model: PromptEOL) -> None:
    text = "birds sing " * 900_000
    answer = server.client().embeddings.create(model="org/tiny", input=text)
    assert_same(answer.data[0].embedding, model.encode(text))
    assert answer.usage.prompt_tokens == model.max_seq_length


@pytest.mark.slow
def test_a_connection_is_kept_and_requests_may_be_pipelined(server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.port)
    for _ in range(3):
        connection.request("POST", "/v1/embeddings", json.dumps({"model": "org/tiny", "input": "a"}), JSON)
        assert len(json.loads(connection.getresponse().read())["data"][0]["embedding"]) == 256
        connection.sock.getpeername()  # still the same
    connection.close()
    body = b'{"model":"org/tiny","input":"a"}'
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall((request + b"\r\n" + body) * 2 + request + b"Connection: close\r\n\r\n" + body)
        received = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 3


# ---- the application


def test_dimensions_keep_the_first_numbers(model: PromptEOL) -> None:
    with client_of(model) as client:
        found = rows_of(post(client, input=SENTENCES, dimensions=64))
    assert_same(found, model.encode(SENTENCES, truncate_dim=64))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def test_embeddings_of_length_1_stay_so_when_they_are_shortened(model: PromptEOL) -> None:
    normalizing = PromptEOL(modules=[*model, Normalize()], device="cpu")
    embeddings = model.encode(SENTENCES)
    for served, normalize in ((model, True), (normalizing, False)):
        with client_of(served, normalize=normalize) as client:
            assert_same(rows_of(post(client, input=SENTENCES)), unit(embeddings))
            short = rows_of(post(client, input=SENTENCES, dimensions=64))
        assert_same(short, unit(embeddings[:, :64]))
    expected = model.encode(SENTENCES, truncate_dim=64, normalize_embeddings=True)
    assert_same(short, expected)  # as sentence-transformers does when it normalizes itself


def test_a_truncated_model_has_as_many_dimensions_as_it_gives() -> None:
    truncated = PromptEOL(TINY, truncate_dim=16, device="cpu")
    with client_of(truncated) as client:
        assert rows_of(post(client, input="a", dimensions=16)).shape == (1, 16)
        assert post(client, input="a", dimensions=17).status_code == 400


def test_a_prompt_of_the_model_is_computed_and_counted(model: PromptEOL) -> None:
    prompted = PromptEOL(modules=list(model), prompts={"q": "birds: "}, default_prompt_name="q", device="cpu")
    with client_of(prompted) as client:
        answer = post(client, input=["sing"])
    assert_same(rows_of(answer)[0], model.encode("birds: sing"))
    assert answer.json()["usage"]["prompt_tokens"] == count_tokens(model, ["birds: sing"])


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("sesame", 401),
        ("Basic sesame", 401),
        ("Bearer sésame", 401),
        ("Bearer sesame", 200),
        ("bearer sesame", 200),
    ],
)
def test_a_key_is_asked_for_where_one_is_set(model: PromptEOL, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with client_of(model, api_key="sesame") as client:
        for answer in (
            client.get("/v1/models", headers=headers),
            client.get("/v1/models/m", headers=headers),
            client.post("/v1/embeddings", json={"model": "m", "input": "a"}, headers=headers),
        ):
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "sesame" not in answer.text
        assert client.get("/health").status_code == 200


def test_an_embedding_that_is_not_finite_fails_alone() -> None:
    broken, others = PromptEOL(TINY, device="cpu"), ["a bird", "a cat", "a dog"]
    known = {token for sentence in others for token in broken.tokenizer(sentence)["input_ids"]}
    number = next(token for token in broken.tokenizer("guitar")["input_ids"] if token not in known)
    with torch.no_grad():
        broken[0].model.get_input_embeddings().weight[number] = torch.nan
    with client_of(broken) as client:
        answer = post(client, input=["a bird", "guitar"])
        error = {"message": "The server failed to answer; its log says why.", "type": "server_error"}
        assert (answer.status_code, answer.json()) == (500, {"error": {**error, "param": None, "code": None}})
        bodies = [*others, "guitar"] * 4
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda sentence: post(client, input=sentence).status_code, bodies))
    assert statuses == [200, 200, 200, 500] * 4


def test_what_a_template_cannot_embed_is_the_sentence_s_fault(causal_lms: dict[str, str]) -> None:
    """Without BOS and without words of its own a template leaves nothing of a blank sentence."""
    bare = PromptEOL(causal_lms["gpt2"], template="none", device="cpu")
    blank = next(text for text in (" ", "\n", "\t ") if not bare.tokenizer(text)["input_ids"])
    with client_of(bare) as client:
        answer = post(client, input=[blank])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
        assert "leaves nothing to embed" in answer.json()["error"]["message"]
        assert post(client, input=["a"]).status_code == 200


# ---- batches


def lengths(sentences: list[str]) -> Embedded:
    sizes = np.array([len(sentence) for sentence in sentences])
    return Embedded(sizes[:, None].astype(np.float32), sizes)


class Computer:
    """Writes down what it is asked for, and waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go_on = threading.Event()

    def __call__(self, sentences: list[str]) -> Embedded:
        self.batches.append(sentences)
        assert self.may_go_on.wait(timeout=10)
        if "bad" in sentences:
            raise RuntimeError("bad")
        return lengths(sentences)


def run_batches(compute: Computer, requests: list[list[str]], drop: int | None = None) -> list[Any]:
    """Sends the first request alone, and all others while it is computed."""

    async def ask() -> list[Any]:
        batcher = Batcher(compute, batch_size=4)
        worker = asyncio.create_task(batcher.run())
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(batcher.encode(request)))
            while not compute.batches:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        if drop is not None:
            tasks[drop].cancel()
            await asyncio.sleep(0.01)
        compute.may_go_on.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        worker.cancel()
        return outcomes

    return asyncio.run(ask())


def test_what_waits_is_computed_together() -> None:
    compute = Computer()
    outcomes = run_batches(compute, [["a"], ["bb"], ["ccc", "d"], ["ee"], ["f"]])
    assert compute.batches == [["a"], ["bb", "ccc", "d", "ee"], ["f"]]
    assert [outcome.tokens.tolist() for outcome in outcomes] == [[1], [2], [3, 1], [2], [1]]
    assert [outcome.embeddings[:, 0].tolist() for outcome in outcomes] == [[1], [2], [3, 1], [2], [1]]


def test_a_short_request_does_not_wait_for_all_of_a_long_one() -> None:
    compute = Computer()
    long = ["x" * number for number in range(1, 12)]
    outcomes = run_batches(compute, [["a"], long, ["bb"]])
    assert compute.batches == [["a"], long[:4], ["bb", *long[4:7]], long[7:]]
    assert outcomes[1].tokens.tolist() == list(range(1, 12))


def test_a_request_that_fails_harms_no_other() -> None:
    compute = Computer()
    outcomes = run_batches(compute, [["a"], ["bb"], ["c", "bad"], ["ddd"]])
    assert compute.batches == [["a"], ["bb", "c", "bad", "ddd"], ["bb"], ["c", "bad"], ["ddd"]]
    assert isinstance(outcomes[2], RuntimeError)
    assert [outcomes[number].tokens.tolist() for number in (0, 1, 3)] == [[1], [2], [3]]


def test_a_client_that_has_gone_is_not_computed_for() -> None:
    compute = Computer()
    outcomes = run_batches(compute, [["a"], ["bb"] * 9, ["c"]], drop=1)
    assert compute.batches == [["a"], ["c"]]
    assert isinstance(outcomes[1], asyncio.CancelledError)


# ---- the command


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["serve", *arguments], env=environment)
    return result.exit_code, result.stderr


def test_mistakes_are_one_sentence_before_the_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        mistakes = [
            (run("missing", "--port", port), f"Port {port} of 127.0.0.1 is in use: choose another"),
            (run("missing", "--host", "192.0.2.1"), "'192.0.2.1' is not an address of this machine"),
            (run("missing", "--host", "no such host"), "'no such host' is not an address of this machine"),
            (run("missing", "--port", "0", "--api-key", ""), "The API key '' is blank"),
            (run("missing", "--port", "0", ST_PROMPTEOL_API_KEY=" "), "The API key ' ' is blank"),
        ]
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        mistakes.append((run("missing", "--port", "0"), "pip install 'st-prompteol[serve] @ git+"))
    for (code, error), message in mistakes:
        assert code == 2, error
        assert error.startswith("st-prompteol: ")
        assert message in error
        assert error.count("\n") == 1, error


@pytest.mark.slow
def test_what_the_page_shows_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(from openai import .*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    block = block.replace("http://127.0.0.1:8000", server.url).replace('"my-model"', '"org/tiny"')
    exec(compile(block, "docs/publishing.md", "exec"), {})
    printed = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_requests_under_way_finish(number: int, model: PromptEOL) -> None:
    sentences = [f"{count} " + "birds sing " * 60 for count in range(96)]
    with serving("--batch-size", "4") as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        answer = pool.submit(client.embeddings.create, model=NAME, input=sentences)
        time.sleep(1)
        assert not answer.done()
        assert server.close(number) == 0
        found = np.array([row.embedding for row in answer.result().data])
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    assert_same(found, model.encode(sentences))
    assert not any("Traceback" in line for line in server.lines)


@pytest.mark.slow
def test_health_answers_and_short_requests_pass_while_a_long_one_is_computed() -> None:
    sentences = [f"{number} " + "birds sing " * 60 for number in range(160)]
    with serving("--batch-size", "4") as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        answer = pool.submit(client.embeddings.create, model=NAME, input=sentences)
        time.sleep(1)
        start = time.perf_counter()
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert time.perf_counter() - start < 2
        client.embeddings.create(model=NAME, input="a")
        assert not answer.done()
        assert len(answer.result().data) == len(sentences)


@pytest.mark.slow
def test_a_client_that_disconnects_is_dropped() -> None:
    body = json.dumps({"model": NAME, "input": [f"{number} " + "birds sing " * 100 for number in range(2000)]})
    with serving("--batch-size", "4") as server:
        for _ in range(3):
            connection = HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", "/v1/embeddings", body, JSON)
            time.sleep(0.5)
            connection.close()
        with socket.create_connection(("127.0.0.1", server.port)) as raw:  # in the middle of its body
            raw.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Content-Length: 1000\r\n\r\n{")
        start = time.perf_counter()
        server.client().embeddings.create(model=NAME, input="a")
        assert time.perf_counter() - start < 5  # each of the three takes more
        assert server.close() == 0
    assert not any("Traceback" in line for line in server.lines), server.lines


@pytest.mark.slow
def test_two_servers_of_one_port_that_start_together() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: Server(port=port), range(2)))
    served, other = sorted(both, key=lambda one: one.url, reverse=True)
    try:
        assert other.close() == 2
        assert f"Port {port} of 127.0.0.1 is in use" in other.lines[-1]
        assert not any("Traceback" in line for line in other.lines)
        served.client().embeddings.create(model=NAME, input="a")
    finally:
        assert served.close() == 0
    with serving() as again:  # the port of a server that has just ended, or any other
        again.client().models.list()


@pytest.mark.slow
def test_two_hundred_clients_and_five_thousand_requests_leave_no_memory_behind(model: PromptEOL) -> None:
    sentences = [f"{number} birds sing" for number in range(200)]
    expected = model.encode(sentences)
    with serving("--api-key", "sesame") as server:
        process = psutil.Process(server.process.pid)
        headers = {**JSON, "Authorization": "Bearer sesame"}

        def ask(number: int, count: int = 1) -> float:
            connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
            for _ in range(count):
                body = {"model": NAME, "input": sentences[number], "encoding_format": "float"}
                connection.request("POST", "/v1/embeddings", json.dumps(body), headers)
                row = json.loads(connection.getresponse().read())["data"][0]["embedding"]
            connection.close()
            return float(np.abs(np.array(row) - expected[number]).max())

        with ThreadPoolExecutor(200) as pool:
            assert max(pool.map(ask, range(200))) < 1e-5
            assert max(pool.map(lambda number: ask(number, 5), range(200))) < 1e-5
            before = process.memory_info().rss
            assert max(pool.map(lambda number: ask(number, 25), range(200))) < 1e-5
        assert process.memory_info().rss - before < 50 << 20
        assert process.num_threads() < 60
