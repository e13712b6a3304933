"""Chooses a recipe robustly: a plateau of layers, not a peak, and the cheapest recipe within noise of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from st_prompteol.prompt.template import PromptTemplate
from st_prompteol.recipes.measure import Measurements
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.standardization import METHODS, Method

_WEIGHTS = (1, 2, 1)  # of the layer below, the layer itself, the layer above
_BY_COST: tuple[Method | None, ...] = (None, *METHODS)


def cost_of(recipe: Recipe, tokens: int, layer: int) -> tuple[int, int, int]:
    """Returns the cost of a recipe, for comparisons: tokens first, then the distance of its layer, then its method.

    Args:
        recipe: The recipe.
        tokens: Number of tokens that its template adds to a sentence.
        layer: The layer to stay near to.

    Example:
        >>> cost_of(Recipe(PromptTemplate(), -3, "scale"), tokens=14, layer=-1)
        (14, 2, 2)
    """
    return tokens, abs(recipe.layer - layer), _BY_COST.index(recipe.standardization)


def smooth(scores: Mapping[Recipe, float]) -> dict[Recipe, float]:
    """Averages the score of each recipe with those of the neighboring layers, which have half its weight.

    Neighbors have the same template and standardization. The first and the last layer have one neighbor each.

    Example:
        >>> scores = {-1: 51.0, -2: 69.0, -3: 54.0}
        >>> list(smooth({Recipe(PromptTemplate(), layer): score for layer, score in scores.items()}).values())
        [57.0, 60.75, 59.0]
    """
    lines: dict[tuple[PromptTemplate, Method | None], list[Recipe]] = {}
    for recipe in sorted(scores, key=lambda recipe: -recipe.layer):
        lines.setdefault((recipe.template, recipe.standardization), []).append(recipe)
    smoothed: dict[Recipe, float] = {}
    for line in lines.values():
        sums = np.convolve([scores[recipe] for recipe in line], _WEIGHTS)[1:-1]
        weights = np.convolve(np.ones(len(line)), _WEIGHTS)[1:-1]
        smoothed.update(zip(line, map(float, sums / weights), strict=True))
    return {recipe: smoothed[recipe] for recipe in scores}


def choose(
    measurements: Measurements, recipes: Iterable[Recipe], start: Recipe, cost: Callable[[Recipe], tuple[int, ...]]
) -> list[Recipe]:
    """Returns the recipes that are not worse than the best by more than noise, the cheapest first.

    The best is the one with the highest smoothed score. Recipes that score less than both the best and the start come
    last: pairs that cannot decide are no reason to replace the start by less.

    Args:
        measurements: Their measurements on all pairs.
        recipes: The recipes.
        start: The starting recipe.
        cost: Returns the cost of a recipe.
    """
    smoothed = smooth({recipe: measurements.score(recipe) for recipe in recipes})
    best = max(smoothed, key=smoothed.__getitem__)
    least = min(measurements.score(best), measurements.score(start))
    level = [recipe for recipe in smoothed if measurements.gain(best, recipe).low <= 0]
    return sorted(level, key=lambda recipe: (measurements.score(recipe) < least, cost(recipe), -smoothed[recipe]))
