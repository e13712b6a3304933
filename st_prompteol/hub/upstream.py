"""The card that sentence-transformers would write, of which ours takes over what is known of training."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from huggingface_hub import ModelCard
from sentence_transformers.base.model_card import generate_model_card

from st_prompteol.hub.markdown import escape, one_line, section
from st_prompteol.model import PromptEOL


def upstream_card(model: PromptEOL) -> ModelCard:
    """Returns sentence-transformers' own card: as saved for a model that was opened, else generated now."""
    text, data = model._model_card_text, model.model_card_data
    if not text or was_trained_here(model):
        # upstream puts names and values into Markdown as they are
        harmless: dict[str, Any] = {
            "train_datasets": [_harmless_dataset(dataset) for dataset in data.train_datasets],
            "eval_datasets": [_harmless_dataset(dataset) for dataset in data.eval_datasets],
            "all_hyperparameters": _harmless(data.all_hyperparameters, _in_code),
            "non_default_hyperparameters": _harmless(data.non_default_hyperparameters, _in_code),
            "training_logs": [_harmless(line, escape) for line in data.training_logs],
        }
        kept = {name: getattr(data, name) for name in harmless}
        try:
            for name, value in harmless.items():
                setattr(data, name, value)
            text = generate_model_card(model)
        finally:
            for name, value in kept.items():
                setattr(data, name, value)
    return ModelCard(text, ignore_metadata_errors=True)


def was_trained_here(model: PromptEOL) -> bool:
    """Whether a trainer has changed the model since it was opened."""
    return "generated_from_trainer" in model.model_card_data.tags


def citations(card: str) -> str | None:
    """Returns a card's citations, of sentence-transformers and of the losses, without PromptEOL's."""
    text = section(card, "### BibTeX")
    return None if text is None else re.sub(r"^#### PromptEOL\n+```bibtex\n.*?^```\n*", "", text, flags=re.M | re.S)


def _harmless(values: dict[str, Any], harmless_name: Callable[[str], str]) -> dict[str, Any]:
    return {
        harmless_name(name): value if isinstance(value, int | float | bool | None) else escape(value)
        for name, value in values.items()
    }


def _in_code(name: str) -> str:
    """A name that upstream puts between backticks."""
    return one_line(name).replace("`", "")


def _harmless_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if dataset.get("name"):
        changes["name"] = escape(dataset["name"])
    if dataset.get("columns"):
        changes["columns"] = [_in_code(column) for column in dataset["columns"]]
    if isinstance(dataset.get("loss"), dict) and "fullname" in dataset["loss"]:
        changes["loss"] = {**dataset["loss"], "fullname": escape(dataset["loss"]["fullname"])}
    return {**dataset, **changes}
