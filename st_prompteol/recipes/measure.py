"""Measures recipes on scored pairs, with a log of measurements as a cache."""

from __future__ import annotations

import hashlib
import json
import math
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
from st_prompteol.standardization import Standardization

Vectors = dict[int, npt.NDArray[np.float32]]  # layer -> embeddings, `(sentences, hidden_size)`


class Measurements:
    """Similarities and scores of recipes on the first pairs, each computed once.

    All layers and standardizations come from the same pass over the sentences.

    Args:
        models: The model, and copies of it on other devices; each is a transformer with last-token pooling.
        pairs: Scored pairs, in the order of the search.
        sentences: Distinct unlabeled sentences for the statistics of standardizations, in random order: on a share of
            the pairs the statistics are those of the same share of the sentences. None for the distinct sentences of
            the measured pairs.
        log: Log file of measurements, None for no file.
        batch_size: Number of sentences per forward pass.
        seed: Seed of the bootstrap resamples.
    """

    def __init__(
        self,
        models: Sequence[PromptEOL],
        pairs: Sequence[ScoredPair],
        *,
        sentences: Sequence[str] | None,
        log: str | Path | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self.gold = np.array([score for _, _, score in pairs])
        self.total = len(pairs)
        # by sentence, the smallest number of pairs whose measurement needs it
        of_pairs: dict[str, int] = {}
        for number, pair in enumerate(pairs, start=1):
            for text in pair[:2]:
                of_pairs.setdefault(text, number)
        statistics = of_pairs if sentences is None else _spread(sentences, self.total)
        since = {**statistics, **{text: min(at, statistics.get(text, at)) for text, at in of_pairs.items()}}
        self.sentences = sorted(since, key=since.__getitem__)  # so that the first pairs need the first sentences
        self._since = np.array([since[text] for text in self.sentences])
        places = {text: place for place, text in enumerate(self.sentences)}
        self._pairs = np.array([[places[text] for text in pair[:2]] for pair in pairs])
        self._statistics = np.array([places[text] for text in statistics])
        self._statistics_since = np.array(list(statistics.values()))
        self._of_pairs = sentences is None
        self._models, self._batch_size, self._seed = models, batch_size, seed
        key = {"data": _digest(pairs), "statistics": "pairs" if sentences is None else _digest(sentences)}
        self._log = SearchLog(log, {**model_key(models[0]), **key})
        self._vectors: dict[PromptTemplate, Vectors] = {}  # of templates that may be measured on more pairs
        self._standardizations: dict[Recipe, Standardization] = {}
        self._seen: dict[Recipe, int] = {}
        self._scores: dict[tuple[Recipe, int], float] = {}
        self._bootstraps: dict[int, Bootstrap] = {}
        self._resampled: dict[tuple[Recipe, int], Any] = {}

    def measure(
        self, recipes: Iterable[Recipe], pairs: int, progress: Callable[[int], Any] = lambda count: None
    ) -> None:
        """Measures recipes on the first pairs, in one pass per template, and logs each measurement immediately.

        Args:
            recipes: The recipes. Cached embeddings of other templates are dropped.
            pairs: Number of pairs; more than before for recipes that were measured before.
            progress: Called with the number of sentences after each batch.
        """
        recipes = list(recipes)
        for recipe in recipes:
            self._seen[recipe] = max(pairs, self._seen.get(recipe, 0))
        templates = {recipe.template for recipe in recipes}
        self._vectors = {template: kept for template, kept in self._vectors.items() if template in templates}
        for missing, encoded, vectors, seconds in self._encode(self._missing(recipes, pairs), pairs, progress):
            self._note(missing, pairs, encoded, vectors, seconds)

    def count_missing(self, recipes: Iterable[Recipe], pairs: int) -> int:
        """Returns the number of sentences that are encoded to measure recipes on the first pairs."""
        count = self._count_sentences(pairs)
        return sum(count - self._count_kept(missing) for missing in self._missing(recipes, pairs))

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

    def describe_statistics(self) -> str:
        """Returns in words which sentences' statistics standardize embeddings on all pairs."""
        kind = "distinct sentences of the pairs" if self._of_pairs else "unlabeled sentences"
        return f"{len(self._statistics):,} {kind}"

    def standardization(self, recipe: Recipe) -> Standardization | None:
        """Returns the standardization of a recipe on all pairs, None for plain embeddings.

        It is fitted in another pass over its sentences if the measurement was logged by an earlier run, or if it has a
        matrix: one matrix per recipe would fill the memory.
        """
        if recipe.standardization is None:
            return None
        if recipe not in self._standardizations:
            texts = [self.sentences[place] for place in self._statistics]
            vectors = encode_layers(self._models[0], recipe.template, [recipe.layer], texts, self._batch_size)
            self._standardizations[recipe] = self._fit(recipe, vectors[recipe.layer])
        return self._standardizations[recipe]

    def _count_sentences(self, pairs: int) -> int:
        return int(np.searchsorted(self._since, pairs, side="right"))

    def _count_kept(self, recipes: Sequence[Recipe]) -> int:
        """Returns the number of sentences whose embeddings are kept at all layers of recipes of one template."""
        kept = self._vectors.get(recipes[0].template, {})
        return min(len(kept.get(recipe.layer, ())) for recipe in recipes)

    def _missing(self, recipes: Iterable[Recipe], pairs: int) -> list[list[Recipe]]:
        """Returns the recipes that are not in the log, by template."""
        missing: dict[PromptTemplate, list[Recipe]] = {}
        for recipe in recipes:
            if self._log.get(recipe, pairs) is None:
                missing.setdefault(recipe.template, []).append(recipe)
        return list(missing.values())

    def _resample(self, recipe: Recipe, pairs: int) -> Any:
        if pairs not in self._bootstraps:
            self._bootstraps[pairs] = Bootstrap(self.gold[:pairs], seed=self._seed)
        key = (recipe, pairs)
        if key not in self._resampled:
            self._resampled[key] = self._bootstraps[pairs].scores(self.similarities(recipe, pairs))
        return self._resampled[key]

    def _encode(
        self, work: Sequence[list[Recipe]], pairs: int, progress: Callable[[int], Any]
    ) -> Iterator[tuple[list[Recipe], int, Vectors, float]]:
        """Yields per template its recipes, the number of encoded sentences, all embeddings and the seconds it took."""

        def run(model: PromptEOL, recipes: list[Recipe]) -> tuple[list[Recipe], int, Vectors, float]:
            start = time.perf_counter()
            template, layers = recipes[0].template, sorted({recipe.layer for recipe in recipes})
            known = self._count_kept(recipes)
            new = self.sentences[known : self._count_sentences(pairs)]
            vectors = encode_layers(model, template, layers, new, self._batch_size, progress) if new else {}
            if known:
                kept = self._vectors[template]
                vectors = {
                    layer: np.concatenate([kept[layer][:known], *([vectors[layer]] if new else [])])
                    for layer in layers
                }
            return recipes, len(new), vectors, time.perf_counter() - start

        with ThreadPoolExecutor(len(self._models)) as pool:
            for start in range(0, len(work), len(self._models)):
                yield from pool.map(run, self._models, work[start : start + len(self._models)])

    def _fit(self, recipe: Recipe, embeddings: npt.NDArray[np.float32]) -> Standardization:
        assert recipe.standardization is not None
        return Standardization.fit(embeddings, recipe.standardization, dtype=self._models[0].dtype)

    def _note(self, recipes: list[Recipe], pairs: int, encoded: int, vectors: Vectors, seconds: float) -> None:
        first, second = self._pairs[:pairs].T
        statistics = self._statistics[self._statistics_since <= pairs]
        dimension = self._models[0].truncate_dim
        measured = {}
        for recipe in recipes:
            embeddings = vectors[recipe.layer]
            if recipe.standardization is not None:
                try:
                    standardization = self._fit(recipe, embeddings[statistics])
                except ValueError:  # all equal, as an early layer may be in half precision: they rank no pairs
                    measured[recipe] = np.zeros(pairs, dtype=np.float32), 0.0
                    continue
                embeddings = standardization.apply(embeddings)
                if pairs == self.total and standardization.factor.ndim == 1:
                    self._standardizations[recipe] = standardization
            embeddings = embeddings[:, :dimension]
            similarities = cosine_similarities(embeddings[first], embeddings[second])
            measured[recipe] = similarities, spearman(similarities, self.gold[:pairs])
        self._vectors.pop(recipes[0].template, None)
        if pairs < self.total:
            self._vectors[recipes[0].template] = vectors
        self._log.add(measured, pairs, encoded, seconds)


def encode_layers(
    model: PromptEOL,
    template: PromptTemplate,
    layers: Sequence[int],
    sentences: Sequence[str],
    batch_size: int = 64,
    progress: Callable[[int], Any] = lambda count: None,
) -> Vectors:
    """Encodes sentences once and returns their embeddings at several layers, in all dimensions.

    Args:
        model: A transformer with last-token pooling.
        template: The template.
        layers: The hidden states to read, in a single pass.
        sentences: Distinct sentences.
        batch_size: Number of sentences per forward pass. Defaults to 64.
        progress: Called with the number of sentences after each batch. Defaults to ignoring it.

    Raises:
        ValueError: If a layer is out of range, or embeddings are not finite.
    """
    deepest, *inner = sorted(set(layers), reverse=True)
    view = model.view(template, deepest)
    view.truncate_dim = None
    reading = Reading(True, tuple(inner))
    names = {deepest: "sentence_embedding", **{layer: inner_embeddings(layer) for layer in inner}}
    vectors: Vectors = {}
    order = sorted(range(len(sentences)), key=lambda place: -len(sentences[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [sentences[place] for place in places]
        rows = view.encode(batch, output_value=None, batch_size=batch_size, reading=reading)
        for layer, name in names.items():
            embeddings = torch.stack([row[name] for row in rows]).float().cpu().numpy()
            check_finite(embeddings, batch)
            vectors.setdefault(layer, np.empty((len(sentences), embeddings.shape[1]), np.float32))[places] = embeddings
        progress(len(batch))
    return vectors


def _spread(sentences: Sequence[str], pairs: int) -> dict[str, int]:
    """Returns, by sentence, the smallest number of pairs whose share of the sentences holds it; two at least."""
    count = len(sentences)
    return {text: 1 if number <= 2 else math.ceil(number * pairs / count) for number, text in enumerate(sentences, 1)}


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([*values]).encode()).hexdigest()[:16]
