"""The choice among measured recipes: a plateau, not a peak, and the cheapest within noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from st_prompteol import TEMPLATES
from st_prompteol.evaluation.sts import spearman
from st_prompteol.recipes import Recipe
from st_prompteol.recipes.choosing import choose, cost_of, smooth
from st_prompteol.recipes.rounds import plan
from st_prompteol.recipes.statistics import Bootstrap, Gain, gain

TOKENS = {TEMPLATES["prompt"]: 5, TEMPLATES["prompteol"]: 10}


class Measured:
    """Similarities of made-up recipes: the gold scores with noise, the more the worse."""

    def __init__(self, noise: dict[Recipe, float], pairs: int) -> None:
        rng = np.random.default_rng(0)
        gold, common = rng.normal(size=pairs), rng.normal(size=pairs)
        self.found = {
            recipe: gold + scale * (common + 0.1 * rng.normal(size=pairs)) for recipe, scale in noise.items()
        }
        self.gold, self.bootstrap = gold, Bootstrap(gold)

    def score(self, recipe: Recipe) -> float:
        return spearman(self.found[recipe], self.gold)

    def gain(self, recipe: Recipe, over: Recipe) -> Gain:
        resampled = [self.bootstrap.scores(self.found[one]) for one in (recipe, over)]
        return gain(self.score(recipe) - self.score(over), *resampled)


def cost(recipe: Recipe) -> tuple[int, ...]:
    return cost_of(recipe, TOKENS[recipe.template], layer=-1)


def test_scores_are_smoothed_along_the_layers_of_one_line() -> None:
    one, other = TEMPLATES["prompt"], TEMPLATES["prompteol"]
    scores = {Recipe(one, layer): score for layer, score in ((-5, 8.0), (-1, 3.0), (-2, 6.0))}  # -5 is beside -2
    scores |= {Recipe(one, -1, "scale"): 50.0, Recipe(other, -2): 70.0, Recipe(other, -1): 40.0}
    expected = [(2 * 8 + 6) / 3, (2 * 3 + 6) / 3, (3 + 2 * 6 + 8) / 4, 50, (2 * 70 + 40) / 3, (2 * 40 + 70) / 3]
    assert list(smooth(scores).values()) == pytest.approx(expected)
    assert list(smooth(scores)) == list(scores)


def test_a_plateau_wins_over_a_peak_and_the_cheapest_within_noise() -> None:
    template = TEMPLATES["prompteol"]
    scales = [1.0, 1.0, 0.2, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 1.0]  # a peak at -3, a plateau from -6 to -9
    layers = {Recipe(template, -place): scale for place, scale in enumerate(scales, start=1)}
    measured: Any = Measured(layers, 400)
    assert max(layers, key=measured.score).layer == -3
    smoothed = smooth({recipe: measured.score(recipe) for recipe in layers})
    assert max(smoothed, key=smoothed.__getitem__).layer in (-7, -8)
    del layers[Recipe(template, -3)]
    assert [recipe.layer for recipe in choose(measured, layers, Recipe(template, -1), cost)] == [-6, -7, -8, -9]


def test_among_recipes_within_noise_tokens_count_first_then_the_layer_then_the_method() -> None:
    short, long = TEMPLATES["prompt"], TEMPLATES["prompteol"]
    recipes = [
        Recipe(short, -1),
        Recipe(short, -1, "center"),
        Recipe(short, -1, "scale"),
        Recipe(short, -1, "whiten"),
        Recipe(short, -3),
        Recipe(long, -1),
    ]
    noise = dict(zip(recipes, np.linspace(0.6, 0.55, len(recipes)), strict=True))  # the costlier, the better by chance
    measured: Any = Measured(noise, 40)
    assert choose(measured, recipes[::-1], recipes[0], cost) == recipes
    clear: Any = Measured({**noise, recipes[3]: 0.05}, 400)
    assert choose(clear, [recipe for recipe in recipes if recipe.layer == -1], recipes[0], cost) == [recipes[3]]


def test_the_start_is_not_replaced_by_a_cheaper_recipe_that_scores_less() -> None:
    cheap, start = Recipe(TEMPLATES["prompt"], -1), Recipe(TEMPLATES["prompteol"], -1)
    measured: Any = Measured({cheap: 0.52, start: 0.5}, 40)
    assert measured.gain(start, cheap).is_noise
    assert measured.score(start) > measured.score(cheap)
    assert choose(measured, [cheap, start], start, cost) == [start, cheap]
    assert choose(measured, [cheap, start], cheap, cost) == [cheap, start]


def test_no_round_has_fewer_than_50_pairs_unless_there_are_fewer() -> None:
    assert plan(1500) == {150: 1.0, 300: 1 / 3, 600: 2 / 15, 1500: 1 / 15}
    assert plan(60) == {50: 1.0, 60: 1 / 15}
    assert plan(28) == {28: 1.0}
