"""The model card: sentence-transformers' own card data, and what a stranger needs to use and to trust the model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftConfig
from sentence_transformers.base.model_card import generate_model_card

from st_prompteol.evaluation.report import published_rows, table
from st_prompteol.hub.markdown import code, escape, fence, one_line, section
from st_prompteol.hub.markdown import table as markdown_table
from st_prompteol.hub.measured import Measured, eval_results, read_results
from st_prompteol.model import PromptEOL
from st_prompteol.template import HOLE

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TAG = "prompteol"
PREPROCESSING = {
    "paper": "A full stop is put after a sentence that ends in none of `. ? \" '`, double quotes become single ones, "
    "and a final `?` becomes `.`, as the paper's evaluation does.",
    "none": "Sentences go into the template as they are.",
}
SENTENCES = ("A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again.")


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
        source: The folder or repository that the model was opened from and evaluated as. Defaults to None: what the
            model's configuration says.
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
    _check_metadata(repo_id, base_model, license, language, datasets)
    upstream = _upstream_card(model)
    known: dict[str, Any] = upstream.data.to_dict()  # type: ignore[no-untyped-call]
    source = source or str(model[0].config.name_or_path)
    adapter = _adapter_config(model)
    local_base = str(adapter.base_model_name_or_path) if adapter else None
    base = base_model or _find_base(model, local_base, known)
    revision = _base_revision(model, adapter, base)
    base_card = _card_data_of(base, revision, token)
    measured = read_results(results_dir, model, source, local_base or base) if results_dir is not None else None

    data = ModelCardData(
        language=_languages(language) or known.get("language"),
        license=license or known.get("license") or base_card.get("license"),
        license_name=None if license else base_card.get("license_name"),
        license_link=None if license else base_card.get("license_link"),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(dict.fromkeys([*known.get("tags", []), "sentence-transformers", "feature-extraction", TAG])),
        datasets=list(datasets) if datasets is not None else known.get("datasets"),
        base_model=base,
        base_model_relation=_relation(model, adapter) if base else None,
        metrics=known.get("metrics"),
        widget=known.get("widget"),
        co2_eq_emissions=known.get("co2_eq_emissions"),
        model_name=one_line(repo_id),
        eval_results=_merge_results(
            getattr(upstream.data, "eval_results", None), eval_results(measured) if measured else []
        ),
    )
    data.model_name = one_line(repo_id) if data.eval_results else None
    _clean(data)
    training = section(upstream.text, "## Training Details")
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=escape(_title(model, repo_id)),
        repo_id=repo_id,
        base=_link(base) if base else None,
        base_revision=revision,
        adapter=_adapter_facts(adapter) if adapter else None,
        facts=_facts(model),
        usage=fence(_usage(model, repo_id), "python"),
        template_block=fence(model.template.text.replace(HOLE, "{sentence}"), "text"),
        demonstrations=[(code(shot.sentence), code(shot.word)) for shot in model.template.demonstrations],
        preprocessing=PREPROCESSING[model.template.preprocessing],
        rendered=fence(model.template.render(SENTENCES[0]), "text"),
        layer=model.layer,
        table=_evaluation_table(model, repo_id, measured, base) if measured else None,
        metrics=section(upstream.text, "### Metrics"),
        training=training if training and "###" in training.split("### Framework Versions")[0] else None,
        versions=section(upstream.text, "### Framework Versions"),
        hardware=escape(hardware) if hardware else _this_machine(model),
        curves=os.path.isfile(os.path.join(source, "curves.png")),
        template_source=fence(_template_source(repo_id), "python"),
        merge_source=fence(_merge_source(repo_id), "python") if adapter else None,
        limits=limits,
        license=escape(data.license) if data.license else None,
        license_from_base=bool(data.license) and not license and not known.get("license"),
        citations=_citations(upstream.text),
    )
    return card


def _upstream_card(model: PromptEOL) -> ModelCard:
    """The card that sentence-transformers would write: as saved for a model that was opened, else generated now."""
    text, data = model._model_card_text, model.model_card_data
    if not text or "generated_from_trainer" in data.tags:
        # upstream puts names and values into Markdown as they are
        harmless: dict[str, Any] = {
            "train_datasets": [_harmless_dataset(dataset) for dataset in data.train_datasets],
            "eval_datasets": [_harmless_dataset(dataset) for dataset in data.eval_datasets],
            "all_hyperparameters": _harmless(data.all_hyperparameters),
            "non_default_hyperparameters": _harmless(data.non_default_hyperparameters),
            "training_logs": [_harmless(line) for line in data.training_logs],
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


def _harmless(values: dict[str, Any]) -> dict[str, Any]:
    return {
        escape(name): value if isinstance(value, int | float | bool | None) else escape(value)
        for name, value in values.items()
    }


def _harmless_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if dataset.get("name"):
        changes["name"] = escape(dataset["name"])
    if dataset.get("columns"):
        changes["columns"] = [one_line(column).replace("`", "") for column in dataset["columns"]]
    if isinstance(dataset.get("loss"), dict) and "fullname" in dataset["loss"]:
        changes["loss"] = {**dataset["loss"], "fullname": escape(dataset["loss"]["fullname"])}
    return {**dataset, **changes}


def _check_metadata(
    repo_id: str,
    base_model: str | None,
    license: str | None,
    language: str | Sequence[str] | None,
    datasets: Sequence[str] | None,
) -> None:
    for name in (repo_id, base_model, *(datasets or ())):
        if name is not None and not _is_repository(name):
            raise ValueError(f"{name!r} cannot be the name of a repository: write it as user/name.")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f"{license!r} is no identifier of a licence: write one like apache-2.0, or other.")
    for tag in _languages(language) or ():
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|code|multilingual", tag):
            raise ValueError(f"{tag!r} is no code of a language: write one like en.")


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _languages(language: str | Sequence[str] | None) -> list[str] | None:
    return [language] if isinstance(language, str) else list(language) if language else None


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
    return next((name for name in candidates if not os.path.exists(name) and _is_repository(name)), None)


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
        data.datasets = [name for name in names if _is_repository(name)] or None


def _title(model: PromptEOL, repo_id: str) -> str:
    name = model.model_card_data.model_name
    generated = not name or name.startswith((type(model).__name__, "SentenceTransformer"))
    return repo_id.split("/")[-1] if generated else str(name)


def _link(repository: str) -> str:
    return f"[{escape(repository)}](https://huggingface.co/{repository})"


def _facts(model: PromptEOL) -> dict[str, str]:
    facts = model.describe()
    similarity = model.similarity_fn_name or "cosine"
    return {
        "Numbers per embedding": f"{facts['dimension']:,}",
        "Hidden state": f"{model.layer}" + (" (the last, after the final norm)" if model.layer == -1 else ""),
        "Most tokens": f"{facts['max_seq_length']:,}, of which the template takes {facts['template tokens']:,}"
        if facts["max_seq_length"]
        else f"no limit; the template takes {facts['template tokens']:,}",
        "Architecture": code(facts["architecture"]),
        "Parameters": f"{facts['parameters']:,}",
        "Saved as": code(facts["dtype"]),
        "Similarity": escape(similarity),
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


def _template_source(repo_id: str) -> str:
    return "\n".join(
        [
            "from transformers import AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
            f'messages = [{{"role": "user", "content": "{SENTENCES[0]}"}}]',
            "print(tokenizer.apply_chat_template(messages, tokenize=False))",
        ]
    )


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


def _evaluation_table(model: PromptEOL, repo_id: str, measured: Measured, base: str | None) -> str:
    own = measured.row(repo_id, "this model")
    published = published_rows([type(own)(base, "", {})]) if base else []
    return markdown_table(table([own, *measured.base, *published]))


def _this_machine(model: PromptEOL) -> str | None:
    """The accelerators of this machine, if the model was trained in this process."""
    if not model.model_card_data.training_logs:
        return None
    if torch.cuda.is_available():
        return escape(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return f"{os.cpu_count()} CPU cores" if model.device.type == "cpu" else escape(model.device.type)


def _citations(card: str) -> str | None:
    """Upstream's citations: of sentence-transformers and of the losses that were trained with."""
    text = section(card, "### BibTeX")
    return None if text is None else re.sub(r"^#### PromptEOL\n+```bibtex\n.*?^```\n*", "", text, flags=re.M | re.S)
