"""An OpenAI-compatible chat endpoint on loopback, which also fails, stalls, rate-limits and talks nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def says(content: str | None) -> Reply:
    """A regular answer."""
    message = {"role": "assistant", "content": content}
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return 200, {"content-type": "application/json"}, json.dumps(body).encode()


def fails(status: int, **headers: str) -> Reply:
    """An error."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json", **named}, b'{"error": "no"}'


class ChatServer:
    """Answers by a function of the sentence that is asked about and how often it was asked before.

    Args:
        reply: `(sentence, times asked before) -> reply`, see `says` and `fails`.
    """

    def __init__(self, reply: Callable[[str, int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        asked: dict[str, int] = {}
        lock = threading.Lock()
        at_once = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                nonlocal at_once
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                sentence = body["messages"][0]["content"].split('Sentence: "')[1][:-1]
                with lock:
                    at_once += 1
                    server.most_at_once = max(server.most_at_once, at_once)
                    before = asked.get(sentence, 0)
                    asked[sentence] = before + 1
                    server.requests.append({"path": self.path, "sentence": sentence, **body})
                    server.keys.append(self.headers.get("authorization"))
                status, headers, content = reply(sentence, before)
                with lock:
                    at_once -= 1
                try:
                    self.send_response(status)
                    for name, value in {**headers, "content-length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    time.sleep(0)  # the client has given up

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
