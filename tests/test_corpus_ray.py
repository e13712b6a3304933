"""Encoding corpora on Ray: the same output as on one machine, whatever dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus
from st_prompteol.corpus.cluster import _Opening, _Worker, start_attempts
from st_prompteol.corpus.encoder import Job
from st_prompteol.corpus.fragments import cut, list_sources
from st_prompteol.evaluation.senteval import STS_TASKS, TRANSFER_TASKS, read_task
from st_prompteol.saved.identity import identify

from . import ROOT
from .helpers.corpora import CLOSE, embeddings_of, manifest_of, read, sentences, write_parquet

pytest.importorskip("ray", reason="needs ray: in the checkout pip install '.[ray]'")
# upstream's own, while it starts and stops processes and passes them sockets
pytestmark = [
    pytest.mark.xdist_group("ray"),  # one cluster at a time: two that start at once may find the same free port
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves this machine
    "RAY_AUTH_MODE": "disabled",  # or the first Ray of this process sets tokens up, which drivers of the next lack
    "RAY_worker_niceness": "0",  # or tests that run beside it starve the workers
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),  # of the workers
}
# loopback; from 127.0.0.1 itself Ray goes to the machine's address. Workers are counted by cores, so without GPUs
NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": 80 * 2**20, "num_gpus": 0}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield {**os.environ}


@pytest.fixture(scope="module")
def one_node(environment: dict[str, str]) -> Iterator[None]:
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False, "num_gpus": 0}
    memory, address = 100 * 2**20, NODE["node_ip_address"]
    ray.init(address="local", num_cpus=2, object_store_memory=memory, _node_ip_address=address, **options)
    yield
    ray.shutdown()


class Cluster:
    """Two nodes of one core each, and a head without any for the driver."""

    def __init__(self, environment: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self.environment = environment
        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(2)]

    def add(self) -> Any:
        return self.cluster.add_node(**NODE, num_cpus=1)

    def command(self, *arguments: str) -> list[str]:
        command = [sys.executable, "-m", "st_prompteol", "corpus", *arguments]
        return [*command, "--engine", "ray", "--address", self.cluster.address]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def workers(self) -> list[int]:
        """The processes of this cluster, which are children of this one, that are actors of a pool."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any("MapWorker" in word for word in process.cmdline()):
                    found.append(process.pid)
        return found


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    import ray

    ray.shutdown()
    cluster = Cluster(environment)
    yield cluster
    cluster.cluster.shutdown()


def wait_for(parts: int, folder: Path, process: subprocess.Popen[str]) -> None:
    while len(list(folder.glob("part-*"))) < parts:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_rows_are_those_of_the_local_engine(one_node: None, causal_lms: dict[str, str], tmp_path: Path) -> None:
    """The same rows, nulls, failures and scaled numbers."""
    source = tmp_path / "in"
    source.mkdir()
    texts = sentences(60)
    write_parquet(source / "a.parquet", [*texts[:30], None, *texts[30:]], row_group_size=10)
    (source / "b.parquet").write_bytes(b"nothing")
    (source / "c.jsonl").write_text('{"id": 1, "text": "last"}\n', encoding="utf-8")
    arguments: dict[str, Any] = {"column": "text", "keep": ["id", "text"], "fragment_rows": 10, "precision": "int8"}
    on_ray: dict[str, Any] = {**arguments, "engine": "ray"}
    with pytest.raises(ValueError, match="cpus_per_worker=64 is more than the 2 cores of the cluster"):
        encode_corpus(causal_lms["opt"], source, tmp_path / "ray", cpus_per_worker=64, **on_ray)
    assert not (tmp_path / "ray").exists()
    options = {"layer": -2, "truncate_dim": 16}
    arguments["standardize"] = on_ray["standardize"] = texts
    local = encode_corpus(causal_lms["opt"], source, tmp_path / "local", model_options=options, **arguments)
    ray = encode_corpus(causal_lms["opt"], source, tmp_path / "ray", model_options=options, workers=1, **on_ray)
    for report in (local, ray):
        assert (report.rows, report.bad_rows, report.parts, len(report.failures)) == (62, 1, 8, 1)
        assert "b.parquet' cannot be read: " in report.failures[0]
    assert manifest_of(tmp_path / "local")["identity"] == manifest_of(tmp_path / "ray")["identity"]
    for path in sorted((tmp_path / "local").glob("part-*")):
        expected, got = pq.read_table(path), pq.read_table(tmp_path / "ray" / path.name)
        assert got.drop_columns("embedding").equals(expected.drop_columns("embedding"))
        valid = expected["embedding"].is_valid()
        assert got["embedding"].is_valid().equals(valid)
        steps = np.abs(embeddings_of(got.filter(valid)) - embeddings_of(expected.filter(valid)))
        assert steps.max() <= 1  # a number on the edge between two steps


