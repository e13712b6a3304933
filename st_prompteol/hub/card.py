"""The card of a published model: the saved card, with additions of the author, the Hub and evaluation results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from st_prompteol.card.data import merge_results, render
from st_prompteol.card.earlier import write_cosines
from st_prompteol.evaluation.published import published_rows
from st_prompteol.evaluation.score_table import ScoreRow, table
from st_prompteol.files.output import to_markdown
from st_prompteol.hub.facts import CardFacts, collect_facts, run_of
from st_prompteol.hub.options import CardOptions
from st_prompteol.hub.results import SOURCES, ModelResults, eval_results, read_results
from st_prompteol.model import PromptEOL

_PART = "results"
_INTRODUCTION = (
    "### SentEval and MTEB\n\n"
    "Measured by `st-prompteol evaluate` on the model as it is published. SentEval's protocol: Spearman correlation "
    "of cosine similarities over all pairs for STS, accuracy for the transfer tasks, all x100. The average over a "
    "group of tasks stands only where all of its tasks were run."
)
_MTEB = ' A task marked "(MTEB)" was run by mteb, on MTEB\'s own data and with its metric.'
_PUBLISHED = ' Rows marked "published" are those of papers, on the same base model, measured by their authors.'


def build_model_card(
    model: PromptEOL,
    repo_id: str,
    options: CardOptions | None = None,
    *,
    source: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Creates the card of a model to publish.

    The card is the one that `model.save_pretrained` writes, with the repository's name and additions from the options
    and the base model's card. If others wrote or edited the card, its text is kept and its metadata is completed.

    Args:
        model: The model. The training is described by the trainer's record if the model was trained in this process,
            and by the card that it was saved with if it was loaded.
        repo_id: The repository of the card.
        options: The author's additions, and the location of results. Defaults to None: no additions.
        source: The folder or repository of the model in its current state, which locates its results and training
            curves. Defaults to None: where the model was loaded from.
        token: The access token of the Hub, as in `huggingface_hub`. Defaults to None.

    Returns:
        The card; `str(card)` is the README.

    Raises:
        ValueError: If the results belong to another model.
        FileNotFoundError: If the results folder does not exist.

    Example:
        >>> card = build_model_card(PromptEOL("tiny"), "user/my-model", CardOptions(license="apache-2.0"))
        >>> card.data.license
        'apache-2.0'
    """
    options = options or CardOptions()
    facts = collect_facts(model, repo_id, options, source=source, run=run_of(model, source), token=token)
    return render_card(facts, read_results(options.results_dir, facts.run, facts.evaluated_base))


def render_card(facts: CardFacts, results: ModelResults | None) -> ModelCard:
    """Renders a card from collected facts, without the model or the Hub.

    Args:
        facts: Everything in the card except the results.
        results: The results; None for a card without a table.
    """
    variables = facts.variables if results is None else _with_results(facts, results)
    if facts.kept_text is None:
        return render(variables)
    card = ModelCard(facts.kept_text, ignore_metadata_errors=True)
    theirs, ours = card.data.to_dict(), variables["metadata"]  # type: ignore[no-untyped-call]
    tags = [*theirs.get("tags", ()), *ours["tags"]]
    written = {key: ours[key] for key in ours.keys() & facts.stated}
    data = ModelCardData(**{**ours, **theirs, **written, "tags": tags}, ignore_metadata_errors=True)
    if added := ModelCardData(**ours).eval_results:
        data.eval_results = merge_results(data.eval_results, added)
    card.data = data
    return card


def _with_results(facts: CardFacts, results: ModelResults) -> dict[str, Any]:
    """Returns the card's variables, with earlier results replaced by those of `st-prompteol evaluate`."""
    variables = facts.variables
    data = ModelCardData(**variables["metadata"])
    known = [one for one in data.eval_results or () if not one.dataset_name.startswith(SOURCES)]
    data.eval_results = merge_results(known, eval_results(results))
    data.model_name = variables["repo_id"]
    part = {
        "name": _PART,
        "text": _describe(results, variables["repo_id"], variables["base"]),
        "cosines": write_cosines(tuple(variables["cosines"])),
        "note": None,
    }
    parts = [one for one in variables["parts"] if one["name"] != _PART]
    return {**variables, "metadata": data.to_dict(), "parts": [part, *parts]}  # type: ignore[no-untyped-call]


def _describe(results: ModelResults, repo_id: str, base: str | None) -> str:
    own = ScoreRow(repo_id, "this model", {task: content["score"] for task, content in results.own.items()})
    of_base = [replace(row, model=base or row.model) for row in results.base]  # the row may name a folder
    published = published_rows([ScoreRow(base or "", "", {})])
    text = _INTRODUCTION + _MTEB * any("(MTEB)" in task for task in results.own) + _PUBLISHED * bool(published)
    return f"{text}\n\n{to_markdown(table([own, *of_base, *published]), text_columns=('model', 'method'))}".rstrip()
