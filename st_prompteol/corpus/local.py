"""The local engine: this process, or sentence-transformers' multi-process pool for several devices."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer

from st_prompteol.corpus.encoder import FragmentEncoder, Job
from st_prompteol.corpus.fragments import Fragment
from st_prompteol.corpus.parts import Outcome
from st_prompteol.model import PromptEOL
from st_prompteol.saved.identity import identify
from st_prompteol.standardization import Method

_Result = TypeVar("_Result")


class LocalEngine:
    """Encodes fragments one after the other, each on all devices.

    Args:
        model: A model, or the name or folder of one for `PromptEOL`.
        options: Arguments of `PromptEOL`.
        devices: Devices to encode on. Defaults to None: all CUDA devices if there are several, else the model's own.
    """

    def __init__(
        self, model: str | SentenceTransformer, options: dict[str, Any], devices: Sequence[str] | None = None
    ) -> None:
        self._opened: PromptEOL | None = None
        if isinstance(model, str):
            if not {"device", "device_map"} & options.keys():
                if devices is None and torch.cuda.device_count() > 1:
                    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
                if devices is not None:
                    options = {**options, "device": devices[0]}
            model = self._opened = PromptEOL(model, **options)
        elif options:
            raise ValueError(f"model_options={options!r} are for a model that is yet to be opened: pass its name.")
        elif devices is not None and len(devices) == 1:
            model = model.to(devices[0])
        self.model, self.devices = model, list(devices or ())

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function with the model as its first argument."""
        return function(self.model, *arguments)

    def standardize(self, sentences: Sequence[str], method: Method) -> dict[str, Any]:
        """Standardizes the model by the statistics of sentences; returns its new identity.

        Raises:
            ValueError: If the model was opened by the caller, to whom it belongs.
        """
        if self._opened is None:
            raise ValueError(
                "standardize=… is for a model that is yet to be opened: pass its name, or standardize the model first."
            )
        self._opened.standardize(sentences, method)
        return identify(self._opened)

    def encode(self, job: Job, fragments: Sequence[Fragment]) -> Generator[Outcome]:
        """Yields the outcome of each fragment, in order."""
        pool = self.model.start_multi_process_pool(self.devices) if len(self.devices) > 1 else None
        try:
            encoder = FragmentEncoder(self.model, job, pool)
            for fragment in fragments:
                yield encoder.encode(fragment)
        finally:
            if pool is not None:
                self.model.stop_multi_process_pool(pool)
