"""The local engine: this process, or sentence-transformers' own processes where there are several devices."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_prompteol.corpus.encoder import FragmentEncoder, Job
from st_prompteol.corpus.fragments import Fragment
from st_prompteol.corpus.manifest import describe
from st_prompteol.corpus.parts import Outcome
from st_prompteol.model import PromptEOL


class LocalWorkers:
    """Encodes fragments one after the other, each on all devices."""

    def __init__(self, model: SentenceTransformer, devices: Sequence[str]) -> None:
        self.model, self.devices = model, devices
        self._pool: dict[str, Any] | None = None

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns of the model what its embeddings depend on, and what else there is to know of it."""
        return describe(self.model)

    def calibrate(self, job: Job, fragments: Sequence[Fragment]) -> list[list[float]]:
        """Returns the smallest and the largest numbers of embeddings from all over the corpus."""
        return FragmentEncoder(self.model, replace(job, precision="float32")).ranges(fragments)

    def encode(self, job: Job, fragments: Sequence[Fragment]) -> Generator[Outcome]:
        """Yields what came of each fragment, in their order."""
        if len(self.devices) > 1:
            self._pool = self.model.start_multi_process_pool(list(self.devices))
        encoder = FragmentEncoder(self.model, job, self._pool)
        for fragment in fragments:
            yield encoder.encode(fragment)

    def close(self) -> None:
        """Stops the processes."""
        if self._pool is not None:
            self.model.stop_multi_process_pool(self._pool)
            self._pool = None


@contextmanager
def open_workers(
    model: str | SentenceTransformer, options: dict[str, Any], devices: Sequence[str] | None
) -> Iterator[LocalWorkers]:
    """Opens a model, if it is not yet, on `devices`; all CUDA devices if None are given and there are several."""
    if isinstance(model, str):
        if devices is not None and "device" not in options:
            options = {**options, "device": devices[0]}
        elif devices is None and "device" not in options and torch.cuda.device_count() > 1:
            devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        model = PromptEOL(model, **options)
    elif options:
        raise ValueError(f"model_options={options!r} are for a model that is yet to be opened: pass its name.")
    elif devices is not None and len(devices) == 1:
        model = model.to(devices[0])
    workers = LocalWorkers(model, devices or [])
    try:
        yield workers
    finally:
        workers.close()
