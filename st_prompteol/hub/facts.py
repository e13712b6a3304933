"""Everything in a published card but the results: what a save writes, with what the author and the Hub say."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import HfApi

from st_prompteol.card.data import adapter_config
from st_prompteol.card.markdown import one_line_each
from st_prompteol.evaluation.comparison import method_name
from st_prompteol.evaluation.results import Run
from st_prompteol.hub.options import CardOptions, check_repository
from st_prompteol.model import PromptEOL


@dataclass(frozen=True)
class CardFacts:
    """Everything in a card but the results, ready for JSON.

    Args:
        repo_id: The repository that the card is for.
        variables: The variables of the card's template, the metadata among them.
        base: The repository of the base LLM. None if it is not on the Hub.
        evaluated_base: The name under which the base LLM was evaluated.
        run: What results of the model as it is now are filed under. None for a model that was trained since it was
            opened: no results can belong to it.
        kept_text: The card that others wrote or edited, whose text stays. Defaults to None: there is none.
        stated: The metadata that the author gives, in front of those of a card that stays. Defaults to none.
    """

    repo_id: str
    variables: dict[str, Any]
    base: str | None
    evaluated_base: str | None
    run: Run | None
    kept_text: str | None = None
    stated: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Returns the facts as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CardFacts:
        """Reads what `to_json` returned."""
        content = json.loads(text)
        return cls(**{**content, "run": Run(**content["run"]) if content["run"] else None})


def run_of(model: PromptEOL, source: str | None = None) -> Run | None:
    """Returns what results of a model are filed under, None if it was trained since it was opened.

    Args:
        model: The model.
        source: The folder or repository that holds it as it is now. Defaults to None: what it was opened from.
    """
    if source is None and model.model_card_data.trained_here:
        return None
    commit = None if model.adapters else getattr(model[0].config, "_commit_hash", None)
    return Run.of(model, source or str(model[0].config.name_or_path), method_name(model), revision=commit)


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
    """Collects everything in a model's card but the results.

    Args:
        model: The model.
        repo_id: The repository that the card is for.
        options: What the author adds.
        source: As in `run_of`; `curves.png` is looked for there. Defaults to None.
        saved_in: The folder that holds the model as it is published. Defaults to None: it is not saved yet.
        run: What `run_of` returned.
        token: As in `huggingface_hub`. Defaults to None.

    Raises:
        ValueError: If `repo_id` cannot be the name of a repository.
    """
    check_repository(repo_id)
    data = copy.copy(model.model_card_data)
    stated = {
        "base_model": options.base_model,
        "license": options.license,
        "language": options.languages,
        "datasets": options.datasets and list(options.datasets),
        "hardware": options.hardware,
        "limits": options.limits,
    }
    stated = {name: value for name, value in stated.items() if value}
    for name, value in {"model_id": repo_id, **stated}.items():
        setattr(data, {"base_model": "base_repository"}.get(name, name), value)
    data.save_dir = None if saved_in is None else os.fspath(saved_in)
    data.curves = os.path.isfile(os.path.join(source or str(model[0].config.name_or_path), "curves.png"))
    base = data.find_base()
    data.base_card = _card_data_of(base, token)
    adapter = adapter_config(model)
    local_base = str(adapter.base_model_name_or_path) if adapter else None
    return CardFacts(repo_id, data.variables(), base, local_base or base, run, data.kept_text, tuple(stated))


def _card_data_of(base: str | None, token: str | bool | None) -> dict[str, Any]:
    """Returns the metadata of the base model's card, nothing if it has none or cannot be reached."""
    if base is None:
        return {}
    try:
        card_data = HfApi(token=token).model_info(base, timeout=10).card_data
    except Exception:  # offline, gated or gone: a license that is not known is left out
        return {}
    return one_line_each(card_data.to_dict()) if card_data else {}  # type: ignore[no-untyped-call]
