"""What a model says of itself for its card: everything that needs the open model, ready for JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftConfig

from st_prompteol.evaluation.comparison import method_name
from st_prompteol.evaluation.results import Run
from st_prompteol.hub.markdown import code, escape, fence, one_line, section
from st_prompteol.hub.upstream import citations, upstream_card, was_trained_here
from st_prompteol.model import PromptEOL
from st_prompteol.template import HOLE

TAG = "prompteol"
PREPROCESSING = {
    "paper": "White space around a sentence is stripped; a full stop is put after one that ends in none of "
    "`. ? \" '`, double quotes become single ones, and a final `?` becomes `.`, as the paper's evaluation does.",
    "none": "Sentences go into the template as they are.",
}
SENTENCES = ("A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again.")


@dataclass(frozen=True)
class CardOptions:
    """What the author says of a model, as `build_model_card` takes it.

    Raises:
        ValueError: If one of them could not stand in a card's metadata.
    """

    base_model: str | None = None
    license: str | None = None
    language: str | Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    hardware: str | None = None
    limits: str | None = None

    def __post_init__(self) -> None:
        for name in (self.base_model, *(self.datasets or ())):
            if name is not None:
                check_repository(name)
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"{self.license!r} is no identifier of a licence: write one like apache-2.0, or other.")
        for tag in self.languages or ():
            if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|code|multilingual", tag):
                raise ValueError(f"{tag!r} is no code of a language: write one like en.")

    @property
    def languages(self) -> list[str] | None:
        """The codes of languages as a list, None for none."""
        return [self.language] if isinstance(self.language, str) else list(self.language or ()) or None


@dataclass(frozen=True)
class CardFacts:
    """All that stands in a card but the results.

    Args:
        repo_id: The repository that the card is for.
        metadata: The card data.
        text: The variables of the card's template.
        base: The repository of the base LLM. None if only this machine has it.
        evaluated_base: What the base LLM is called where it was evaluated.
        run: What results of the model as it is now are filed under. None for a model that was trained since it was
            opened: no results can be of it.
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
        """Reads what `to_json` gave."""
        content = json.loads(text)
        return cls(**{**content, "run": Run(**content["run"]) if content["run"] else None})


def run_of(model: PromptEOL, source: str | None) -> Run | None:
    """Returns what results of a model are filed under, None if none can be: it was trained since it was opened.

    Args:
        model: The model.
        source: The folder or repository that holds it as it is now. None: what it was opened from.
    """
    if source is None and was_trained_here(model):
        return None
    commit = None if model.adapters else getattr(model[0].config, "_commit_hash", None)
    return Run.of(model, source or str(model[0].config.name_or_path), method_name(model), revision=commit)


def collect_facts(
    model: PromptEOL,
    repo_id: str,
    source: str | None,
    options: CardOptions,
    *,
    run: Run | None,
    token: str | bool | None,
) -> CardFacts:
    """Asks a model, and what it was opened from, for all that stands in its card but the results.

    Args:
        model: The model.
        repo_id: The repository that the card is for.
        source: As for `run_of`.
        options: What the author says.
        run: What `run_of` gives.
        token: As in `huggingface_hub`.

    Raises:
        ValueError: If `repo_id` cannot be the name of a repository.
    """
    check_repository(repo_id)
    upstream = upstream_card(model)
    known: dict[str, Any] = upstream.data.to_dict()  # type: ignore[no-untyped-call]
    source = source or str(model[0].config.name_or_path)
    adapter = _adapter_config(model)
    local_base = str(adapter.base_model_name_or_path) if adapter else None
    base = options.base_model or _find_base(model, local_base, known)
    revision = _base_revision(model, adapter, base)
    base_card = _card_data_of(base, revision, token)
    license = options.license or known.get("license") or base_card.get("license")

    data = ModelCardData(
        language=options.languages or known.get("language"),
        license=license,
        license_name=None if options.license else base_card.get("license_name"),
        license_link=None if options.license else base_card.get("license_link"),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(dict.fromkeys([*known.get("tags", []), "sentence-transformers", "feature-extraction", TAG])),
        datasets=list(options.datasets) if options.datasets is not None else known.get("datasets"),
        base_model=base,
        base_model_relation=_relation(model, adapter) if base else None,
        metrics=known.get("metrics"),
        widget=known.get("widget"),
        co2_eq_emissions=known.get("co2_eq_emissions"),
        model_name=one_line(repo_id),
        eval_results=getattr(upstream.data, "eval_results", None),
    )
    if not data.eval_results:
        data.model_name = None
    training = section(upstream.text, "## Training Details")
    is_training_known = training is not None and "###" in training.split("### Framework Versions")[0]
    return CardFacts(
        repo_id=repo_id,
        metadata=data.to_dict(),  # type: ignore[no-untyped-call]
        text={
            "title": escape(_title(model, repo_id)),
            "base_revision": revision,
            "adapter": _adapter_facts(adapter) if adapter else None,
            "facts": _facts(model),
            "usage": fence(_usage(model, repo_id), "python"),
            "template_block": fence(model.template.text.replace(HOLE, "{sentence}"), "text"),
            "demonstrations": [(code(shot.sentence), code(shot.word)) for shot in model.template.demonstrations],
            "preprocessing": PREPROCESSING[model.template.preprocessing],
            "rendered": fence(model.template.render(SENTENCES[0]), "text"),
            "layer": model.layer,
            "metrics": section(upstream.text, "### Metrics"),
            "training": training if is_training_known else None,
            "versions": section(upstream.text, "### Framework Versions"),
            "hardware": escape(options.hardware) if options.hardware else _this_machine(model),
            "curves": os.path.isfile(os.path.join(source, "curves.png")),
            "merge_source": fence(_merge_source(repo_id), "python") if adapter else None,
            "limits": options.limits,
            "license": escape(license) if license else None,
            "license_from_base": bool(license) and not options.license and not known.get("license"),
            "citations": citations(upstream.text),
        },
        base=base,
        evaluated_base=local_base or base,
        run=run,
    )


