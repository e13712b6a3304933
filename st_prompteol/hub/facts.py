"""Everything in a published card except the results: the saved card, with additions of the author and the Hub."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import HfApi

from st_prompteol.card.data import adapter_config
from st_prompteol.card.markdown import one_line_each
from st_prompteol.evaluation.results import Run
from st_prompteol.hub.options import CardOptions, check_repository
from st_prompteol.model import PromptEOL


@dataclass(frozen=True)
class CardFacts:
    """Everything in a card except the results, JSON-serializable.

    Args:
        variables: The variables of the card's template, including the metadata.
        evaluated_base: The name under which the base LLM was evaluated.
        run: The key of results of the model in its current state; None for a model trained since it was loaded, to
            which no results can belong.
        kept_text: A card that others wrote or edited, whose text is kept. Defaults to None: no such card.
        stated: Metadata from the author, which takes precedence over that of a kept card. Defaults to none.
    """

    variables: dict[str, Any]
    evaluated_base: str | None
    run: Run | None
    kept_text: str | None = None
    stated: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Returns the facts as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CardFacts:
        """Creates facts from the output of `to_json`."""
        content = json.loads(text)
        return cls(**{**content, "run": Run(**content["run"]) if content["run"] else None})


def name_of(model: PromptEOL, source: str | None) -> str:
    """Returns where a model in its current state is: the given source, or where it was loaded from."""
    return source or str(model[0].config.name_or_path)


def run_of(model: PromptEOL, source: str | None = None) -> Run | None:
    """Returns the key under which results of a model are stored, None if it was trained since it was loaded.

    Args:
        model: The model.
        source: The folder or repository of the model in its current state. Defaults to None: where it was loaded from.
    """
    if source is None and model.model_card_data.trained_here:
        return None
    commit = None if model.adapters else model.commit
    return Run.of(model, name_of(model, source), model.method_name(), revision=commit)


def collect_facts(
    model: PromptEOL,
    repo_id: str,
    options: CardOptions,
    *,
    source: str | None = None,
    saved_in: str | os.PathLike[str] | None = None,
    run: Run | None,
    token: str | bool | None = None,
) -> CardFacts:
    """Collects everything in a model's card except the results.

    Args:
        model: The model.
        repo_id: The repository of the card.
        options: The author's additions.
        source: As in `run_of`; the folder is also searched for `curves.png`. Defaults to None.
        saved_in: The folder with the files to publish. Defaults to None: not saved yet.
        run: The result of `run_of`.
        token: The access token of the Hub, as in `huggingface_hub`. Defaults to None.

    Raises:
        ValueError: If `repo_id` is not a valid repository name.
    """
    check_repository(repo_id)
    data = copy.copy(model.model_card_data)
    stated = {**vars(options), "language": options.languages, "results_dir": None}
    stated = {name: value for name, value in stated.items() if value}
    for name, value in {"model_id": repo_id, **stated}.items():
        setattr(data, {"base_model": "base_repository"}.get(name, name), value)
    data.save_dir = None if saved_in is None else os.fspath(saved_in)
    data.curves = os.path.isfile(os.path.join(name_of(model, source), "curves.png"))
    base = data.find_base()
    data.base_card = _card_data_of(base, token)
    adapter = adapter_config(model)
    local_base = str(adapter.base_model_name_or_path) if adapter else None
    return CardFacts(data.variables(), local_base or base, run, data.kept_text, tuple(stated))


def _card_data_of(base: str | None, token: str | bool | None) -> dict[str, Any]:
    """Returns the metadata of the base model's card, empty if there is none or it cannot be loaded."""
    if base is None:
        return {}
    try:
        card_data = HfApi(token=token).model_info(base, timeout=10).card_data
    except Exception:  # offline, gated or deleted: an unknown license is left out
        return {}
    return one_line_each(card_data.to_dict()) if card_data else {}  # type: ignore[no-untyped-call]
