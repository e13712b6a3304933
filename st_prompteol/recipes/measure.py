"""Measures recipes on scored pairs, with a log of measurements as a cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from st_prompteol.evaluation.sts import cosine_similarities, spearman
from st_prompteol.llm.finite import check_finite
from st_prompteol.llm.reading import Reading, inner_embeddings
from st_prompteol.model import PromptEOL
from st_prompteol.prompt.template import PromptTemplate
from st_prompteol.recipes.log import SearchLog, Similarities, model_key
from st_prompteol.recipes.pairs import ScoredPair
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.statistics import Bootstrap, Gain, gain

Vectors = dict[int, npt.NDArray[np.float32]]  # layer -> embeddings, `(sentences, hidden_size)`


class Measurements:
    """Similarities and scores of recipes on the first pairs, each computed once.

    All layers, centered and not, come from the same pass over the sentences. Centering subtracts the mean embedding
    of the distinct sentences of the measured pairs.

    Args:
        models: The model, and copies of it on other devices; each is a transformer with last-token pooling.
        pairs: Scored pairs, in the order of the search.
        log: Log file of measurements, None for no file.
        batch_size: Number of sentences per forward pass.
        seed: Seed of the bootstrap resamples.
    """

    def __init__(
        self,
        models: Sequence[PromptEOL],
        pairs: Sequence[ScoredPair],
        *,
        log: str | Path | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self.gold = np.array([score for _, _, score in pairs])
        self.total = len(pairs)
        places: dict[str, int] = {}  # numbered by first occurrence: the first pairs have the first sentences
        self._pairs = np.array([[places.setdefault(text, len(places)) for text in pair[:2]] for pair in pairs])
        self.sentences = list(places)
        self._models, self._batch_size, self._seed = models, batch_size, seed
        data = hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()[:16]
        self._log = SearchLog(log, {**model_key(models[0]), "data": data})
        self._vectors: dict[PromptTemplate, Vectors] = {}  # of templates that may be measured on more pairs
        self._means: dict[Recipe, npt.NDArray[np.float32]] = {}
        self._seen: dict[Recipe, int] = {}
        self._scores: dict[tuple[Recipe, int], float] = {}
        self._bootstraps: dict[int, Bootstrap] = {}
        self._resampled: dict[tuple[Recipe, int], Any] = {}

    def measure(self, recipes: Iterable[Recipe], pairs: int, progress: Callable[[], Any] = lambda: None) -> None:
        """Measures recipes on the first pairs, in one pass per template, and logs each measurement immediately.

        Args:
            recipes: The recipes. Cached embeddings of other templates are dropped.
            pairs: Number of pairs; more than before for recipes that were measured before.
            progress: Called after each template.
        """
        work: dict[PromptTemplate, list[Recipe]] = {}
        for recipe in recipes:
            missing = work.setdefault(recipe.template, [])
            if self._log.get(recipe, pairs) is None:
                missing.append(recipe)
            self._seen[recipe] = max(pairs, self._seen.get(recipe, 0))
        self._vectors = {template: kept for template, kept in self._vectors.items() if template in work}
        for missing in work.values():
            if not missing:
                progress()
        for missing, encoded, vectors, seconds in self._encode([one for one in work.values() if one], pairs):
            self._note(missing, pairs, encoded, vectors, seconds)
            progress()

    @property
    def encodings(self) -> int:
        """Number of sentences encoded for all measurements, logged ones included: distinct sentences per template."""
        pairs: dict[PromptTemplate, int] = {}
        for recipe, seen in self._seen.items():
            pairs[recipe.template] = max(seen, pairs.get(recipe.template, 0))
        return sum(map(self._count_sentences, pairs.values()))

    def seen(self, recipe: Recipe) -> int:
        """Returns the number of pairs on which a recipe was measured."""
        return self._seen[recipe]

    def similarities(self, recipe: Recipe, pairs: int) -> Similarities:
        """Returns the cosine similarities of the first pairs, `(pairs,)`, as measured on these or on all pairs."""
        found = self._log.get(recipe, pairs)
        if found is None:
            found = self._log.get(recipe, self.total)
        if found is None:
            raise KeyError(f"{recipe} was measured neither on {pairs} pairs nor on all of them.")
        return found[:pairs]

    def score(self, recipe: Recipe, pairs: int | None = None) -> float:
        """Returns the Spearman correlation, x100, on the first pairs. Defaults to all pairs."""
        pairs = self.total if pairs is None else pairs
        if (recipe, pairs) not in self._scores:
            self._scores[recipe, pairs] = spearman(self.similarities(recipe, pairs), self.gold[:pairs])
        return self._scores[recipe, pairs]

    def gain(self, recipe: Recipe, over: Recipe, pairs: int | None = None) -> Gain:
        """Returns the gain of one recipe over another on the first pairs. Defaults to all pairs."""
        pairs = self.total if pairs is None else pairs
        difference = self.score(recipe, pairs) - self.score(over, pairs)
        return gain(difference, self._resample(recipe, pairs), self._resample(over, pairs))

    def mean(self, recipe: Recipe) -> npt.NDArray[np.float32]:
        """Returns the mean embedding of all sentences, `(hidden_size,)`; encodes them if similarities were logged."""
        if recipe not in self._means:
            vectors = encode_layers(self._models[0], recipe.template, [recipe.layer], self.sentences, self._batch_size)
            self._means[recipe] = vectors[recipe.layer].mean(axis=0)
        return self._means[recipe]

    def _count_sentences(self, pairs: int) -> int:
        return int(self._pairs[:pairs].max()) + 1

    def _resample(self, recipe: Recipe, pairs: int) -> Any:
        if pairs not in self._bootstraps:
            self._bootstraps[pairs] = Bootstrap(self.gold[:pairs], seed=self._seed)
        key = (recipe, pairs)
        if key not in self._resampled:
            self._resampled[key] = self._bootstraps[pairs].scores(self.similarities(recipe, pairs))
        return self._resampled[key]

    def _encode(self, work: Sequence[list[Recipe]], pairs: int) -> Iterator[tuple[list[Recipe], int, Vectors, float]]:
        """Yields per template its recipes, the number of encoded sentences, all embeddings and the seconds it took."""

        def run(model: PromptEOL, recipes: list[Recipe]) -> tuple[list[Recipe], int, Vectors, float]:
            start = time.perf_counter()
            template, layers = recipes[0].template, sorted({recipe.layer for recipe in recipes})
            kept = self._vectors.get(template, {})
            known = len(kept[layers[0]]) if set(layers) <= kept.keys() else 0
            new = self.sentences[known : self._count_sentences(pairs)]
            vectors = encode_layers(model, template, layers, new, self._batch_size) if new else {}
            if known:
                vectors = {
                    layer: np.concatenate([kept[layer], *([vectors[layer]] if new else [])]) for layer in layers
                }
            return recipes, len(new), vectors, time.perf_counter() - start

        with ThreadPoolExecutor(len(self._models)) as pool:
            for start in range(0, len(work), len(self._models)):
                yield from pool.map(run, self._models, work[start : start + len(self._models)])

    def _note(self, recipes: list[Recipe], pairs: int, encoded: int, vectors: Vectors, seconds: float) -> None:
        first, second = self._pairs[:pairs].T
        dimension = self._models[0].truncate_dim
        measured = {}
        for recipe in recipes:
            embeddings = vectors[recipe.layer]
            if recipe.center:
                mean = embeddings.mean(axis=0)
                embeddings = embeddings - mean
                if pairs == self.total:
                    self._means[recipe] = mean
            embeddings = embeddings[:, :dimension]
            similarities = cosine_similarities(embeddings[first], embeddings[second])
            measured[recipe] = similarities, spearman(similarities, self.gold[:pairs])
        self._vectors.pop(recipes[0].template, None)
        if pairs < self.total:
            self._vectors[recipes[0].template] = vectors
        self._log.add(measured, pairs, encoded, seconds)


def encode_layers(
    model: PromptEOL, template: PromptTemplate, layers: Sequence[int], sentences: Sequence[str], batch_size: int = 64
) -> Vectors:
    """Encodes sentences once and returns their embeddings at several layers.

    Args:
        model: A transformer with last-token pooling.
        template: The template.
        layers: The hidden states to read, in a single pass.
        sentences: Distinct sentences.
        batch_size: Number of sentences per forward pass. Defaults to 64.

    Raises:
        ValueError: If a layer is out of range, or embeddings are not finite.
    """
    deepest, *inner = sorted(set(layers), reverse=True)
    view = model.view(template, deepest)
    rows = view.encode(list(sentences), output_value=None, batch_size=batch_size, reading=Reading(True, tuple(inner)))
    names = {deepest: "sentence_embedding", **{layer: inner_embeddings(layer) for layer in inner}}
    vectors = {layer: torch.stack([row[name] for row in rows]).float().cpu().numpy() for layer, name in names.items()}
    for embeddings in vectors.values():
        check_finite(embeddings, sentences)
    return vectors
