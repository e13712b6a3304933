"""The search for the best demonstrations: successive halving over scored pairs, then greedy addition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from st_prompteol.demonstrations.candidates import Candidate, check_quotes, drop_duplicates
from st_prompteol.demonstrations.measure import Measurer, ScoredPair, Shots, check_pairs, fitting
from st_prompteol.demonstrations.statistics import Bootstrap, Gain, gain
from st_prompteol.model import PromptEOL
from st_prompteol.template import Demonstration

# How much of the pairs each round sees, and how many of the candidates of the first one are in it. Of 300 candidates
# the rounds encode 21 % of what all of them would take.
ROUNDS = ((0.1, 1.0), (0.2, 1 / 3), (0.4, 2 / 15), (1.0, 1 / 15))
_FINALISTS = 3  # at least: a winner needs a runner-up


@dataclass(frozen=True)
class Trial:
    """What the search knows of demonstrations that it tried.

    Args:
        demonstrations: What stood in front of the sentences.
        source: Where they come from.
        layer: The best of the layers that were read.
        pairs: On how many pairs they were tried.
        score: Spearman on these pairs, x100.
        gain: Over no demonstration on the same pairs.
    """

    demonstrations: Shots
    source: str
    layer: int
    pairs: int
    score: float
    gain: Gain


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        winner: The best trial; it has no demonstrations if none beats having none.
        runner_up: The best trial with other demonstrations on all pairs, None if there is no other.
        over_runner_up: The winner's gain over it.
        baseline: No demonstration.
        trials: All that was tried, those on most pairs first, then the best first.
        steps: The gain of each demonstration that was added to the first one, the last of them perhaps not kept.
        encodings: How many sentences the measurements took, those of an earlier run included.
        exhaustive_encodings: How many it would have taken to try every candidate on all pairs.
    """

    winner: Trial
    runner_up: Trial | None
    over_runner_up: Gain | None
    baseline: Trial
    trials: tuple[Trial, ...]
    steps: tuple[Gain, ...]
    encodings: int
    exhaustive_encodings: int


def search_demonstrations(
    model: PromptEOL,
    candidates: Iterable[Demonstration | Candidate],
    pairs: Iterable[ScoredPair],
    *,
    shots: int = 1,
    layers: Sequence[int] | None = None,
    exhaustive: bool = False,
    log: str | Path | None = None,
    batch_size: int = 64,
    devices: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    show: Callable[[str], None] = lambda line: None,
    show_progress_bar: bool = False,
) -> SearchResult:
    """Finds the demonstrations with which a model's cosine similarities rank pairs best, and puts them into the model.

    Every candidate is tried as the one demonstration, by successive halving: all of them on a tenth of the pairs,
    the better ones on more, the last ones on all. Afterwards the model carries the winner (no demonstration if none
    beats having none, and the layer if there was a choice); if the search fails, what it carried before.

    Args:
        model: The model; demonstrations that its template has are replaced.
        candidates: What to try; duplicates and those too long for the model's context are left out.
        pairs: Two sentences and a gold score each, e.g. STS-B dev.
        shots: At most this many demonstrations. Above 1, every candidate is tried in front of and behind those chosen,
            and added while its gain is not noise. Defaults to 1.
        layers: Hidden states to choose from, read in one pass. Defaults to the model's.
        exhaustive: Whether to try every candidate on all pairs. Defaults to False.
        log: Where measurements are kept, line by line (`search.jsonl`); those that are there already are not made
            again. Defaults to None: nowhere.
        batch_size: Sentences per forward pass. Defaults to 64.
        devices: Devices over which candidates are spread, a copy of the model on each. Defaults to the model's own.
        seed: Of the order of pairs and of the resamples. Defaults to 0.
        resamples: How many resamples of the pairs the intervals are taken from. Defaults to 1000.
        show: Takes a line of text per round. Defaults to dropping it.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        The winner, its gains, and all trials.

    Raises:
        ValueError: If there is no candidate, none that fits or one that breaks the template's quotations; if there are
            fewer than 10 pairs, or gold scores are not finite or all equal; if embeddings are not finite, a layer is
            out of range or `shots` is below 1.
        OSError: If the log cannot be read or written.
    """
    if shots < 1:
        raise ValueError(f"shots={shots} is no number of demonstrations: choose 1 or more.")
    tried = drop_duplicates(one if isinstance(one, Candidate) else Candidate(one) for one in candidates)
    if not tried:
        raise ValueError("There is no candidate to try: give one demonstration or more.")
    check_quotes(model.template, [candidate.demonstration for candidate in tried])
    ordered = check_pairs(pairs, seed)
    tried = fitting(model, tried)
    stops = [max(2, round(share * len(ordered))) for share, _ in ROUNDS]
    with _restored(model):
        measurer = Measurer(
            model, ordered, stops, layers=layers or (model.layer,), log=log, batch_size=batch_size, devices=devices
        )
        rounds = _Rounds(measurer, stops, exhaustive, show, show_progress_bar)
        sources: dict[Shots, str] = {(candidate.demonstration,): candidate.source for candidate in tried}
        measurer.measure([()], len(ordered))
        finalists = rounds.run(list(sources))
        best = finalists[0]
        draws = _Draws(measurer, resamples, seed)
        steps: list[Gain] = []
        while len(best) < min(shots, len(tried)) and draws.gain(best, ()).value > 0:
            others = [candidate for candidate in tried if candidate.demonstration not in best]
            for candidate in others:
                for arm in ((*best, candidate.demonstration), (candidate.demonstration, *best)):
                    sources[arm] = candidate.source
            longer = [arm for arm in sources if len(arm) == len(best) + 1]
            longer = [arm for arm in longer if set(best) < set(arm) and fitting(model, [arm])]
            if not longer:
                break
            found = rounds.run(longer)[0]
            steps.append(draws.gain(found, best))
            show(f"{len(found)} demonstrations: {steps[-1]} over {len(best)}{' (noise)' * steps[-1].is_noise}")
            if steps[-1].is_noise or steps[-1].value <= 0:
                break
            best = found
        trials = sorted(
            (draws.trial(arm, source) for arm, source in sources.items() if measurer.seen(arm)),
            key=lambda trial: (-trial.pairs, -trial.score),
        )
        baseline = draws.trial((), "no demonstration")
        chosen = next(trial for trial in trials if trial.demonstrations == best)
        winner = chosen if chosen.score > baseline.score else baseline
        full = [trial for trial in trials if trial.pairs == len(ordered) and trial is not winner]
        runner_up = full[0] if full else None
    model.template = replace(model.template, demonstrations=winner.demonstrations)
    if layers is not None:
        model.layer = winner.layer
    return SearchResult(
        winner=winner,
        runner_up=runner_up,
        over_runner_up=draws.gain(winner.demonstrations, runner_up.demonstrations) if runner_up else None,
        baseline=baseline,
        trials=tuple(trials),
        steps=tuple(steps),
        encodings=measurer.encodings,
        exhaustive_encodings=measurer.distinct * len(tried),
    )


