"""Search for the best recipe: what is tried, in which order, and what is put on the model."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Normalize

from st_prompteol.evaluation.sts import cosine_similarities, spearman
from st_prompteol.failures import check_whole
from st_prompteol.llm.decoders import check_layer
from st_prompteol.model import STANDARDIZATION, PromptEOL
from st_prompteol.modules import LastTokenPooling
from st_prompteol.prompt.template import TEMPLATES, Demonstration, PromptTemplate, get_template
from st_prompteol.recipes.candidates import Candidate, drop_duplicates, usable
from st_prompteol.recipes.card import describe_search
from st_prompteol.recipes.choosing import cost_of
from st_prompteol.recipes.log import Similarities
from st_prompteol.recipes.measure import Measurements
from st_prompteol.recipes.pairs import ScoredPair, split_pairs
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.result import SearchResult, Step, Trial
from st_prompteol.recipes.rounds import Rounds
from st_prompteol.recipes.statistics import Bootstrap, gain
from st_prompteol.standardization import METHODS, Method, distinct_sentences


def search(
    model: PromptEOL,
    pairs: Iterable[ScoredPair],
    candidates: Iterable[Demonstration | Candidate] = (),
    *,
    templates: Sequence[str | PromptTemplate] | None = None,
    layers: Sequence[int] | None = None,
    standardize: Sequence[Method] = METHODS,
    sentences: Sequence[str] | None = None,
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

    First, every template is tried at every layer, plain and with each standardization, in one pass over the sentences
    per template. A recipe is ranked by its score averaged with those of the neighboring layers, so that a plateau wins
    over a peak. Among recipes whose difference from the best is noise and that score no less than the start, the
    cheapest is chosen: the one with the fewest template tokens, then with the layer nearest to the start's, then plain
    before `"center"`, `"scale"`, `"whiten"`.

    Then every candidate is tried as the only demonstration of the chosen recipe, by successive halving: all candidates
    on a tenth of the pairs, but on 50 at least, the better ones on more, the finalists on all. If the best recipe with
    another template is worse only within noise, the finalists are also tried with that recipe. A demonstration is
    taken if its gain over the recipe without it is more than noise.

    Afterwards the model has the winner's template, layer and standardization, and its card describes the measurements;
    if the search fails, the model is unchanged.

    Args:
        model: The model; an existing standardization is replaced or removed.
        pairs: Pairs of two sentences and a gold score, e.g. STS-B dev.
        candidates: Demonstrations to try; duplicates and those that do not fit are skipped. Defaults to none.
        templates: Templates to try, see `PromptEOL`. Defaults to None: all of `TEMPLATES` except `"none"`, and the
            model's own.
        layers: Hidden states to try. Defaults to None: all.
        standardize: Methods of `PromptEOL.standardize` to try beside plain embeddings. Defaults to all.
        sentences: Unlabeled sentences of the kind that will be embedded, whose statistics standardize embeddings; a
            round on a share of the pairs uses the same share of them. Defaults to None: the distinct sentences of the
            measured pairs.
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
        ValueError: If no candidate fits, there are fewer than 10 pairs or 2 distinct sentences, gold scores are not
            finite or all equal, embeddings are not finite, an argument is out of range, or the model has modules that
            the search does not support.
        OSError: If the log cannot be read or written.

    Example:
        >>> model, pairs = PromptEOL("tiny"), read_pairs("examples/pairs.tsv")
        >>> result = search(model, pairs, templates=["prompteol", "prompt"], layers=[-1, -2])
        >>> len(result.trials), result.winner.pairs
        (16, 40)
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
        Recipe(template, layer, method)
        for template in dict.fromkeys(chosen)
        for layer in dict.fromkeys(read)
        for method in (None, *dict.fromkeys(standardize))
    ]
    unlabeled = None if sentences is None or not standardize else _shuffle(sentences, seed)
    start = Recipe(own if own in chosen else chosen[0], model.layer if model.layer in read else read[0])
    alone = model.view()
    del alone[2:]  # recipes are measured without modules after the pooling

    @cache
    def count_tokens(template: PromptTemplate) -> int:
        tokens: int = alone.view(template)[0].count_template_tokens()
        return tokens

    measurements = Measurements(
        _replicas(alone, devices), searched, sentences=unlabeled, log=log, batch_size=batch_size, seed=seed
    )
    rounds = Rounds(
        measurements,
        start,
        lambda recipe: cost_of(recipe, count_tokens(recipe.template), start.layer),
        exhaustive,
        show,
        show_progress_bar,
    )
    rounds.run_grid(grid)
    level = rounds.choose(grid)
    sources = dict.fromkeys(grid, "")
    chain = [level[0]]  # the chosen recipe, then each with one more demonstration
    if tried:
        bases = rounds.choose(recipe for recipe in grid if fitting[recipe.template])
        others = [recipe for recipe in bases if recipe.template != bases[0].template]
        found, finalists = rounds.run_candidates([bases[0], *others[:1]], fitting)
        sources |= found
        best = rounds.take({recipe: (recipe.with_demonstrations(), level[0]) for recipe in finalists})
        if best is not None:
            found, longer = rounds.lengthen(model, best, tried, shots)
            sources |= found
            chain = [best.with_demonstrations(), *longer]
    winner = chain[-1]

    def trial(recipe: Recipe) -> Trial:
        seen = measurements.seen(recipe)
        score = measurements.score(recipe, seen)
        return Trial(recipe, sources[recipe], seen, score, measurements.gain(recipe, start, seen))

    trials = sorted(map(trial, sources), key=lambda one: (-one.pairs, -one.score))
    beside = [one for one in trials if one.pairs == len(searched) and one.recipe != winner]
    standardization = measurements.standardization(winner)
    before, after = (alone.view(recipe.template, recipe.layer) for recipe in (start, winner))
    if standardization is not None:
        after.standardize(standardization)
    result = SearchResult(
        winner=trial(winner),
        start=trial(start),
        steps=tuple(_steps(measurements, start, chain)),
        undecided=len(level),
        best_other=beside[0] if beside else None,
        over_best_other=measurements.gain(winner, beside[0].recipe) if beside else None,
        holdout=_hold(trial(winner), held_out, after, before, seed) if held_out else None,
        trials=tuple(trials),
        statistics=measurements.describe_statistics() if standardize else "",
        tokens=count_tokens(winner.template),
        start_tokens=count_tokens(start.template),
        encodings=measurements.encodings,
    )
    if hasattr(model, STANDARDIZATION):  # the model is changed last, after everything that can fail
        delattr(model, STANDARDIZATION)
    model.template, model.layer = winner.template, winner.layer
    if standardization is not None:
        model.standardize(standardization)
    model.model_card_data.measure("search", describe_search(result))
    return result


def _steps(measurements: Measurements, start: Recipe, chain: Sequence[Recipe]) -> Iterator[Step]:
    """Yields the gain from each ingredient: template, layer, standardization, and each demonstration of the chain."""
    base, before = chain[0], start
    changes = (
        ("template", replace(start, template=base.template)),
        ("layer", replace(start, template=base.template, layer=base.layer)),
        ("standardization", base),
        *(("demonstration", recipe) for recipe in chain[1:]),
    )
    for ingredient, recipe in changes:
        if recipe != before:
            yield Step(ingredient, recipe, measurements.score(recipe), measurements.gain(recipe, before))
        before = recipe


def _check_modules(model: PromptEOL) -> None:
    """Raises ValueError if modules other than a standardization change how cosine similarities rank pairs."""
    kinds = [type(module) for name, module in model.named_children() if name != STANDARDIZATION]
    if kinds[1:] not in ([LastTokenPooling], [LastTokenPooling, Normalize]):
        names = ", ".join(type(module).__name__ for module in model)
        raise ValueError(f"A search needs a model of a transformer with last-token pooling, not of {names}.")


def _replicas(model: PromptEOL, devices: Sequence[str] | None) -> list[PromptEOL]:
    if not devices:
        return [model]
    if torch.device(devices[0]) != model.device:  # quantized weights cannot be moved
        model.to(devices[0])
    return [model, *(copy.deepcopy(model).to(device) for device in devices[1:])]


def _shuffle(sentences: Sequence[str], seed: int) -> list[str]:
    """Returns the distinct sentences in random order, so that a share of them is like all."""
    distinct = distinct_sentences(sentences)
    return random.Random(seed).sample(distinct, len(distinct))


def _similarities(model: PromptEOL, pairs: Sequence[ScoredPair]) -> Similarities:
    return cosine_similarities(*(model.encode([pair[side] for pair in pairs]) for side in (0, 1)))


def _hold(winner: Trial, pairs: Sequence[ScoredPair], after: PromptEOL, before: PromptEOL, seed: int) -> Trial:
    """Returns the winner on the held-out pairs, with its gain over the start on them."""
    gold = np.array([score for _, _, score in pairs])
    found, over = _similarities(after, pairs), _similarities(before, pairs)
    bootstrap, score = Bootstrap(gold, seed=seed), spearman(found, gold)
    more = gain(score - spearman(over, gold), bootstrap.scores(found), bootstrap.scores(over))
    return replace(winner, pairs=len(pairs), score=score, gain=more)
