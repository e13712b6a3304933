"""The rounds of a search: templates, layers and standardizations first, then demonstrations by successive halving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from st_prompteol.model import PromptEOL
from st_prompteol.prompt.template import PromptTemplate
from st_prompteol.recipes.candidates import Candidate, problem
from st_prompteol.recipes.choosing import choose, smooth
from st_prompteol.recipes.measure import Measurements
from st_prompteol.recipes.recipe import Recipe

# Fraction of the pairs and of the initial candidates in each round. For 300 candidates, the rounds encode 21 % of the
# sentences of an exhaustive search.
ROUNDS = ((0.1, 1.0), (0.2, 1 / 3), (0.4, 2 / 15), (1.0, 1 / 15))
_FEWEST_PAIRS = 50  # of a round: Spearman's correlation on fewer says too little
_FINALISTS = 3  # minimum


def plan(pairs: int) -> dict[int, float]:
    """Returns the fraction of the initial candidates in each round, by the round's number of pairs.

    Rounds that would have the same number of pairs are one.

    Example:
        >>> [list(plan(pairs)) for pairs in (1500, 200, 40)]
        [[150, 300, 600, 1500], [50, 80, 200], [40]]
    """
    rounds: dict[int, float] = {}
    for share, kept in ROUNDS:
        rounds.setdefault(min(pairs, max(_FEWEST_PAIRS, round(share * pairs))), kept)
    return rounds


@dataclass(frozen=True)
class Rounds:
    """The rounds of a search, each of which reports its best recipe.

    Args:
        measurements: Measures the recipes.
        start: The starting recipe.
        cost: Returns the cost of a recipe: among recipes within noise of the best, the cheapest is chosen.
        exhaustive: Whether to measure every candidate on all pairs.
        show: Called with a line of text per template and round.
        show_progress_bar: Whether to show a progress bar per round.
    """

    measurements: Measurements
    start: Recipe
    cost: Callable[[Recipe], tuple[int, ...]]
    exhaustive: bool
    show: Callable[[str], None]
    show_progress_bar: bool

    def run_grid(self, grid: Sequence[Recipe]) -> None:
        """Measures templates, layers and standardizations on all pairs."""
        total, templates = self.measurements.total, dict.fromkeys(recipe.template for recipe in grid)
        self.show(
            f"{len(grid):,} recipes of {len(templates)} templates on {total:,} pairs: "
            f"{self.measurements.count_missing(grid, total):,} sentences to encode"
        )
        self._measure(grid, total, "recipes")
        smoothed = smooth({recipe: self.measurements.score(recipe) for recipe in grid})
        for template in templates:
            best = max((recipe for recipe in grid if recipe.template == template), key=smoothed.__getitem__)
            self.show(f"{best}: {self.measurements.score(best):.2f} on {total} pairs, the best of this template")

    def choose(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        """Returns the recipes that are not worse than the best by more than noise, the cheapest first."""
        return choose(self.measurements, recipes, self.start, self.cost)

    def run_candidates(
        self, bases: Sequence[Recipe], fitting: Mapping[PromptTemplate, Sequence[Candidate]]
    ) -> tuple[dict[Recipe, str], list[Recipe]]:
        """Tries all candidates with the first recipe, and its finalists with the others.

        Returns:
            Sources by tried recipe, and the finalists of all.
        """
        sources: dict[Recipe, str] = {}
        finalists: list[Recipe] = []
        for base in bases:
            found = {recipe.demonstrations[0] for recipe in finalists}
            arms = {
                base.with_demonstrations(one.demonstration): one.source
                for one in fitting[base.template]
                if base == bases[0] or one.demonstration in found
            }
            if arms:
                finalists += self.halve(list(arms))
                sources |= arms
        return sources, finalists

    def take(self, without: Mapping[Recipe, Sequence[Recipe]]) -> Recipe | None:
        """Chooses the recipe whose last demonstration is worth its tokens; None if there is none.

        Args:
            without: By recipe, the recipes without the demonstration; its gain over each must be more than noise.
        """
        gains = {
            recipe: min((self.measurements.gain(recipe, other) for other in others), key=lambda gain: gain.low)
            for recipe, others in without.items()
        }
        useful = [recipe for recipe, gain in gains.items() if gain.low > 0]
        chosen = self.choose(useful)[0] if useful else None
        shown = chosen or max(gains, key=self.measurements.score)
        self.show(f"{shown}: {gains[shown]} over the best with one demonstration less{' (noise)' * (chosen is None)}")
        return chosen

    def lengthen(
        self, model: PromptEOL, recipe: Recipe, candidates: Sequence[Candidate], shots: int
    ) -> tuple[dict[Recipe, str], list[Recipe]]:
        """Adds demonstrations before or after those of a recipe while their gain is more than noise.

        Returns:
            Sources by tried recipe, and the chosen recipes, shortest first.
        """
        sources: dict[Recipe, str] = {}
        chosen = [recipe]
        while len(chosen) < shots:
            own = chosen[-1].demonstrations
            arms = {
                chosen[-1].with_demonstrations(*shown): one.source
                for one in candidates
                for shown in ((*own, one.demonstration), (one.demonstration, *own))
                if one.demonstration not in own
            }
            arms = {arm: source for arm, source in arms.items() if problem(model, arm.template) is None}
            if not arms:
                break
            sources |= arms
            longer = self.take(dict.fromkeys(self.halve(list(arms)), chosen[-1:]))
            if longer is None:
                break
            chosen.append(longer)
        return sources, chosen

    def halve(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Successive halving: measures fewer recipes on more pairs per round; returns the finalists, best first."""
        measurements, total = self.measurements, self.measurements.total
        alive = list(recipes)
        for pairs, kept in ({total: 1.0} if self.exhaustive else plan(total)).items():
            alive = alive[: max(_FINALISTS, round(kept * len(recipes)))]
            self._measure(alive, pairs, f"{len(alive)} candidates on {pairs} pairs")
            alive.sort(key=lambda recipe: -measurements.score(recipe, pairs))
            best, without = alive[0], alive[0].with_demonstrations()
            self.show(
                f"{len(alive)} candidates on {pairs} pairs: best {measurements.score(best, pairs):.2f} ({best}), "
                f"without a demonstration {measurements.score(without, pairs):.2f}"
            )
        return alive

    def _measure(self, recipes: Sequence[Recipe], pairs: int, name: str) -> None:
        count = self.measurements.count_missing(recipes, pairs)
        with tqdm(total=count, desc=name, unit=" sentences", disable=not self.show_progress_bar) as bar:
            self.measurements.measure(recipes, pairs, progress=bar.update)
