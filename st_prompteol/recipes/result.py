"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass

from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.statistics import Gain


@dataclass(frozen=True)
class Trial:
    """The measurement of one recipe.

    Args:
        recipe: The recipe.
        source: Source of its last demonstration, empty if it has none.
        pairs: Number of pairs on which it was measured.
        score: Spearman correlation on these pairs, x100.
        gain: Gain over the search's starting recipe, on the same pairs.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompteol"], layers=[-1])
        >>> result.winner.score >= result.start.score
        True
    """

    recipe: Recipe
    source: str
    pairs: int
    score: float
    gain: Gain


@dataclass(frozen=True)
class Step:
    """The gain from one ingredient of a recipe.

    Args:
        ingredient: `"template"`, `"layer"`, `"centering"` or `"demonstration"`.
        recipe: The recipe with the ingredient.
        score: Spearman correlation of this recipe on all pairs, x100.
        gain: Gain over the recipe without the ingredient.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), layers=[-1], center=False)
        >>> {step.ingredient for step in result.steps} <= {"template"}
        True
    """

    ingredient: str
    recipe: Recipe
    score: float
    gain: Gain


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
        winner: The best trial.
        start: The starting recipe, not centered: the model's own template and layer if they were tried, else the
            first that were.
        steps: The steps from the start to the winner, one ingredient each.
        runner_up: The best other trial on all pairs; None if there is no other.
        over_runner_up: The winner's gain over the runner-up; None without one.
        holdout: The winner on the held-out pairs; None if none were held out.
        trials: All trials, sorted by number of pairs, then by score, highest first.
        tokens: Number of tokens that BOS, demonstrations and template of the winner add to a sentence.
        start_tokens: Number of tokens that the starting recipe adds to a sentence.
        encodings: Number of sentences encoded by the search, including those of logged earlier runs.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompteol"], layers=[-1])
        >>> [trial.recipe.center for trial in result.trials] in ([True, False], [False, True])
        True
    """

    winner: Trial
    start: Trial
    steps: tuple[Step, ...]
    runner_up: Trial | None
    over_runner_up: Gain | None
    holdout: Trial | None
    trials: tuple[Trial, ...]
    tokens: int
    start_tokens: int
    encodings: int
