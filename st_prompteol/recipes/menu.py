"""Presents the result of a search: a summary of the best recipe and its ingredients, a table, a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from st_prompteol.files.atomic import replacing_file
from st_prompteol.files.output import FIGURES, check_output, import_figure, save_figure, to_markdown
from st_prompteol.prompt.template import PromptTemplate
from st_prompteol.recipes.recipe import Recipe, template_name
from st_prompteol.recipes.result import SearchResult, Trial
from st_prompteol.standardization import Method

_TEXT = ("template", "layer", "standardization", "sentence", "word", "source")
_NUMBERS = ("pairs", "score", "gain over the start", "low", "high")
_TICKS = 15  # at most, of layers


def summarize(result: SearchResult, model_name_or_path: str) -> list[str]:
    """Summarizes a search, one line per ingredient; marks gains whose confidence interval contains zero as noise.

    Args:
        result: The search result.
        model_name_or_path: The model, for the code that uses the recipe.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompt"], layers=[-1])
        >>> print(summarize(result, "tiny")[0])  # doctest: +ELLIPSIS
        best recipe: prompt, layer -1...
    """
    winner, start = result.winner, result.start
    lines = []
    if result.holdout is not None:
        lines.append(_describe_holdout(result))
    lines.append(f"best recipe: {winner.recipe}")
    lines.append(f"Spearman {winner.score:.2f} on {winner.pairs} pairs, {winner.gain} over the start")
    rows = [("start", _ingredient("start", start.recipe), start.score, "")]
    for step in result.steps:
        noise = " (noise)" * step.gain.is_noise
        rows.append(
            (f"+ {step.ingredient}", _ingredient(step.ingredient, step.recipe), step.score, f"{step.gain}{noise}")
        )
    width = max(len(shown) for _, shown, _, _ in rows)
    lines += [f"  {name:<17} {shown:<{width}} {score:6.2f}  {gain}".rstrip() for name, shown, score, gain in rows]
    if result.undecided > 1:
        lines.append(
            f"{winner.pairs:,} pairs cannot decide between {result.undecided} recipes"
            f"{' without demonstrations' * bool(winner.recipe.demonstrations)} within noise of the best: "
            "the cheapest that is not below the start is chosen"
        )
    if result.best_other is not None and result.over_best_other is not None:
        noise = ": inside the noise" * result.over_best_other.is_noise
        lines.append(f"{result.over_best_other} over the best other recipe, {result.best_other.recipe}{noise}")
    if winner.recipe.standardization:
        lines.append(f"standardized by the statistics of {result.statistics}")
    lines.append(
        f"cost: {result.tokens} tokens around every sentence ({result.start_tokens} at the start), "
        f"{result.encodings:,} sentences encoded by the search"
    )
    lines.append(f"to use it: {winner.recipe.to_code(model_name_or_path)}")
    lines.append(
        "intervals are of 95 %, from resampled pairs; "
        + (
            "those of the search do not know that the winner was chosen on its pairs"
            if result.holdout
            else "they do not know that the winner was chosen on these pairs: --holdout 0.3 measures it on others"
        )
    )
    return lines


def write_table(result: SearchResult, path: str | Path) -> None:
    """Writes all trials to a Markdown file, after the winner's score on the held-out pairs.

    Args:
        result: The search result.
        path: The output file, `.md`.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompt"], layers=[-1])
        >>> write_table(result, "search.md")
    """
    rows = [[*_TEXT, *_NUMBERS]]
    for trial in result.trials:
        recipe, gain = trial.recipe, trial.gain
        rows.append(
            [
                template_name(recipe.template),
                str(recipe.layer),
                recipe.standardization or "plain",
                " + ".join(shot.sentence for shot in recipe.demonstrations),
                " + ".join(shot.word for shot in recipe.demonstrations),
                trial.source,
                str(trial.pairs),
                *(f"{value:.2f}" for value in (trial.score, gain.value, gain.low, gain.high)),
            ]
        )
    text = "" if result.holdout is None else f"{_describe_holdout(result)}\n\n"
    text += to_markdown(rows, _TEXT)
    with replacing_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def plot(result: SearchResult, path: str | Path) -> None:
    """Plots the score by layer, with a color per template, and the gain of each candidate, if there were any.

    Per template there are two lines: plain embeddings, dashed, and the standardization with the highest score.

    Args:
        result: The search result.
        path: The output file, `.png` or `.svg`; the other format is written beside it.

    Raises:
        ValueError: If the file has another suffix.
        ImportError: If matplotlib is not installed.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompt"])
        >>> plot(result, "search.png")
    """
    check_output(path, FIGURES)
    shown = [trial for trial in result.trials if trial.recipe.demonstrations]
    figure = import_figure()(figsize=(12 if shown else 7, 6), layout="constrained")
    axes = figure.subplots(1, 2 if shown else 1, squeeze=False)[0]
    _draw_layers(axes[0], result)
    if shown:
        _draw_candidates(axes[1], shown)
    save_figure(figure, path)


def _draw_layers(axes: Any, result: SearchResult) -> None:
    """Plots two lines per template: plain, and the standardization with the highest score."""
    lines: dict[PromptTemplate, dict[Method | None, list[Trial]]] = {}
    for trial in result.trials:  # highest score first
        if not trial.recipe.demonstrations:
            methods = lines.setdefault(trial.recipe.template, {})
            methods.setdefault(trial.recipe.standardization, []).append(trial)
    for number, (template, methods) in enumerate(lines.items()):
        best = next((method for method in methods if method is not None), None)
        for method in dict.fromkeys((best, None)):
            trials = sorted(methods[method], key=lambda trial: trial.recipe.layer)
            axes.plot(
                [trial.recipe.layer for trial in trials],
                [trial.score for trial in trials],
                "o-" if method else "o--",
                color=f"C{number % 10}",
                markersize=4,
                markerfacecolor=None if method else "white",
                label=f"{template_name(template)[:40]}, {method or 'plain'}",
            )
    winner = result.winner
    axes.plot(winner.recipe.layer, winner.score, "*", color="black", markersize=12, label="chosen recipe")
    layers = sorted({trial.recipe.layer for trial in result.trials}, reverse=True)
    axes.set_xticks(layers[:: -(-len(layers) // _TICKS)])
    axes.set_xlabel("layer")
    axes.set_ylabel(f"Spearman x100 on {winner.pairs} pairs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))  # below: lines may be anywhere


def _draw_candidates(axes: Any, trials: list[Trial]) -> None:
    """Plots each trial's gain with its confidence interval; trials on all pairs have filled markers."""
    most = trials[0].pairs
    sources = list(dict.fromkeys(trial.source for trial in trials))
    for rank, trial in enumerate(trials, start=1):
        color, full, gain = f"C{sources.index(trial.source) % 10}", trial.pairs == most, trial.gain
        axes.plot([rank, rank], [gain.low, gain.high], color=color, alpha=0.8 if full else 0.2, linewidth=1)
        axes.plot(rank, gain.value, "o", color=color, markerfacecolor=color if full else "white", markersize=4)
    for place, source in enumerate(sources):
        axes.plot([], [], "o", color=f"C{place % 10}", label=source or "unnamed")
    for edge in [rank for rank in range(1, len(trials)) if trials[rank].pairs != trials[rank - 1].pairs]:
        axes.axvline(edge + 0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.annotate(
            f" {trials[edge].pairs} pairs", (edge + 0.5, 1.01), xycoords=("data", "axes fraction"), fontsize=7
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("candidates, those on most pairs first")
    axes.set_ylabel("gain over the start, with 95 % interval")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7)


def _ingredient(name: str, recipe: Recipe) -> str:
    if name == "demonstration":
        return " + ".join(f'"{shot.sentence}" = {shot.word}' for shot in recipe.demonstrations)
    descriptions = {
        "template": template_name(recipe.template),
        "layer": f"layer {recipe.layer}",
        "standardization": f'standardize(sentences, "{recipe.standardization}")',
    }
    return descriptions.get(name, str(recipe))


def _describe_holdout(result: SearchResult) -> str:
    holdout = result.holdout
    assert holdout is not None
    return (
        f"held out: Spearman {holdout.score:.2f} on {holdout.pairs} pairs that the search has not seen, "
        f"{holdout.gain} over the start ({result.start.recipe})" + ": inside the noise" * holdout.gain.is_noise
    )