@dataclass(frozen=True)
class _Rounds:
    """Successive halving: ever fewer arms on ever more pairs."""

    measurer: Measurer
    stops: Sequence[int]
    exhaustive: bool
    show: Callable[[str], None]
    show_progress_bar: bool

    def run(self, arms: list[Shots]) -> list[Shots]:
        """Returns the arms that were tried on all pairs, the best first."""
        alive = arms
        schedule = (
            [(self.stops[-1], 1.0)]
            if self.exhaustive
            else [(stop, share) for stop, (_, share) in zip(self.stops, ROUNDS, strict=True)]
        )
        for stop, share in schedule:
            alive = alive[: max(_FINALISTS, round(share * len(arms)))]
            bar = tqdm(alive, desc=f"{stop} pairs", unit=" candidates", disable=not self.show_progress_bar)
            with bar:
                self.measurer.measure(alive, stop, progress=bar.update)
            alive = sorted(alive, key=lambda arm: -self.measurer.best(arm, stop)[1])
            layer, score = self.measurer.best(alive[0], stop)
            _, without = self.measurer.best((), stop)
            self.show(
                f"{len(alive)} candidates on {stop} pairs: best {score:.2f} ({_short(alive[0])}, layer {layer}), no "
                f"demonstration {without:.2f}"
            )
        return alive


class _Draws:
    """Intervals: one bootstrap per number of pairs, and the score in each of its draws per trial."""

    def __init__(self, measurer: Measurer, resamples: int, seed: int) -> None:
        self._measurer, self._resamples, self._seed = measurer, resamples, seed
        self._bootstraps: dict[int, Bootstrap] = {}
        self._scores: dict[tuple[Shots, int, int], Any] = {}

    def trial(self, arm: Shots, source: str) -> Trial:
        pairs = self._measurer.seen(arm)
        layer, score = self._measurer.best(arm, pairs)
        return Trial(arm, source, layer, pairs, score, self.gain(arm, (), pairs))

    def gain(self, arm: Shots, over: Shots, pairs: int | None = None) -> Gain:
        """The gain of one over the other, each at its best layer, on all pairs or the first of them."""
        pairs = len(self._measurer.gold) if pairs is None else pairs
        (layer, score), (over_layer, over_score) = (
            self._measurer.best(arm, pairs),
            self._measurer.best(over, pairs),
        )
        return gain(score - over_score, self._of(arm, layer, pairs), self._of(over, over_layer, pairs))

    def _of(self, arm: Shots, layer: int, pairs: int) -> Any:
        if pairs not in self._bootstraps:
            self._bootstraps[pairs] = Bootstrap(self._measurer.gold[:pairs], self._resamples, self._seed)
        key = (arm, layer, pairs)
        if key not in self._scores:
            self._scores[key] = self._bootstraps[pairs].scores(self._measurer.similarities(arm, layer, pairs))
        return self._scores[key]


@contextmanager
def _restored(model: PromptEOL) -> Any:
    """Puts template and layer back as they were."""
    template, layer, training = model.template, model.layer, model.training
    try:
        yield
    finally:
        model.template, model.layer = template, layer
        model.train(training)


def _short(arm: Shots) -> str:
    return " + ".join(shot.word for shot in arm) or "none"
