"""Everything in a model card but the results: what the open model, its earlier card and its author say."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftConfig

from st_prompteol.evaluation.comparison import method_name
from st_prompteol.evaluation.results import Run
from st_prompteol.hub.markdown import code, escape, fence, one_line, one_line_each, section
from st_prompteol.hub.options import CardOptions, check_repository, is_repository
from st_prompteol.model import PromptEOL
from st_prompteol.quantization import came_quantized
from st_prompteol.template import HOLE

TAG = "prompteol"
SENTENCES = ["A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again."]
_SHOWN = (
    "architecture", "template tokens", "max_seq_length", "layer", "dimension", "behind the pooling", "parameters",
    "dtype",
)  # fmt: skip
# Metadata of an earlier card that the new one keeps
_KEPT = ("language", "datasets", "metrics", "widget", "co2_eq_emissions", "model-index")
# What sentence-transformers writes about training from names and values that others chose
_TRAINING = ("train_datasets", "eval_datasets", "all_hyperparameters", "non_default_hyperparameters")
_MARKDOWN_ALREADY = ("stats_table", "examples_table", "config_code", "columns")


@dataclass(frozen=True)
class CardFacts:
    """Everything in a card but the results, ready for JSON.

    Args:
        repo_id: The repository that the card is for.
        metadata: The card's metadata.
        text: The variables of the card's template.
        base: The repository of the base LLM. None if it is not on the Hub.
        evaluated_base: The name under which the base LLM was evaluated.
        run: What results of the model as it is now are filed under. None for a model that was trained since it was
            opened: no results can belong to it.
    """

    repo_id: str
    metadata: dict[str, Any]
    text: dict[str, Any]
    base: str | None
    evaluated_base: str | None
    run: Run | None

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
    if source is None and _was_trained_here(model):
        return None
    commit = None if model.adapters else getattr(model[0].config, "_commit_hash", None)
    return Run.of(model, source or str(model[0].config.name_or_path), method_name(model), revision=commit)


def collect_facts(
    model: PromptEOL,
    repo_id: str,
    options: CardOptions,
    *,
    source: str | None = None,
    run: Run | None,
    token: str | bool | None = None,
) -> CardFacts:
    """Collects everything in a model's card but the results.

    Args:
        model: The model.
        repo_id: The repository that the card is for.
        options: What the author adds.
        source: As in `run_of`. Defaults to None.
        run: What `run_of` returned.
        token: As in `huggingface_hub`. Defaults to None.

    Raises:
        ValueError: If `repo_id` cannot be the name of a repository.
    """
    check_repository(repo_id)
    earlier = _training_card(model)
    known: dict[str, Any] = one_line_each(earlier.data.to_dict())  # type: ignore[no-untyped-call]
    opened_from = str(model[0].config.name_or_path)
    adapter = _adapter_config(model)
    local_base = str(adapter.base_model_name_or_path) if adapter else None
    base = options.base_model or _find_base([local_base] if local_base else [known.get("base_model"), opened_from])
    revision = _base_revision(model, adapter, base)
    base_card = _card_data_of(base, revision, token)
    license = options.license or known.get("license") or base_card.get("license")
    body = model[0].model
    is_quantized_here = getattr(body, "is_quantized", False) and not came_quantized(body)
    relation = "adapter" if adapter else "quantized" if is_quantized_here else "finetune"
    listed = known.get("datasets") or []
    known["datasets"] = [name for name in ([listed] if isinstance(listed, str) else listed) if is_repository(name)]
    name = model.model_card_data.model_name
    is_generated = not name or name.startswith((type(model).__name__, "SentenceTransformer"))
    training = section(earlier.text, "## Training Details")
    is_training_known = training is not None and "###" in training.split("### Framework Versions")[0]
    citations = section(earlier.text, "### BibTeX") or ""
    embeddings = model.encode(SENTENCES)
    return CardFacts(
        repo_id=repo_id,
        metadata={
            **{key: known[key] for key in _KEPT if known.get(key)},
            **({"language": options.languages} if options.languages else {}),
            **({"datasets": list(options.datasets)} if options.datasets is not None else {}),
            "license": license,
            "license_name": None if options.license else base_card.get("license_name"),
            "license_link": None if options.license else base_card.get("license_link"),
            "library_name": "sentence-transformers",
            "pipeline_tag": "sentence-similarity",
            "tags": list(dict.fromkeys([*known.get("tags", []), "sentence-transformers", "feature-extraction", TAG])),
            "base_model": base,
            "base_model_relation": relation if base else None,
        },
        text={
            "title": repo_id.split("/")[-1] if is_generated else escape(name),
            "base_revision": revision,
            "adapter": _describe_adapter(adapter) if adapter else None,
            "facts": {name: value for name, value in model.describe().items() if name in _SHOWN},
            "similarity": model.similarity_fn_name or "cosine",
            "sentences": SENTENCES,
            "shape": str(embeddings.shape),
            "similarities": str(model.similarity(embeddings, embeddings).float().cpu()).splitlines(),
            "template_block": fence(model.template.text.replace(HOLE, "{sentence}")),
            "demonstrations": [(code(shot.sentence), code(shot.word)) for shot in model.template.demonstrations],
            "preprocessing": model.template.preprocessing,
            "rendered": fence(model.template.render(SENTENCES[0])),
            "metrics": section(earlier.text, "### Metrics"),
            "training": training if is_training_known else None,
            "versions": section(earlier.text, "### Framework Versions"),
            "hardware": escape(options.hardware) if options.hardware else _this_machine(model),
            "curves": os.path.isfile(os.path.join(source or opened_from, "curves.png")),
            "limits": options.limits,
            "license": code(license) if license else None,
            "license_from_base": bool(license) and not options.license and not known.get("license"),
            # without PromptEOL's own, which an earlier card of ours has
            "citations": re.sub(r"^#### PromptEOL\n+```bibtex\n.*?^```\n*", "", citations, flags=re.M | re.S),
        },
        base=base,
        evaluated_base=local_base or base,
        run=run,
    )


def _training_card(model: PromptEOL) -> ModelCard:
    """The card that tells of the training: the one that the model was saved with, or sentence-transformers' own."""
    data = model.model_card_data
    if model._model_card_text and not _was_trained_here(model):
        return ModelCard(model._model_card_text, ignore_metadata_errors=True)
    harmless = {name: _harmless(getattr(data, name)) for name in _TRAINING}
    card: ModelCard = ModelCard.from_template(data, template_path=str(data.template_path), **harmless)
    return card


