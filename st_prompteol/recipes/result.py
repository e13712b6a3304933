"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.statistics import Gain


@dataclass(frozen=True)
class Trial:
    """What the search knows of a recipe that it tried.

    Args:
        recipe: The recipe.
        source: Where its last demonstration comes from, empty if it has none.
        pairs: On how many pairs it was tried.
        score: Spearman on these pairs, x100.
        gain: Over the recipe that the search started from, on the same pairs.

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
    """What one ingredient brought.

    Args:
        ingredient: `"template"`, `"layer"`, `"centring"` or `"demonstration"`.
        recipe: The recipe with it.
        score: Spearman of this recipe on all pairs, x100.
        gain: Over the recipe without it.

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
    """What a search found.

    Args:
        winner: The best trial.
        start: The model's own template and layer if they were among those tried, else the first of them; not centred.
        steps: From the start to the winner, an ingredient at a time.
        runner_up: The best other trial on all pairs, None if there is no other.
        over_runner_up: The winner's gain over it.
        holdout: The winner on the pairs that no step has seen, None if none were held out.
        trials: All that was tried, those on most pairs first, then the best first.
        tokens: How many tokens BOS, demonstrations and template of the winner add to a sentence.
        start_tokens: Those of the start.
        encodings: How many sentences the search encoded, those of an earlier run that the log knew included.

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
