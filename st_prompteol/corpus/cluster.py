"""The Ray engine: a pool of actors under Ray Data, each of which reads, encodes and writes one fragment at a time.

What passes through Ray's object store are the names of fragments and what came of them, so that nothing has to be held
back for a slow worker, and a fragment that a lost node had is done again by another, to the same place.
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
from st_prompteol.identity import identify
from st_prompteol.model import PromptEOL

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_OBJECT_STORE_BYTES = 128 * 2**20  # of a Ray that is started here: nothing large passes through
_CONNECT_SECONDS = 10  # to find out whether somebody listens; Ray itself would try for minutes
_ATTEMPTS = 5  # of one fragment whose workers die


@dataclass(frozen=True)
class _Opening:
    """How a process opens the model: its name or folder, `PromptEOL`'s options, the threads to compute with."""

    model: str
    options: dict[str, Any]
    threads: int | None

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function with the model in front of its arguments."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)  # of the tokenizer
        transformers_logging.disable_progress_bar()
        return function(PromptEOL(self.model, **self.options), *arguments)


class RayEngine:
    """Encodes fragments on a Ray cluster.

    Args:
        model: The name or folder of a model, which every node finds.
        options: What `PromptEOL` is opened with.
        workers: The most actors at a time. Defaults to None: as many as the cluster has room for.
        cpus: Cores of an actor.
        is_started_here: Whether the cluster is this machine, started for the run.
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
        # a GPU's worker may tokenise on all cores
        self._opening = _Opening(model, options, None if has_gpus else cpus)
        self._resources = {"num_gpus": 1} if has_gpus else {"num_cpus": cpus}
        self._can_open_here = is_started_here and not has_gpus

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function with the model in front of its arguments, in a process like those of the workers."""
        import ray

        if self._can_open_here:  # which saves the start of a process
            return replace(self._opening, threads=None).run(function, *arguments)
        task = ray.remote(_Opening.run).options(**self._resources).remote(self._opening, function, *arguments)
        try:
            result: _Result = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return result

    def encode(self, job: Job, fragments: Sequence[Fragment]) -> Generator[Outcome]:
        """Yields what came of each fragment, as they are done."""
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


def start_attempts() -> Any:
    """Starts an actor that counts attempts, beside the driver, where no dying worker takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Attempts:  # defined here, it travels as it is, and its process need not import what workers need
        def __init__(self) -> None:
            self.counts: dict[str, int] = {}

        def begin(self, part: str) -> int:
            """Returns how often a fragment was begun before."""
            self.counts[part] = self.counts.get(part, -1) + 1
            return self.counts[part]

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()


class _Worker:
    """What an actor does: opens the model with its first fragment, then encodes fragment after fragment."""

    def __init__(self, opening: _Opening, job: Job, attempts: Any) -> None:
        self.opening, self.job, self.attempts = opening, job, attempts
        self.encoder: FragmentEncoder | None = None

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """Encodes a fragment; what stops the whole run is handed back as a built-in exception."""
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
            if footer.get("key") == self.job.key:  # the part was in place before its worker was lost
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
        # the worker may have been killed for its memory
        self.encoder.batch_size = max(1, min(self.encoder.batch_size, self.job.batch_size >> attempt))
        return self.encoder.encode(fragment)


@contextmanager
def open_cluster(
    model: str, options: dict[str, Any], address: str | None, workers: int | None, cpus: int
) -> Iterator[RayEngine]:
    """Connects to a cluster, or starts a Ray here, and ends that when the block does."""
    try:
        import ray
    except ImportError as error:
        raise missing_extra("engine='ray'", "ray", "ray") from error
    if os.path.exists(model):  # workers have a working directory of their own
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
        reason = error.__cause__ or error  # Ray says only that it failed
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
