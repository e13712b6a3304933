"""Search for the best recipe: templates, layers and centering first, then demonstrations by successive halving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from tqdm.auto import tqdm

from st_prompteol.evaluation.sts import cosine_similarities, spearman
from st_prompteol.failures import check_whole
from st_prompteol.llm.decoders import check_layer
from st_prompteol.model import CENTERING, PromptEOL
from st_prompteol.modules import LastTokenPooling
from st_prompteol.prompt.template import TEMPLATES, Demonstration, PromptTemplate, get_template
from st_prompteol.recipes.candidates import Candidate, drop_duplicates, problem, usable
from st_prompteol.recipes.card import describe_search
from st_prompteol.recipes.log import Similarities
from st_prompteol.recipes.measure import Measurements
from st_prompteol.recipes.pairs import ScoredPair, split_pairs
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.result import SearchResult, Step, Trial
from st_prompteol.recipes.statistics import Bootstrap, gain

# Fraction of the pairs and of the initial candidates in each round. For 300 candidates, the rounds encode 21 % of the
# sentences of an exhaustive search.
ROUNDS = ((0.1, 1.0), (0.2, 1 / 3), (0.4, 2 / 15), (1.0, 1 / 15))
_FINALISTS = 3  # minimum: a winner needs a runner-up


def search(
    model: PromptEOL,
    pairs: Iterable[ScoredPair],
    candidates: Iterable[Demonstration | Candidate] = (),
    *,
    templates: Sequence[str | PromptTemplate] | None = None,
    layers: Sequence[int] | None = None,
    center: bool = True,
    holdout: float = 0.0,
    shots: int = 1,
    exhaustive: bool = False,
    log: str | Path | None = None,
    batch_size: int = 64,
    devices: Sequence[str] | None = None,
    seed: int = 0,
    show: Callable[[str], None] = lambda line: None,
    show_progress_bar: bool = False,
) -> SearchResult:
    """Finds the recipe whose cosine similarities rank pairs best, and applies it to the model.

    First, every template is tried at every layer, centered and not, in one pass over the sentences per template. Then
    every candidate is tried as the only demonstration of the best of these recipes, by successive halving: all
    candidates on a tenth of the pairs, the better ones on more, the finalists on all. If the best recipe with another
    template is worse only within noise, the finalists are also tried with that recipe. Afterwards the model has the
    winner's template, layer and centering, and its card describes the measurements; if the search fails, the model is
    unchanged.

    Centering subtracts the mean embedding of the distinct sentences of the pairs.

    Args:
        model: The model; an existing centering is replaced or removed.
        pairs: Pairs of two sentences and a gold score, e.g. STS-B dev.
        candidates: Demonstrations to try; duplicates and those that do not fit are skipped. Defaults to none.
        templates: Templates to try, see `PromptEOL`. Defaults to None: all of `TEMPLATES` except `"none"`, and the
            model's own.
        layers: Hidden states to try. Defaults to None: all.
        center: Whether to also try centered embeddings. Defaults to True.
        holdout: Fraction of held-out pairs, on which only the winner is measured, once, at the end. Defaults to 0.
        shots: Maximum number of demonstrations. Above 1, every candidate is tried before and after the chosen ones,
            and added while its gain is more than noise. Defaults to 1.
        exhaustive: Whether to try every candidate on all pairs. Defaults to False.
        log: Log file of measurements (`search.jsonl`), which makes the search resumable: logged measurements are not
            repeated. Defaults to None: no log.
        batch_size: Number of sentences per forward pass. Defaults to 64.
        devices: Devices to distribute templates and candidates over, with a copy of the model on each. Defaults to
            the model's device.
        seed: Seed of the shuffling of pairs and of the bootstrap resamples. Defaults to 0.
        show: Called with a line of text per template and round. Defaults to ignoring it.
        show_progress_bar: Whether to show a progress bar. Defaults to False.

    Returns:
        The winner, the gain from each ingredient, and all trials.

    Raises:
        ValueError: If no candidate fits, there are fewer than 10 pairs, gold scores are not finite or all equal,
            embeddings are not finite, an argument is out of range, or the model has modules that the search does not
            support.
        OSError: If the log cannot be read or written.

    Example:
        >>> model, pairs = PromptEOL("tiny"), read_pairs("examples/pairs.tsv")
        >>> result = search(model, pairs, templates=["prompteol", "prompt"], layers=[-1, -2])
        >>> len(result.trials), result.winner.pairs
        (8, 40)
        >>> model.template == result.winner.recipe.template and model.layer == result.winner.recipe.layer
        True
    """
    check_whole(shots=shots, batch_size=batch_size)
    tried = drop_duplicates(one if isinstance(one, Candidate) else Candidate(one) for one in candidates)
    searched, held_out = split_pairs(pairs, holdout, seed)
    _check_modules(model)
    own = replace(model.template, demonstrations=())
    if templates is None:
        chosen = [*(template for name, template in TEMPLATES.items() if name != "none"), own]
    else:
        chosen = [replace(get_template(template), demonstrations=()) for template in templates]
    fitting = {template: usable(model, template, tried) for template in chosen}  # checked before hours of work
    if tried and not any(fitting.values()):
        raise ValueError(
            f"None of the {len(tried)} candidates fits a template and max_seq_length={model.max_seq_length}: give "
            "shorter ones, or a model with a longer context."
        )
    blocks = model[0].config.get_text_config().num_hidden_layers
    read = list(range(-1, -blocks - 1, -1)) if layers is None else list(layers)
    for layer in read:
        check_layer(layer, model[0].config)
    grid = [
        Recipe(template, layer, centered)
        for template in dict.fromkeys(chosen)
        for layer in dict.fromkeys(read)
        for centered in (False, True)[: 1 + center]
    ]
    start = Recipe(own if own in chosen else chosen[0], model.layer if model.layer in read else read[0])
    alone = model.view()
    del alone[2:]  # recipes are measured without modules after the pooling
    measurements = Measurements(_replicas(alone, devices), searched, log=log, batch_size=batch_size, seed=seed)
    rounds = _Rounds(measurements, exhaustive, show, show_progress_bar)
    ranked = rounds.run_grid(grid)
    sources = dict.fromkeys(grid, "")
    chain = [ranked[0]]  # the best recipe, then each with one more demonstration
    if tried:
        bases = _best_two(measurements, [recipe for recipe in ranked if fitting[recipe.template]])
        sources |= rounds.run_candidates(bases, fitting)
        shown = [one for one in sources if one.demonstrations and measurements.seen(one) == len(searched)]
        best = max(shown, key=measurements.score)
        if measurements.score(best) > measurements.score(best.with_demonstrations()):
            found, longer = rounds.lengthen(model, best, tried, shots)
            sources |= found
            if measurements.score(longer[-1]) > measurements.score(ranked[0]):
                chain = [best.with_demonstrations(), *longer]
    winner = chain[-1]

    def trial(recipe: Recipe) -> Trial:
        seen = measurements.seen(recipe)
        score = measurements.score(recipe, seen)
        return Trial(recipe, sources[recipe], seen, score, measurements.gain(recipe, start, seen))

    trials = sorted(map(trial, sources), key=lambda one: (-one.pairs, -one.score))
    others = [one for one in trials if one.pairs == len(searched) and one.recipe != winner]
    at_start = alone.view(start.template, start.layer)
    before = _similarities(at_start, held_out) if held_out else None
    mean = measurements.mean(winner) if winner.center else None
    if hasattr(model, CENTERING):
        delattr(model, CENTERING)
    model.template, model.layer = winner.template, winner.layer
    if mean is not None:
        model.center(mean=mean)
    result = SearchResult(
        winner=trial(winner),
        start=trial(start),
        steps=tuple(_steps(measurements, start, chain)),
        runner_up=others[0] if others else None,
        over_runner_up=measurements.gain(winner, others[0].recipe) if others else None,
        holdout=None
        if before is None
        else _hold(trial(winner), held_out, _similarities(model, held_out), before, seed),
        trials=tuple(trials),
        tokens=model[0].count_template_tokens(),
        start_tokens=at_start[0].count_template_tokens(),
        encodings=measurements.encodings,
    )
    model.model_card_data.measure("search", describe_search(result))
    return result


@dataclass(frozen=True)
class _Rounds:
    """The rounds of a search, each of which reports its best recipe."""

    measurements: Measurements
    exhaustive: bool
    show: Callable[[str], None]
    show_progress_bar: bool

    def run_grid(self, grid: Sequence[Recipe]) -> list[Recipe]:
        """Measures templates, layers and centering on all pairs; returns the recipes, best first."""
        total = self.measurements.total
        templates = dict.fromkeys(recipe.template for recipe in grid)
        with tqdm(templates, unit=" templates", disable=not self.show_progress_bar) as bar:
            self.measurements.measure(grid, total, progress=bar.update)
        ranked = sorted(grid, key=lambda recipe: -self.measurements.score(recipe))
        for template in templates:
            best = next(recipe for recipe in ranked if recipe.template == template)
            self.show(f"{best}: {self.measurements.score(best):.2f} on {total} pairs, the best of this template")
        return ranked

    def run_candidates(
        self, bases: Sequence[Recipe], fitting: Mapping[PromptTemplate, Sequence[Candidate]]
    ) -> dict[Recipe, str]:
        """Tries all candidates with the first recipe, and its finalists with the others; returns sources by recipe."""
        sources: dict[Recipe, str] = {}
        finalists: set[Demonstration] = set()
        for base in bases:
            arms = {
                base.with_demonstrations(one.demonstration): one.source
                for one in fitting[base.template]
                if base == bases[0] or one.demonstration in finalists
            }
            if not arms:
                continue
            finalists = {recipe.demonstrations[0] for recipe in self.halve(list(arms))}
            sources |= arms
        return sources

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
            best = self.halve(list(arms))[0]
            more = self.measurements.gain(best, chosen[-1])
            self.show(f"{best}: {more} over one demonstration less{' (noise)' * more.is_noise}")
            if more.is_noise or more.value <= 0:
                break
            chosen.append(best)
        return sources, chosen

    def halve(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Successive halving: measures fewer recipes on more pairs per round; returns the finalists, best first."""
        measurements, total = self.measurements, self.measurements.total
        alive = list(recipes)
        for share, kept in [(1.0, 1.0)] if self.exhaustive else ROUNDS:
            pairs = max(2, round(share * total))
            alive = alive[: max(_FINALISTS, round(kept * len(recipes)))]
            with tqdm(alive, desc=f"{pairs} pairs", unit=" candidates", disable=not self.show_progress_bar) as bar:
                measurements.measure(alive, pairs, progress=bar.update)
            alive.sort(key=lambda recipe: -measurements.score(recipe, pairs))
            best, without = alive[0], alive[0].with_demonstrations()
            self.show(
                f"{len(alive)} candidates on {pairs} pairs: best {measurements.score(best, pairs):.2f} ({best}), "
                f"without a demonstration {measurements.score(without, pairs):.2f}"
            )
        return alive