@pytest.mark.slow
def test_what_workers_raise_is_one_sentence(one_node: None, causal_lms: dict[str, str], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", ["x"])
    with pytest.raises(ValueError, match=r"^layer=-9 is out of range: .* has 3 blocks"):
        encode_corpus(
            causal_lms["opt"], source, tmp_path / "out", column="text", engine="ray", model_options={"layer": -9}
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nobody_listens_at_the_address(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    source = write_parquet(tmp_path / "in.parquet", ["x"])
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"There is no Ray cluster at '127\.0\.0\.1:9' .*: check the address"):
        encode_corpus("tiny", source, tmp_path / "out", column="text", engine="ray", address="127.0.0.1:9")
    assert time.perf_counter() - start < 15
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_fragment_that_kills_its_workers_gets_smaller_batches_and_is_left_out_at_last(
    one_node: None, causal_lms: dict[str, str], tmp_path: Path
) -> None:
    import ray

    source = write_parquet(tmp_path / "in.parquet", list(sentences(40)))
    (tmp_path / "out").mkdir()
    fragments = cut(list_sources([str(source)]), 20, "text", ())
    job = Job(str(tmp_path / "out"), "text", None, 16, "float32", False, identify(PromptEOL(causal_lms["opt"])), "key")
    attempts = start_attempts()
    worker = _Worker(_Opening(causal_lms["opt"], {}, 1), job, attempts)
    for _ in range(2):  # two workers began it, and were killed
        ray.get(attempts.begin.remote(fragments[0].part))
    outcome = worker._encode(fragments[0])
    assert (outcome.rows, worker.encoder.batch_size) == (20, 4)
    written = (tmp_path / "out" / outcome.part).stat().st_mtime_ns
    assert worker._encode(fragments[0]) == outcome  # what a lost node had finished is found, not done again
    assert (tmp_path / "out" / outcome.part).stat().st_mtime_ns == written
    for _ in range(5):
        ray.get(attempts.begin.remote(fragments[1].part))
    assert "in.parquet' killed 5 workers, so it is left out: lower batch_size." in worker._encode(fragments[1]).failure
    other = _Worker(_Opening(causal_lms["llama"], {}, 1), job, attempts)
    with pytest.raises(ValueError, match="is not the same model on every node"):
        other._encode(cut(list_sources([str(source)]), 7, "text", ())[-1])


@pytest.mark.slow
def test_a_driver_that_is_stopped_goes_on(cluster: Cluster, stories: str, tmp_path: Path) -> None:
    texts = sentences(6000)
    source = write_parquet(tmp_path / "in.parquet", list(texts), row_group_size=200)
    out = tmp_path / "out"
    arguments = [stories, str(source), "-o", str(out), "--column", "text", "--fragment-rows", "200"]
    done: dict[str, int] = {}
    for stop in (signal.SIGINT, signal.SIGKILL):
        process = cluster.start(*arguments)
        wait_for(len(done) + 3, out, process)
        process.send_signal(stop)
        _, message = process.communicate()
        deadline = time.monotonic() + 30
        while cluster.workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert cluster.workers() == []  # actors end with their driver
        before, done = done, {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
        assert before.items() <= done.items()
        assert len(before) + 3 <= len(done) < 30
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "parts are in" in message
            assert "and the same call goes on." in message
            assert "Traceback" not in message
            assert not list(out.glob(".*"))
    again = subprocess.run(cluster.command(*arguments), env=cluster.environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "6000 rows, 0 of them without text, in 30 parts" in again.stderr
    assert f"{6000 - 200 * len(done)} encoded now" in again.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert not list(out.glob(".*"))
    assert read(out)["text"].to_pylist() == texts
    np.testing.assert_allclose(embeddings_of(read(out)), PromptEOL(stories).encode(texts), **CLOSE)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.shared
def test_two_nodes_encode_real_sentences_though_one_dies(
    cluster: Cluster, stories: str, shared: Path, tmp_path: Path
) -> None:
    """Every third sentence of SNLI and the 14 tasks; a worker is killed, then a node; another joins later."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    texts = []
    for path in sorted((shared / "hub/datasets/nli/snli/data").glob("*.parquet")):
        table = pq.read_table(path)
        texts += [*table["premise"].to_pylist(), *table["hypothesis"].to_pylist()]
    texts = texts[::3]
    write_parquet(source / "a-snli.parquet", list(texts), row_group_size=5000)
    for task in (*STS_TASKS, *TRANSFER_TASKS):
        splits = read_task(shared / "senteval", task)
        found = [text for examples in splits.values() for column in examples.columns for text in column]
        write_parquet(source / f"b-{task}.parquet", found[::3])
    for task in sorted((*STS_TASKS, *TRANSFER_TASKS)):
        texts += pq.read_table(source / f"b-{task}.parquet")["text"].to_pylist()
    assert len(texts) > 60_000

    process = cluster.start(stories, str(source), "-o", str(out), "--column", "text", "--fragment-rows", "2048")
    wait_for(2, out, process)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    wait_for(5, out, process)
    cluster.cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    wait_for(len(list(out.glob("part-*"))) + 5, out, process)
    cluster.add()
    _, message = process.communicate()
    assert process.returncode == 0, message
    table = read(out)
    assert table["text"].to_pylist() == texts
    got = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
    np.testing.assert_allclose(got[::4], PromptEOL(stories).encode(texts[::4]), atol=1e-5, rtol=1e-5)