def check_repository(name: str) -> None:
    """Raises ValueError for what cannot be the name of a repository."""
    if not is_repository(name):
        raise ValueError(f"{name!r} cannot be the name of a repository: write it as user/name.")


def is_repository(name: str) -> bool:
    """Whether this could be the name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _adapter_config(model: PromptEOL) -> PeftConfig | None:
    configs: dict[str, PeftConfig] = getattr(model[0].model, "peft_config", {})
    if not configs:
        return None
    return configs[model[0].model.active_adapters()[0]]


def _find_base(model: PromptEOL, adapter_base: str | None, known: dict[str, Any]) -> str | None:
    """Returns the repository of the base LLM, None for what nobody else could open."""
    if adapter_base is not None:
        candidates = [adapter_base]
    else:
        listed = known.get("base_model")
        candidates = [*([listed] if isinstance(listed, str) else listed or []), str(model[0].config.name_or_path)]
    return next((name for name in candidates if not os.path.exists(name) and is_repository(name)), None)


def _base_revision(model: PromptEOL, adapter: PeftConfig | None, base: str | None) -> str | None:
    commit = getattr(model[0].config, "_commit_hash", None)
    if adapter is not None:
        commit = commit or adapter.revision
    elif base != model[0].config.name_or_path:
        commit = model.model_card_data.base_model_revision
    return commit if base and re.fullmatch("[0-9a-f]{40}", commit or "") else None


def _card_data_of(base: str | None, revision: str | None, token: str | bool | None) -> dict[str, Any]:
    """The metadata of the base model's card; none where it has none or cannot be asked."""
    if base is None:
        return {}
    try:
        card_data = HfApi(token=token).model_info(base, revision=revision, timeout=10).card_data
    except Exception:  # offline, gated, gone: a licence that is not known is left out
        return {}
    return dict(card_data.to_dict()) if card_data else {}  # type: ignore[no-untyped-call]


def _relation(model: PromptEOL, adapter: PeftConfig | None) -> str:
    if adapter is not None:
        return "adapter"
    return "quantized" if getattr(model[0].model, "is_quantized", False) else "finetune"


def _title(model: PromptEOL, repo_id: str) -> str:
    name = model.model_card_data.model_name
    generated = not name or name.startswith((type(model).__name__, "SentenceTransformer"))
    return repo_id.split("/")[-1] if generated else str(name)


def _facts(model: PromptEOL) -> dict[str, str]:
    facts = model.describe()
    similarity = model.similarity_fn_name or "cosine"
    behind = facts["behind the pooling"]
    return {
        "Numbers per embedding": f"{facts['dimension']:,}",
        "Hidden state": f"{model.layer}" + (" (the last, after the final norm)" if model.layer == -1 else ""),
        "Most tokens": f"{facts['max_seq_length']:,}, of which the template takes {facts['template tokens']:,}"
        if facts["max_seq_length"]
        else f"no limit; the template takes {facts['template tokens']:,}",
        "Architecture": code(facts["architecture"]),
        "Parameters": f"{facts['parameters']:,}",
        "Computes in": code(facts["dtype"]),
        "Similarity": escape(similarity),
        **({"Behind the pooling": escape(str(behind))} if behind else {}),
    }


def _adapter_facts(adapter: PeftConfig) -> list[str]:
    names = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    facts = [f"{name} {getattr(adapter, key)}" for key, name in names.items() if hasattr(adapter, key)]
    targets = getattr(adapter, "target_modules", None)
    if targets:
        layers = [targets] if isinstance(targets, str) else _short(targets)
        facts.append(f"on {', '.join(map(code, layers))}")
    return facts


def _short(targets: Any) -> list[str]:
    return sorted({str(name).rsplit(".", 1)[-1] for name in targets})


def _usage(model: PromptEOL, repo_id: str) -> str:
    embeddings = model.encode(list(SENTENCES))
    with torch._tensor_str.printoptions(precision=2, sci_mode=False):  # type: ignore[attr-defined]
        similarities = str(model.similarity(embeddings, embeddings).float().cpu())
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f"model = SentenceTransformer({repo_id!r})",
        "sentences = [",
        *(f"    {sentence!r}," for sentence in SENTENCES),
        "]",
        "embeddings = model.encode(sentences)",
        "print(embeddings.shape)",
        f"# {embeddings.shape}",
        "print(model.similarity(embeddings, embeddings))",
        *(f"# {line}" for line in similarities.splitlines()),
    ]
    return "\n".join(lines).replace("'", '"')


def _merge_source(repo_id: str) -> str:
    return "\n".join(
        [
            "from st_prompteol import PromptEOL",
            "",
            f'model = PromptEOL("{repo_id}")',
            "model.merge_adapter()",
            'model.save_pretrained("merged")',
        ]
    )


def _this_machine(model: PromptEOL) -> str | None:
    """The accelerators of this machine, if the model was trained in this process."""
    if not was_trained_here(model):
        return None
    if torch.cuda.is_available():
        return escape(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return f"{os.cpu_count()} CPU cores" if model.device.type == "cpu" else escape(model.device.type)
