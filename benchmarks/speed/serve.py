"""Requests of one sentence each to `st-prompteol serve`, from one client and from many concurrent ones.

    python -m benchmarks.speed.serve MODEL

Server and clients share the machine. Each client is a thread with its own persistent connection. The last row is
`PromptEOL.encode` with all sentences in one call, in the process of the clients.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.speed.measuring import machine, seconds_of, table
from st_prompteol import PromptEOL

SERVE = "from st_prompteol.cli import app; app()"


def request_one_by_one(port: int, sentences: list[str]) -> list[float]:
    """Sends a request for each sentence over one connection, and returns the seconds until each response."""
    connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
    for sentence in sentences:
        start = time.perf_counter()
        body = json.dumps({"model": "served", "input": sentence, "encoding_format": "base64"})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"The server answered with status {answer.status}.")
        seconds.append(time.perf_counter() - start)
    connection.close()
    return seconds


def measure(port: int, sentences: list[str], clients: int) -> list[str]:
    """Returns a row: clients, sentences per second, median and 95th percentile of the response time in ms."""
    shares = [sentences[number::clients] for number in range(clients)]
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = [
            value for values in pool.map(lambda share: request_one_by_one(port, share), shares) for value in values
        ]
    rate = len(sentences) / (time.perf_counter() - start)
    slow = statistics.quantiles(seconds, n=20)[-1]
    return [str(clients), f"{rate:.0f}", f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * slow:.1f}"]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a Hub id, or tiny")
    parser.add_argument("--count", type=int, default=1024, help="sentences, all different")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="requests at once")
    arguments = parser.parse_args()
    sentences = [f"{number} people are waiting at the station in the rain." for number in range(arguments.count)]

    command = [sys.executable, "-c", SERVE, "serve", arguments.model, "--port", "0", "--served-model-name", "served"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r":(\d+)/v1, with", line)))
            request_one_by_one(port, sentences[:32])
            rows = [measure(port, sentences, clients) for clients in arguments.clients]
        finally:
            server.terminate()
    model = PromptEOL(arguments.model)
    model.encode(sentences[:32])
    rows.append(["encode", f"{len(sentences) / seconds_of(lambda: model.encode(sentences)):.0f}", "", ""])
    print(machine())
    print(table("clients | sentences/s | median ms | 95 % within ms", rows), end="")


if __name__ == "__main__":
    main()