def _best_two(measurements: Measurements, ranked: Sequence[Recipe]) -> list[Recipe]:
    """Returns the best recipe, and the best with another template if their difference is noise."""
    best = ranked[0]
    second = next((recipe for recipe in ranked if recipe.template != best.template), None)
    return [best] if second is None or not measurements.gain(best, second).is_noise else [best, second]


def _steps(measurements: Measurements, start: Recipe, chain: Sequence[Recipe]) -> Iterator[Step]:
    """Yields the gain from each ingredient: template, layer, centering, and each demonstration of the chain."""
    base, before = chain[0], start
    changes = (
        ("template", replace(start, template=base.template)),
        ("layer", replace(start, template=base.template, layer=base.layer)),
        ("centering", base),
        *(("demonstration", recipe) for recipe in chain[1:]),
    )
    for ingredient, recipe in changes:
        if recipe != before:
            yield Step(ingredient, recipe, measurements.score(recipe), measurements.gain(recipe, before))
        before = recipe


def _check_modules(model: PromptEOL) -> None:
    """Raises ValueError if modules other than centering change how cosine similarities rank pairs."""
    kinds = [type(module) for name, module in model.named_children() if name != CENTERING]
    if kinds[1:] not in ([LastTokenPooling], [LastTokenPooling, Normalize]):
        names = ", ".join(type(module).__name__ for module in model)
        raise ValueError(f"A search needs a model of a transformer with last-token pooling, not of {names}.")


def _replicas(model: PromptEOL, devices: Sequence[str] | None) -> list[PromptEOL]:
    if not devices:
        return [model]
    if torch.device(devices[0]) != model.device:  # quantized weights cannot be moved
        model.to(devices[0])
    return [model, *(copy.deepcopy(model).to(device) for device in devices[1:])]


def _similarities(model: PromptEOL, pairs: Sequence[ScoredPair]) -> Similarities:
    return cosine_similarities(*(model.encode([pair[side] for pair in pairs]) for side in (0, 1)))


def _hold(winner: Trial, pairs: Sequence[ScoredPair], found: Similarities, before: Similarities, seed: int) -> Trial:
    """Returns the winner on the held-out pairs, with its gain over the start on them."""
    gold = np.array([score for _, _, score in pairs])
    bootstrap, score = Bootstrap(gold, seed=seed), spearman(found, gold)
    more = gain(score - spearman(before, gold), bootstrap.scores(found), bootstrap.scores(before))
    return replace(winner, pairs=len(pairs), score=score, gain=more)
