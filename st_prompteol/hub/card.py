"""The model card: sentence-transformers' own card data, and what a stranger needs to use and to trust the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from st_prompteol.evaluation.report import Row, published_rows, table
from st_prompteol.hub.facts import CardFacts, CardOptions, collect_facts, is_repository, run_of
from st_prompteol.hub.markdown import escape, one_line
from st_prompteol.hub.markdown import table as markdown_table
from st_prompteol.hub.measured import Measured, eval_results, read_results
from st_prompteol.model import PromptEOL

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def build_model_card(
    model: PromptEOL,
    repo_id: str,
    *,
    source: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    hardware: str | None = None,
    limits: str | None = None,
    results_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Writes the card of a model: sentence-transformers' card data, extended.

    Args:
        model: The model. If it was trained in this process, the trainer's card data says how; if it was opened, the
            card that it was saved with does.
        repo_id: The repository that the card is for.
        source: The folder or repository that holds the model as it is now, by which its results and its training
            curves are found. Defaults to None: what it was opened from.
        base_model: The repository of the base LLM. Defaults to None: what the adapter, the card data or the model's
            configuration say; a folder of this machine is not named.
        license: Identifier of a licence. Defaults to None: that of the card data, or else of the base model.
        language: Codes of languages, e.g. `"en"`. Defaults to None: those of the card data.
        datasets: Repositories of training data. Defaults to None: those of the card data.
        hardware: What the model was trained on. Defaults to None: this machine, if it was trained in this process.
        limits: What else a user must know, Markdown of the author's own. Defaults to None.
        results_dir: Where `st-prompteol evaluate` has put its results. Defaults to None: no table.
        token: As in `huggingface_hub`. Defaults to None.

    Returns:
        The card; `str(card)` is the README.

    Raises:
        ValueError: If metadata are invalid, or the results are of another model.
        FileNotFoundError: If `results_dir` is no folder.
    """
    options = CardOptions(base_model, license, language, datasets, hardware, limits)
    facts = collect_facts(model, repo_id, source, options, run=run_of(model, source), token=token)
    measured = None if results_dir is None else read_results(results_dir, facts.run, facts.evaluated_base)
    return render_card(facts, measured)


def render_card(facts: CardFacts, measured: Measured | None) -> ModelCard:
    """Renders a card from what is known: neither the model nor the Hub is asked.

    Args:
        facts: What the model says of itself.
        measured: Its results. None: no table.
    """
    data = ModelCardData(**facts.metadata)
    data.eval_results = _merge_results(data.eval_results, eval_results(measured) if measured else [])
    data.model_name = one_line(facts.repo_id) if data.eval_results else None
    _clean(data)
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=facts.repo_id,
        base=_link(facts.base) if facts.base else None,
        table=_evaluation_table(facts, measured) if measured else None,
        **facts.text,
    )
    return card


def _merge_results(known: list[EvalResult] | None, measured: list[EvalResult]) -> list[EvalResult] | None:
    """Keeps the trainer's results; of what was measured, older numbers give way."""
    ours = {(result.dataset_type, result.dataset_config) for result in measured}
    kept = [
        result
        for result in known or []
        if (result.dataset_type, result.dataset_config) not in ours and "x100" not in str(result.metric_name)
    ]
    return [*kept, *measured] or None


def _clean(data: ModelCardData) -> None:
    """Takes line breaks and control characters out of every text, and names that are no repositories out of lists."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return one_line(value)
        if isinstance(value, list):
            return [clean(item) for item in value]
        return {key: clean(item) for key, item in value.items()} if isinstance(value, dict) else value

    for key, value in vars(data).items():
        setattr(data, key, clean(value))
    for result in data.eval_results or []:
        for key, value in vars(result).items():
            setattr(result, key, clean(value))
    if data.datasets:
        names = [data.datasets] if isinstance(data.datasets, str) else data.datasets
        data.datasets = [name for name in names if is_repository(name)] or None


def _link(repository: str) -> str:
    return f"[{escape(repository)}](https://huggingface.co/{repository})"


def _evaluation_table(facts: CardFacts, measured: Measured) -> str:
    own = measured.row(facts.repo_id, "this model")
    published = published_rows([Row(facts.base, "", {})]) if facts.base else []
    base = [replace(row, model=facts.base or row.model) for row in measured.base]  # which a folder may have stood for
    return markdown_table(table([own, *base, *published]))
