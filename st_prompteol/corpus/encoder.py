"""Encodes fragments, in every engine and process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from st_prompteol.corpus.formats import Batch, read_batches
from st_prompteol.corpus.fragments import Fragment
from st_prompteol.corpus.parts import Array, Outcome, PartWriter
from st_prompteol.corpus.storage import Storage
from st_prompteol.failures import is_disk_full
from st_prompteol.llm.finite import NotFiniteError, check_finite

logger = logging.getLogger(__name__)

CorpusPrecision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

_CALIBRATION_ROWS, _CALIBRATED_FRAGMENTS = 4096, 16  # for the ranges of int8 and uint8
CHUNK_BATCHES = 64  # batches per call of `encode`, which sorts them by length; determines the memory it takes


@dataclass(frozen=True)
class Job:
    """Settings that all fragments of a run share; `key` is a digest of everything that embeddings depend on."""

    destination: str
    column: str | None
    keep: tuple[str, ...] | None  # None keeps the sentences
    batch_size: int
    precision: CorpusPrecision
    normalize_embeddings: bool
    identity: dict[str, Any] = field(default_factory=dict)  # of the model, which must be the same in every process
    key: str = ""
    ranges: list[list[float]] | None = None  # minima and maxima for int8 and uint8
    header: bool | None = None  # of CSV and TSV files; None detects it from their content

    @property
    def output_columns(self) -> tuple[str, ...]:
        """The columns of the output before the embedding."""
        return (self.column or "sentence",) if self.keep is None else self.keep


class UnreadableError(Exception):
    """Raised if the input of a fragment cannot be read; other fragments may be readable."""


class FragmentEncoder:
    """Reads fragments, encodes them and writes their parts.

    Args:
        model: The model.
        job: Settings of the run.
        pool: A multi-process pool to encode with, from `model.start_multi_process_pool`. Defaults to None.
    """

    def __init__(self, model: SentenceTransformer, job: Job, pool: dict[str, Any] | None = None) -> None:
        self.model, self.job, self.pool = model, job, pool
        self.batch_size = job.batch_size
        self.destination = Storage(job.destination)
        processes = len(pool["processes"]) if pool else 1
        self.chunk = CHUNK_BATCHES * job.batch_size * processes
        dimension = model.get_embedding_dimension()
        self._empty = self._in_precision(np.zeros((0, dimension or 0), dtype=np.float32))
        self._counts = [torch.zeros((), dtype=torch.int64)] * 2

    def encode(self, fragment: Fragment) -> Outcome:
        """Encodes a fragment and writes its part, atomically.

        Raises:
            OSError: If the part cannot be written.
            MemoryError: If there is not enough memory for a single sentence.
            ValueError: If an embedding contains NaN or infinity, or exceeds the range of the precision.
        """
        start = time.perf_counter()
        self._counts = [torch.zeros((), dtype=torch.int64)] * 2
        counting = self.model[0].register_forward_pre_hook(self._count)
        try:
            with (
                self.destination.replacing(fragment.part) as staged,
                PartWriter(staged, self._empty, self.job.output_columns) as writer,
            ):
                for batch in read_fragment(fragment, self.job, self.chunk):
                    places = [place for place, sentence in enumerate(batch.sentences) if sentence is not None]
                    try:
                        embeddings = self.embed([str(batch.sentences[place]) for place in places])
                    except NotFiniteError as error:
                        raise error.found_in(fragment.name_row(writer.rows + places[error.place])) from None
                    writer.write(batch, self._in_precision(embeddings) if places else self._empty)
                seconds = time.perf_counter() - start
                tokens, cells = map(int, self._counts)
                outcome = Outcome(fragment.part, writer.rows, writer.bad_rows, seconds, tokens, cells)
                writer.close({"key": self.job.key, "fragment": asdict(fragment), "outcome": asdict(outcome)})
        except UnreadableError as error:
            return Outcome(fragment.part, failure=str(error))
        except OSError as error:
            raise OSError(
                f"The disk of {self.job.destination!r} is full: free space, and the same call goes on."
                if is_disk_full(error)
                else f"{fragment.part} cannot be written to {self.job.destination!r}: {error}"
            ) from error
        finally:
            counting.remove()
        return outcome

    def embed(self, sentences: list[str]) -> Array:
        """Returns float32 embeddings `(len(sentences), dimension)`; halves the batch size when out of memory."""
        if not sentences:
            return self._empty
        while True:
            try:
                # whole batches for the processes of a pool
                spread = {"pool": self.pool, "chunk_size": 4 * self.batch_size} if self.pool else {}
                embeddings = self.model.encode(
                    sentences,
                    batch_size=self.batch_size,
                    normalize_embeddings=self.job.normalize_embeddings,
                    show_progress_bar=False,
                    **spread,
                )
                rows = np.asarray(embeddings, dtype=np.float32)
                check_finite(rows, sentences)
                return rows
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = ceil(self.batch_size / 2)
                logger.warning("Out of memory: going on with batches of %d sentences.", self.batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _in_precision(self, embeddings: Array) -> Array:
        if self.job.precision == "float16":
            narrow = embeddings.astype(np.float16)
            if not np.isfinite(narrow).all():
                raise ValueError("An embedding holds numbers beyond those of float16: encode in float32.")
            return narrow
        ranges = None if self.job.ranges is None else np.array(self.job.ranges, dtype=np.float32)
        quantized: Array = quantize_embeddings(embeddings, self.job.precision, ranges=ranges)
        return quantized

    def _count(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        mask = arguments[0].get("attention_mask")
        if mask is not None:  # sums stay on the device, to avoid synchronization
            self._counts = [self._counts[0].to(mask.device) + mask.sum(), self._counts[1] + mask.numel()]


def calibrate(model: SentenceTransformer, job: Job, fragments: Sequence[Fragment]) -> list[list[float]]:
    """Returns minima and maxima per dimension, from the embeddings of a sample of the whole corpus.

    Raises:
        ValueError: If there are fewer than two sentences.
    """
    chosen = fragments[:: ceil(len(fragments) / _CALIBRATED_FRAGMENTS)] if fragments else []
    sentences: list[str] = []
    for fragment in chosen:
        with suppress(UnreadableError):
            batch = next(read_fragment(fragment, job, _CALIBRATION_ROWS // len(chosen)), Batch([], {}))
            sentences += [sentence for sentence in batch.sentences if sentence is not None]
    if len(sentences) < 2:
        raise ValueError("int8 and uint8 are scaled by the ranges of many sentences, but there are none: use float32.")
    rows = FragmentEncoder(model, replace(job, precision="float32")).embed(sentences)
    return [rows.min(axis=0).tolist(), rows.max(axis=0).tolist()]


def read_fragment(fragment: Fragment, job: Job, rows: int) -> Iterator[Batch]:
    """Yields the rows of a fragment in batches; raises an `UnreadableError` that names the file."""
    file = fragment.file
    try:
        with file.open() as opened:
            batches = read_batches(
                opened,
                file.path,
                rows,
                column=job.column,
                keep=job.keep or (),
                header=job.header,
                span=(fragment.start, fragment.stop),
            )
            for batch in batches:
                yield batch if job.keep is not None else replace(batch, kept={job.output_columns[0]: batch.sentences})
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{file.path!r} cannot be read: {' '.join(str(error).split())}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception means that a device or machine is out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