def _was_trained_here(model: PromptEOL) -> bool:
    """Whether a trainer has changed the model since it was opened."""
    return "generated_from_trainer" in model.model_card_data.tags


def _harmless(value: Any) -> Any:
    """Escapes names and values, which sentence-transformers puts into Markdown as they are."""
    if isinstance(value, dict):
        return {
            one_line(name).replace("`", ""): item if name in _MARKDOWN_ALREADY else _harmless(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_harmless(item) for item in value]
    return escape(value) if isinstance(value, str) and not re.fullmatch(r"[\w.-]*", value) else value


def _adapter_config(model: PromptEOL) -> PeftConfig | None:
    configs: dict[str, PeftConfig] = getattr(model[0].model, "peft_config", {})
    return configs[model[0].model.active_adapters()[0]] if configs else None


def _describe_adapter(adapter: PeftConfig) -> list[str]:
    names = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    facts = [f"{name} {getattr(adapter, key)}" for key, name in names.items() if hasattr(adapter, key)]
    targets = getattr(adapter, "target_modules", None) or ()
    layers = [targets] if isinstance(targets, str) else sorted({name.rsplit(".", 1)[-1] for name in targets})
    return [*facts, f"on {', '.join(map(code, layers))}"] if layers else facts


def _find_base(candidates: list[Any]) -> str | None:
    """Returns the repository of the base LLM, None if nobody else could open it."""
    names = [name for listed in candidates for name in (listed if isinstance(listed, list) else [listed]) if name]
    return next((name for name in names if not os.path.exists(name) and is_repository(name)), None)


def _base_revision(model: PromptEOL, adapter: PeftConfig | None, base: str | None) -> str | None:
    commit = getattr(model[0].config, "_commit_hash", None)
    if adapter is not None:
        commit = commit or adapter.revision
    elif base != model[0].config.name_or_path:
        commit = model.model_card_data.base_model_revision
    return commit if base and re.fullmatch("[0-9a-f]{40}", commit or "") else None


def _card_data_of(base: str | None, revision: str | None, token: str | bool | None) -> dict[str, Any]:
    """Returns the metadata of the base model's card, nothing if it has none or cannot be reached."""
    if base is None:
        return {}
    try:
        card_data = HfApi(token=token).model_info(base, revision=revision, timeout=10).card_data
    except Exception:  # offline, gated or gone: a licence that is not known is left out
        return {}
    return one_line_each(card_data.to_dict()) if card_data else {}  # type: ignore[no-untyped-call]


def _this_machine(model: PromptEOL) -> str | None:
    """The accelerators of this machine, if the model was trained in this process."""
    if not _was_trained_here(model):
        return None
    if torch.cuda.is_available():
        return escape(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return f"{os.cpu_count()} CPU cores" if model.device.type == "cpu" else model.device.type
