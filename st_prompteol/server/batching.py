"""Batches sentences of concurrent requests: one thread computes, and what arrives meanwhile is the next batch."""

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
    """Sentences that wait for their embeddings; `taken` of them are computed or being computed."""

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
        if self.answer.done():  # the client has gone
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
            return
        self.parts.append(outcome)
        if sum(len(part.tokens) for part in self.parts) == len(self.sentences):
            self.answer.set_result(Embedded(*(np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))))


class Batcher:
    """Computes sentences of concurrent requests together, at most `batch_size` at a time.

    There is no delay: an idle batcher starts with the first request, and requests that arrive while it computes form
    the next batch. A request that does not fit into a batch continues behind those that wait, so a short one never
    waits for all of a long one. A request whose client has gone is dropped. When a batch fails, its requests are
    computed one by one, so that only those at fault fail.

    Args:
        compute: Embeds a list of sentences. It is called in a thread of its own, one call at a time.
        batch_size: Sentences per call.
    """

    def __init__(self, compute: Callable[[list[str]], Embedded], batch_size: int) -> None:
        self._compute = compute
        self._batch_size = batch_size
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()

    async def encode(self, sentences: list[str]) -> Embedded:
        """Returns the embeddings of one request's sentences; raises what `compute` raised for them."""
        request = _Request(sentences, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(request)
        return await request.answer  # cancelled together with the task that waits here

    async def run(self) -> None:
        """Computes batches until it is cancelled."""
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
