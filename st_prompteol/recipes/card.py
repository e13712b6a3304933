"""Describes the result of a search in the card of the model that it configured."""

from __future__ import annotations

from st_prompteol.card.markdown import escape
from st_prompteol.files.output import to_markdown
from st_prompteol.recipes.result import SearchResult, Trial

_COLUMNS = [
    "pairs",
    "number of pairs",
    "Spearman x100 at the start",
    "Spearman x100 of the winner",
    "gain, 95 % interval",
]


def describe_search(result: SearchResult) -> str:
    """Returns the model card section on the search that chose the model's recipe, in Markdown.

    Args:
        result: The search result.

    Example:
        >>> result = search(PromptEOL("tiny"), read_pairs("examples/pairs.tsv"), templates=["prompt"], layers=[-1])
        >>> print(describe_search(result).splitlines()[0])
        ### Search for the recipe
    """

    def row(name: str, trial: Trial) -> list[str]:
        noise = ", may be chance" * trial.gain.is_noise
        start = trial.score - trial.gain.value
        return [name, f"{trial.pairs:,}", f"{start:.2f}", f"{trial.score:.2f}", f"{trial.gain}{noise}"]

    lines = [_COLUMNS, row("those that chose the winner", result.winner)]
    if result.holdout is not None:
        lines.append(row("held out: seen by no step of the search", result.holdout))
    statistics = (
        f", standardized by the statistics of {result.statistics}" if result.winner.recipe.standardization else ""
    )
    caveat = (
        "The interval of the first row does not know that the winner was chosen on its pairs; the second row's are "
        "pairs that no step had seen."
        if result.holdout is not None
        else "The interval does not know that the winner was chosen on these pairs, so expect less on others."
    )
    return (
        "### Search for the recipe\n\n"
        f"`st-prompteol search` tried {len(result.trials):,} recipes of template, layer, standardization and "
        f"demonstrations on scored pairs of sentences. It began with {escape(result.start.recipe)} and chose "
        f"{escape(result.winner.recipe)}{statistics}.\n\n{to_markdown(lines, ('pairs',))}\n{caveat}"
    )
