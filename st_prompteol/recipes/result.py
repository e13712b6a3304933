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
        >>> result.trials[0].score >= result.winner.score
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
        ingredient: `"template"`, `"layer"`, `"standardization"` or `"demonstration"`.
        recipe: The recipe with the ingredient.
        score: Spearman correlation of this recipe on all pairs, x100.
        gain: Gain over the recipe without the ingredient.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), layers=[-1], standardize=())
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
        winner: The chosen trial, see `search`.
        start: The starting recipe, not standardized: the model's own template and layer if they were tried, else the
            first that were.
        steps: The steps from the start to the winner, one ingredient each.
        undecided: Number of recipes without added demonstrations between which the pairs cannot decide, because their
            differences from the best are noise; see `search` for which of them was chosen.
        best_other: The best other trial on all pairs; None if there is no other.
        over_best_other: The winner's gain over it, below 0 if its score is higher; None without one.
        holdout: The winner on the held-out pairs; None if none were held out.
        trials: All trials, sorted by number of pairs, then by score, highest first.
        statistics: The sentences whose statistics standardize embeddings, in words; empty if no standardization was
            tried.
        tokens: Number of tokens that BOS, demonstrations and template of the winner add to a sentence.
        start_tokens: Number of tokens that the starting recipe adds to a sentence.
        encodings: Number of sentences encoded by the search, including those of logged earlier runs.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompteol"], layers=[-1])
        >>> sorted(trial.recipe.standardization or "plain" for trial in result.trials)
        ['center', 'plain', 'scale', 'whiten']
    """

    winner: Trial
    start: Trial
    steps: tuple[Step, ...]
    undecided: int
    best_other: Trial | None
    over_best_other: Gain | None
    holdout: Trial | None
    trials: tuple[Trial, ...]
    statistics: str
    tokens: int
    start_tokens: int
    encodings: int
