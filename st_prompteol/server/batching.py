"""Batches sentences of concurrent requests: one thread computes, and requests that arrive meanwhile are batched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Embedded(NamedTuple):
    """Embeddings `(count, embedding_dimension)`, and the number of tokens of each sentence `(count,)`."""

    embeddings: np.ndarray
    tokens: np.ndarray


@dataclass(eq=False)
class _Request:
    """A waiting request; the first `taken` sentences are already computed or being computed."""

    sentences: list[str]
    answer: asyncio.Future[Embedded]
    taken: int = 0
    parts: list[Embedded] = field(default_factory=list)

    def take(self, count: int) -> list[str]:
        part = self.sentences[self.taken : self.taken + count]
        self.taken += len(part)
        return part

    def is_taken(self) -> bool:
        return self.taken == len(self.sentences)

    def add(self, outcome: Embedded | Exception) -> None:
        if self.answer.done():  # the client has disconnected
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
            return
        self.parts.append(outcome)
        if sum(len(part.tokens) for part in self.parts) == len(self.sentences):
            self.answer.set_result(Embedded(*(np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))))


class Batcher:
    """Embeds sentences of concurrent requests together, at most `batch_size` at a time.

    There is no delay: an idle batcher starts with the first request, and requests that arrive during a computation
    form the next batch. The rest of a request that does not fit into a batch is queued behind the waiting ones, so a
    short request never waits for a whole long one. Requests of disconnected clients are dropped. If a batch fails, its
    requests are computed one by one, so that only invalid ones fail.

    Args:
        compute: Embeds a list of sentences. It is called in a separate thread, one call at a time.
        batch_size: The number of sentences per call.
    """

    def __init__(self, compute: Callable[[list[str]], Embedded], batch_size: int) -> None:
        self._compute = compute
        self._batch_size = batch_size
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()

    async def encode(self, sentences: list[str]) -> Embedded:
        """Returns the embeddings of one request's sentences; re-raises the exception of `compute`."""
        request = _Request(sentences, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(request)
        return await request.answer  # canceled together with the awaiting task

    async def run(self) -> None:
        """Computes batches until it is canceled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "encode") as thread:
            while True:
                batch = await self._next_batch()
                parts = [part for _, part in batch]
                outcomes = await loop.run_in_executor(thread, self._compute_parts, parts)
                for (request, _), outcome in zip(batch, outcomes, strict=True):
                    request.add(outcome)

    async def _next_batch(self) -> list[tuple[_Request, list[str]]]:
        batch: list[tuple[_Request, list[str]]] = []
        room = self._batch_size
        while room and not (batch and self._waiting.empty()):
            request = await self._waiting.get()
            if request.answer.done():
                continue
            part = request.take(room)
            room -= len(part)
            batch.append((request, part))
            if not request.is_taken():
                self._waiting.put_nowait(request)
        return batch

    def _compute_parts(self, parts: list[list[str]]) -> list[Embedded | Exception]:
        try:
            embeddings, tokens = self._compute([sentence for part in parts for sentence in part])
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [outcome for part in parts for outcome in self._compute_parts([part])]
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return list(map(Embedded, np.split(embeddings, ends), np.split(tokens, ends)))
