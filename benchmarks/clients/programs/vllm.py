"""`vllm serve folder`, `/v1/embeddings` with `input`."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})


def post(url, body):
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error


def embed(folder, sentences):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder, "--host", "127.0.0.1"]
    command += ["--port", address.partition(":")[2], "--dtype", "float32", "--served-model-name", "model"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://{address}/health")
                    break
                except OSError:
                    time.sleep(1)
                if server.poll() is not None:
                    log.seek(0)
                    errors = [line for line in log if "Error" in line]
                    raise RuntimeError((errors or ["the server ended"])[-1].strip())
            body = {"model": "model", "input": sentences, "truncate_prompt_tokens": -1}
            return [row["embedding"] for row in post(f"http://{address}/v1/embeddings", body)["data"]]
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)
