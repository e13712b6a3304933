"""Measuring demonstrations on scored pairs: what is known is looked up, what is not is encoded and written down."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch

from st_prompteol.demonstrations.candidates import Candidate
from st_prompteol.demonstrations.encoder import ShotEncoder
from st_prompteol.demonstrations.log import SearchLog, Similarities, Subset, model_key
from st_prompteol.demonstrations.statistics import spearman
from st_prompteol.evaluation.sts import cosine_similarities
from st_prompteol.model import PromptEOL
from st_prompteol.template import Demonstration

logger = logging.getLogger(__name__)

Shots = tuple[Demonstration, ...]
ScoredPair = tuple[str, str, float]
Tried = TypeVar("Tried", Candidate, Shots)

_FEWEST_PAIRS = 10


class Measurer:
    """Similarities and scores of demonstrations on the first of the pairs, each pair measured once.

    Args:
        model: The model; its template and layer change.
        pairs: Scored pairs, in the order of the search.
        stops: Numbers of pairs, ascending, the last one all: what is between two of them is measured at once.
        layers: Hidden states to read.
        log: Where measurements are kept, None for nowhere.
        batch_size: Sentences per forward pass.
        devices: Where copies of the model work side by side, None for the model alone.
    """

    def __init__(
        self,
        model: PromptEOL,
        pairs: Sequence[ScoredPair],
        stops: Sequence[int],
        *,
        layers: Sequence[int],
        log: str | Path | None,
        batch_size: int,
        devices: Sequence[str] | None,
    ) -> None:
        self.gold = np.array([score for _, _, score in pairs])
        self.layers = tuple(dict.fromkeys(layers))
        sentences: dict[str, int] = {}
        places = [[sentences.setdefault(sentence, len(sentences)) for sentence in pair[:2]] for pair in pairs]
        self._pairs = np.array(places)  # (pairs, 2), of indices of sentences
        self.distinct = len(sentences)
        self._subsets = [(start, stop) for start, stop in zip((0, *stops), stops, strict=False) if start < stop]
        subsets_of = [set(self._pairs[slice(*subset)].flat) for subset in self._subsets]
        count = [sum(sentence in subset for subset in subsets_of) for sentence in range(self.distinct)]
        self._recurring = {sentence for sentence in range(self.distinct) if count[sentence] > 1}
        self._vectors: dict[tuple[Shots, int], dict[int, Any]] = {}  # of those that recur in a later subset
        models = _replicas(model, devices)
        self._encoders = [ShotEncoder(one, list(sentences), self.layers, batch_size) for one in models]
        data = hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()[:16]
        self._log = SearchLog(log, {**model_key(model), "data": data})
        self._known: dict[tuple[Shots, int], list[Similarities]] = {}
        self._means: dict[tuple[Shots, int, int], float] = {}

    def measure(self, arms: Sequence[Shots], stop: int, progress: Callable[[], Any] = lambda: None) -> None:
        """Measures arms on the first `stop` pairs, one of the stops; writes down each as soon as it is there."""
        work = []
        for arm in arms:
            missing = [subset for subset in self._subsets if subset[1] <= stop]
            while missing and self._recall(arm, missing[0]):
                del missing[0]
            if missing:
                work.append((arm, missing))
            else:
                progress()
        for arm, subsets, sentences, embeddings, seconds in self._encode(work):
            self._note(arm, subsets, sentences, embeddings, seconds)
            progress()

    @property
    def encodings(self) -> int:
        """How many sentences all measurements take, each distinct one once per arm, those of the log included."""
        arms = {arm for arm, _ in self._known}
        return sum(len(np.unique(self._pairs[: self.seen(arm)])) for arm in arms)

    def seen(self, arm: Shots) -> int:
        """Returns on how many pairs an arm was measured."""
        return sum(map(len, self._known.get((arm, self.layers[0]), ())))

    def similarities(self, arm: Shots, layer: int, pairs: int) -> Similarities:
        """Returns the cosine similarities of the first pairs, `(pairs,)`."""
        return np.concatenate(self._known[arm, layer])[:pairs]

    def best(self, arm: Shots, pairs: int) -> tuple[int, float]:
        """Returns the layer with the best Spearman, x100, on the first pairs, and that score."""
        scores = {layer: self._score(arm, layer, pairs) for layer in self.layers}
        layer = max(scores, key=lambda layer: scores[layer])
        return layer, scores[layer]

    def _score(self, arm: Shots, layer: int, pairs: int) -> float:
        key = (arm, layer, pairs)
        if key not in self._means:
            self._means[key] = spearman(self.similarities(arm, layer, pairs), self.gold[:pairs])
        return self._means[key]

    def _recall(self, arm: Shots, subset: Subset) -> bool:
        """Whether a subset is measured, here or in the log."""
        if self.seen(arm) >= subset[1]:
            return True
        found = [self._log.get(arm, layer, subset) for layer in self.layers]
        if any(similarities is None for similarities in found):
            return False
        for layer, similarities in zip(self.layers, found, strict=True):
            if similarities is not None:
                self._known.setdefault((arm, layer), []).append(similarities)
        return True

    def _new_sentences(self, arm: Shots, subsets: Sequence[Subset]) -> list[int]:
        wanted = np.unique(np.concatenate([self._pairs[slice(*subset)].ravel() for subset in subsets]))
        kept = self._vectors.get((arm, self.layers[0]), {})
        return [int(sentence) for sentence in wanted if sentence not in kept]

    def _encode(self, work: list[tuple[Shots, list[Subset]]]) -> Iterator[Any]:
        """Yields arm, subsets, sentences, their embeddings per layer and the seconds, as they come."""

        def run(encoder: ShotEncoder, arm: Shots, subsets: list[Subset]) -> Any:
            start = time.perf_counter()
            sentences = self._new_sentences(arm, subsets)
            embeddings = encoder.encode(arm, sentences)
            return arm, subsets, sentences, embeddings, time.perf_counter() - start

        if len(self._encoders) == 1:
            yield from (run(self._encoders[0], *task) for task in work)
            return
        free: SimpleQueue[ShotEncoder] = SimpleQueue()
        for encoder in self._encoders:
            free.put(encoder)

        def run_on_a_free_one(arm: Shots, subsets: list[Subset]) -> Any:
            encoder = free.get()
            try:
                return run(encoder, arm, subsets)
            finally:
                free.put(encoder)

        with ThreadPoolExecutor(len(self._encoders)) as pool:
            futures = [pool.submit(run_on_a_free_one, *task) for task in work]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _note(self, arm: Shots, subsets: list[Subset], sentences: list[int], embeddings: Any, seconds: float) -> None:
        vectors = {}
        for layer in self.layers:
            kept = self._vectors.setdefault((arm, layer), {})
            vectors[layer] = {**kept, **dict(zip(sentences, embeddings[layer], strict=True))}
            kept.update({sentence: vectors[layer][sentence] for sentence in sentences if sentence in self._recurring})
        for subset in subsets:
            first, second = self._pairs[slice(*subset)].T
            measured = {}
            for layer in self.layers:
                left, right = (np.stack([vectors[layer][sentence] for sentence in side]) for side in (first, second))
                similarities = cosine_similarities(left, right)
                self._known.setdefault((arm, layer), []).append(similarities)
                measured[layer] = similarities, self._score(arm, layer, subset[1])
            share = (subset[1] - subset[0]) / sum(stop - start for start, stop in subsets)
            self._log.add(arm, measured, subset, round(share * len(sentences)), share * seconds)


def check_pairs(pairs: Iterable[ScoredPair], seed: int) -> list[ScoredPair]:
    """Returns the pairs in the order of the search; ValueError if they can tell nothing apart."""
    checked = [(str(first), str(second), float(score)) for first, second, score in pairs]
    gold = np.array([score for _, _, score in checked])
    if len(gold) < _FEWEST_PAIRS:
        raise ValueError(f"{len(gold)} scored pairs are too few for a search: give {_FEWEST_PAIRS} or more.")
    if not np.isfinite(gold).all():
        place = int(np.flatnonzero(~np.isfinite(gold))[0])
        raise ValueError(f"The gold score of pair {place + 1} is {gold[place]}, not a number: mend or drop the pair.")
    if np.ptp(gold) == 0:
        raise ValueError(
            f"All {len(gold)} gold scores are {gold[0]:g}, so no demonstration can rank pairs better than another: "
            "give pairs of different scores."
        )
    return [checked[place] for place in np.random.default_rng(seed).permutation(len(checked))]


def fitting(model: PromptEOL, tried: Sequence[Tried]) -> list[Tried]:
    """Returns what leaves room for a sentence in the model's context; says of candidates what does not.

    Raises:
        ValueError: If there are candidates and none of them does.
    """
    limit = model.max_seq_length
    fits: list[Tried] = []
    for one in tried:
        shots = (one.demonstration,) if isinstance(one, Candidate) else one
        text = replace(model.template, demonstrations=shots).render("x")
        tokens = len(model.tokenizer.tokenize_plainly(text))
        if limit is None or tokens <= limit:
            fits.append(one)
        elif isinstance(one, Candidate):
            logger.warning(
                "%r takes %d tokens with a sentence of one letter, but max_seq_length is %d: it is left out.",
                one.demonstration.sentence[:80],
                tokens,
                limit,
            )
    if not fits and tried and isinstance(tried[0], Candidate):
        raise ValueError(
            f"None of the {len(tried)} candidates fits into max_seq_length={limit}: give shorter ones, or a model "
            "with a longer context."
        )
    return fits


def _replicas(model: PromptEOL, devices: Sequence[str] | None) -> list[PromptEOL]:
    if not devices:
        return [model]
    if torch.device(devices[0]) != model.device:  # quantised weights stay where they were made
        model.to(devices[0])
    return [model, *(copy.deepcopy(model).to(device) for device in devices[1:])]
