"""The model card: what a stranger needs to use and to trust a model, rendered from facts and results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from st_prompteol.evaluation.published import published_rows
from st_prompteol.evaluation.score_table import Row, table
from st_prompteol.hub.facts import CardFacts, collect_facts, run_of
from st_prompteol.hub.markdown import one_line
from st_prompteol.hub.options import CardOptions
from st_prompteol.hub.results import ModelResults, eval_results, read_results
from st_prompteol.model import PromptEOL
from st_prompteol.output import to_markdown

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def build_model_card(
    model: PromptEOL,
    repo_id: str,
    options: CardOptions | None = None,
    *,
    source: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Writes the card of a model.

    Args:
        model: The model. If it was trained in this process, the trainer's card data say how; if it was opened, the
            card that it was saved with does.
        repo_id: The repository that the card is for.
        options: What the author adds, and where the results are. Defaults to None: nothing.
        source: The folder or repository that holds the model as it is now, by which its results and its training
            curves are found. Defaults to None: what it was opened from.
        token: As in `huggingface_hub`. Defaults to None.

    Returns:
        The card; `str(card)` is the README.

    Raises:
        ValueError: If the results are of another model.
        FileNotFoundError: If the results' folder does not exist.

    Example:
        >>> card = build_model_card(PromptEOL("tiny"), "user/my-model", CardOptions(license="apache-2.0"))
        >>> card.data.license
        'apache-2.0'
    """
    options = options or CardOptions()
    facts = collect_facts(model, repo_id, options, source=source, run=run_of(model, source), token=token)
    return render_card(facts, read_results(options.results_dir, facts.run, facts.evaluated_base))


def render_card(facts: CardFacts, results: ModelResults | None) -> ModelCard:
    """Renders a card from what is known, without the model or the Hub.

    Args:
        facts: Everything but the results.
        results: The results. None: no table.
    """
    data = ModelCardData(**facts.metadata)
    data.eval_results = _merge(data.eval_results or [], eval_results(results) if results else []) or None
    data.model_name = one_line(facts.repo_id) if data.eval_results else None
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=facts.repo_id,
        base=facts.base,
        table=_table(facts, results) if results else None,
        **facts.text,
    )
    return card


def _merge(known: list[EvalResult], measured: list[EvalResult]) -> list[EvalResult]:
    """Adds what was measured to the trainer's results, in place of what an earlier card says was measured."""
    ours = {(result.dataset_type, result.dataset_config) for result in measured}
    kept = [
        result
        for result in known
        if (result.dataset_type, result.dataset_config) not in ours and "x100" not in str(result.metric_name)
    ]
    return [*kept, *measured]


def _table(facts: CardFacts, results: ModelResults) -> str:
    own = Row(facts.repo_id, "this model", {task: content["score"] for task, content in results.own.items()})
    published = published_rows([Row(facts.base, "", {})]) if facts.base else []
    base = [replace(row, model=facts.base or row.model) for row in results.base]  # which a folder may have stood for
    return to_markdown(table([own, *base, *published]), text_columns=("model", "method"))
