"""The Ray engine: a pool of Ray Data actors, each of which reads, encodes and writes one fragment at a time.

Only the names of fragments and their outcomes pass through Ray's object store. Slow workers therefore cause no
backpressure, and the fragment of a lost node is encoded again by another worker, to the same place.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from transformers.utils import logging as transformers_logging

from st_prompteol.corpus.encoder import FragmentEncoder, Job
from st_prompteol.corpus.fragments import Fragment
from st_prompteol.corpus.parts import Outcome, read_footers
from st_prompteol.corpus.storage import Storage
from st_prompteol.extras import missing_extra
from st_prompteol.model import PromptEOL
from st_prompteol.saved.identity import identify
from st_prompteol.standardization import Method, Standardization

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_OBJECT_STORE_BYTES = 128 * 2**20  # of a local Ray; nothing large passes through it
_CONNECT_SECONDS = 10  # connection timeout; Ray itself would retry for minutes
_ATTEMPTS = 5  # maximum per fragment if workers die


@dataclass(frozen=True)
class _Opening:
    """How a process loads the model: name or folder, arguments of `PromptEOL`, number of threads, statistics."""

    model: str
    options: dict[str, Any]
    threads: int | None
    standardization: Standardization | None = None

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function with the model as its first argument."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)  # of the tokenizer
        transformers_logging.disable_progress_bar()
        model = PromptEOL(self.model, **self.options)
        if self.standardization is not None:
            model.standardize(self.standardization)
        return function(model, *arguments)


class RayEngine:
    """Encodes fragments on a Ray cluster.

    Args:
        model: Name or folder of a model that every node can access.
        options: Arguments of `PromptEOL`.
        workers: Maximum number of actors. Defaults to None: as many as the cluster has resources for.
        cpus: Number of cores per actor.
        is_started_here: Whether the cluster is a local Ray, started for this run.
    """

    def __init__(
        self, model: str, options: dict[str, Any], workers: int | None, cpus: int, is_started_here: bool
    ) -> None:
        import ray

        there = ray.cluster_resources()
        has_gpus = there.get("GPU", 0) >= 1 and str(options.get("device", "cuda")).startswith("cuda")
        room = int(there.get("GPU", 0)) if has_gpus else int(there.get("CPU", 0)) // cpus
        if workers is None and room == 0:
            raise ValueError(
                f"cpus_per_worker={cpus} is more than the {there.get('CPU', 0):g} cores of the cluster: pass fewer, "
                "or workers=… if the cluster grows."
            )
        self.workers = room if workers is None else workers
        # a GPU worker may tokenize on all cores
        self._opening = _Opening(model, options, None if has_gpus else cpus)
        self._resources = {"num_gpus": 1} if has_gpus else {"num_cpus": cpus}
        self._can_open_here = is_started_here and not has_gpus

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function with the model as its first argument, in a process like those of the workers."""
        import ray

        if self._can_open_here:  # saves starting a process
            return replace(self._opening, threads=None).run(function, *arguments)
        task = ray.remote(_Opening.run).options(**self._resources).remote(self._opening, function, *arguments)
        try:
            result: _Result = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return result

    def standardize(self, sentences: Sequence[str], method: Method) -> dict[str, Any]:
        """Standardizes all models opened from now on by the statistics of sentences; returns their identity."""
        standardization, identity = self.run(_standardize, sentences, method)
        self._opening = replace(self._opening, standardization=standardization)
        return identity

    def encode(self, job: Job, fragments: Sequence[Fragment]) -> Generator[Outcome]:
        """Yields the outcome of each fragment, as they finish."""
        from ray.data import ActorPoolStrategy, DataContext, from_items

        if not fragments:
            return
        size = min(self.workers, len(fragments))
        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        with DataContext.current(context):
            names = from_items(
                [{"fragment": pickle.dumps(fragment)} for fragment in fragments], override_num_blocks=len(fragments)
            )
            outcomes = names.map(
                _Worker,
                fn_constructor_args=(self._opening, job, start_attempts()),
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
                **self._resources,
            )
        with _errors_only(logging.getLogger("ray.data")), closing(iter(outcomes.iter_rows())) as rows:
            for row in rows:
                outcome = pickle.loads(row["outcome"])
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome


def _standardize(model: PromptEOL, sentences: Sequence[str], method: Method) -> tuple[Standardization, dict[str, Any]]:
    return model.standardize(sentences, method), identify(model)


def start_attempts() -> Any:
    """Starts an actor that counts attempts, on the driver's node, where it survives lost workers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Attempts:  # a local class is pickled by value, without the imports that workers need
        def __init__(self) -> None:
            self.counts: dict[str, int] = {}

        def begin(self, part: str) -> int:
            """Returns the number of earlier attempts at a fragment."""
            self.counts[part] = self.counts.get(part, -1) + 1
            return self.counts[part]

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()


class _Worker:
    """A Ray actor: loads the model with its first fragment, then encodes fragment after fragment."""

    def __init__(self, opening: _Opening, job: Job, attempts: Any) -> None:
        self.opening, self.job, self.attempts = opening, job, attempts
        self.encoder: FragmentEncoder | None = None

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """Encodes a fragment; errors that stop the whole run are returned as built-in exceptions."""
        fragment: Fragment = pickle.loads(row["fragment"])
        outcome: Outcome | Exception
        try:
            outcome = self._encode(fragment)
        except Exception as error:
            logger.debug("%s stopped the run", fragment, exc_info=True)
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            outcome = kind(str(error) if isinstance(error, OSError) else f"{error} (in {fragment.file.path!r})")
        return {"outcome": pickle.dumps(outcome)}

    def _encode(self, fragment: Fragment) -> Outcome:
        import ray

        attempt = ray.get(self.attempts.begin.remote(fragment.part))
        if attempt:
            footer = read_footers(Storage(self.job.destination), [fragment.part]).get(fragment.part, {})
            if footer.get("key") == self.job.key:  # the part was complete before its worker was lost
                return Outcome(**footer["outcome"])
        if attempt >= _ATTEMPTS:
            return Outcome(
                fragment.part,
                failure=f"{fragment.file.path!r} killed {_ATTEMPTS} workers, so it is left out: lower batch_size.",
            )
        if self.encoder is None:
            self.encoder = self.opening.run(FragmentEncoder, self.job)
            if identify(self.encoder.model) != self.job.identity:
                raise ValueError(
                    f"{self.opening.model!r} is not the same model on every node: pass a revision, or one folder."
                )
        # an earlier worker may have been killed for its memory
        self.encoder.batch_size = max(1, min(self.encoder.batch_size, self.job.batch_size >> attempt))
        return self.encoder.encode(fragment)


@contextmanager
def open_cluster(
    model: str, options: dict[str, Any], address: str | None, workers: int | None, cpus: int
) -> Iterator[RayEngine]:
    """Connects to a cluster, or starts a local Ray; disconnects or stops it on exit."""
    try:
        import ray
    except ImportError as error:
        raise missing_extra("engine='ray'", "ray", "ray") from error
    if os.path.exists(model):  # workers have another working directory
        model = os.path.abspath(model)
    is_ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if is_ours:
        _connect(address)
    try:
        yield RayEngine(model, options, workers, cpus, is_ours and address == "local")
    finally:
        if is_ours:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    if address == "local":
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
        )
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        ray.init(address=address)
    except (OSError, RuntimeError) as error:
        reason = error.__cause__ or error  # Ray's own message has no reason
        raise ConnectionError(
            f"There is no Ray cluster at {address!r} ({reason}): check the address, or start one."
        ) from error


@contextmanager
def _errors_only(upstream: logging.Logger) -> Iterator[None]:
    level = upstream.level
    upstream.setLevel(logging.ERROR)
    try:
        yield
    finally:
        upstream.setLevel(level)
