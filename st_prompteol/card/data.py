"""The data of a model card: upstream's training record, properties of the loaded model, and evaluation results."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftConfig
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData

from st_prompteol.card.earlier import (
    Cosines,
    EarlierCard,
    Part,
    cosines_of,
    is_ours,
    is_same_card,
    read_card,
    sign,
    without_results,
    write_cosines,
)
from st_prompteol.card.markdown import code, escape, fence, one_line, one_line_each
from st_prompteol.card.state import SENTENCES, Embedded, Measured, state_of
from st_prompteol.card.training import describe_evaluators, describe_training
from st_prompteol.extras import requirement
from st_prompteol.files.atomic import replacing_file
from st_prompteol.llm.loaded import adapters_of, came_quantized, is_quantized
from st_prompteol.prompt.template import HOLE

logger = logging.getLogger(__name__)

TAG = "prompteol"
README = "README.md"
_PLACEHOLDER = "sentence_transformers_model_id"  # sentence-transformers replaces it when it pushes a folder
# Metadata of the earlier card to keep in the new one
_KEPT = ("language", "datasets", "metrics", "widget", "co2_eq_emissions", "license_name", "license_link")
_CHANGED = "**The numbers above were measured before {}**: they are those of the model as it was then."
_CHANGE = "the model was changed (its template, layer, weights or what is behind the pooling)"
_UNCHECKED = "Whether the model still is as it was when the numbers above were measured has not been checked."
_SHOWN = (
    "architecture", "template tokens", "max_seq_length", "layer", "dimension", "behind the pooling", "parameters",
    "dtype", "quantization",
)  # fmt: skip


@dataclass
class PromptEOLModelCardData(SentenceTransformerModelCardData):
    """The data of a saved model's README, in addition to those of `SentenceTransformerModelCardData`.

    Args:
        language: The language code or codes. Defaults to none: those of an earlier card.
        license: The license identifier. Defaults to None: that of an earlier card.
        model_name: The title. Defaults to None: derived from the repository or the base LLM.
        model_id: The repository in the usage code. Defaults to None: a placeholder, which sentence-transformers fills
            in when it pushes a folder.
        train_datasets: The training datasets, filled by a trainer. Defaults to none.
        eval_datasets: The evaluation datasets, filled by a trainer. Defaults to none.
        task_name: The task, as in `SentenceTransformerModelCardData`; not shown.
        tags: The tags. Defaults to those of sentence-transformers and `"prompteol"`.
        local_files_only: Whether to avoid requests to the Hub. Defaults to False.
        generate_widget_examples: Whether to embed three sentences when saving, to show their similarities and to check
            whether earlier results still apply to the model. Defaults to True.
        hardware: The hardware used for training. Defaults to None: this machine, if the model was trained in this
            process.
        limits: Limitations and other information for users, in Markdown. Defaults to None.
        change: The change to the model that made earlier results outdated, phrased to follow "before". Defaults to
            None: a general phrase.
        base_repository: The repository of the base LLM, if it was loaded from a local copy. Defaults to None: the
            repository in the adapter, the earlier card or the model's configuration; folders are not named.

    Example:
        >>> from st_prompteol import PromptEOL
        >>> card = PromptEOLModelCardData(license="apache-2.0", limits="English only.")
        >>> model = PromptEOL("tiny", model_card_data=card)  # model.save_pretrained(…) writes it
    """

    tags: list[str] = field(
        default_factory=lambda: ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", TAG]
    )
    hardware: str | None = None
    limits: str | None = None
    change: str | None = None
    base_repository: str | None = None

    # Filled when a model is loaded, by `measure`, and by a push
    earlier: EarlierCard = field(default_factory=EarlierCard, init=False, repr=False)
    measured: dict[str, Measured] = field(default_factory=dict, init=False, repr=False)
    base_card: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    curves: bool = field(default=False, init=False, repr=False)
    template_path: Path = field(default=Path(__file__).with_name("model_card.md.jinja"), init=False, repr=False)
    _embedded: Embedded = field(default=Embedded(), init=False, repr=False)
    # The state in which the model was loaded, see `remember_state`
    _opened: tuple[Any, ...] | None = field(default=None, init=False, repr=False)

    def register_model(self, model: Any) -> None:
        """Reads the card of the loaded model; the text of a card that was edited is kept."""
        super().register_model(model)
        if model._model_card_text and is_ours(model._model_card_text):
            self.earlier = read_card(model._model_card_text)
            model._model_card_text = None

    def remember_state(self) -> None:
        """Records that the model is the one that its card, if others wrote it, has results of."""
        if self._loaded_text and without_results(self._loaded_text) != self._loaded_text:
            self._opened = state_of(self.model)

    @property
    def trained_here(self) -> bool:
        """Whether a trainer has changed the model since it was loaded."""
        return "generated_from_trainer" in self.tags

    @property
    def kept_text(self) -> str | None:
        """The card of the loaded model, if others wrote or edited it; without results that are of another model."""
        return self.with_own_results(self._loaded_text) if self._loaded_text else None

    @property
    def _loaded_text(self) -> str | None:
        return None if self.trained_here else getattr(self.model, "_model_card_text", None)

    def with_own_results(self, text: str) -> str:
        """Returns a card that others wrote or edited, without `model-index` if that is of another model."""
        rest = without_results(text)
        if rest == text or self._is_of_this_model(text):
            return text
        logger.warning(
            "The model-index in a README that was written or edited by hand is not of this model, so it was removed; "
            "the text was kept: check the numbers in it."
        )
        return rest

    def _is_of_this_model(self, text: str) -> bool:
        """Whether a card that others wrote or edited is of the model in its current state, as far as known."""
        if cosines := cosines_of(text):
            with suppress(ValueError):  # embeddings that are not finite do not keep a model from being saved
                self.run_usage_snippet()
            if self._embedded.cosines:
                return self._embedded.has(cosines)
        is_loaded = self._loaded_text is not None and is_same_card(text, self._loaded_text)
        return is_loaded and self._opened == state_of(self.model)

    @property
    def _kept(self) -> EarlierCard:
        """The card of the loaded model, as far as it is one of ours and still of the model's weights."""
        return EarlierCard() if self.trained_here else self.earlier

    def _has_record(self) -> bool:
        return self.trained_here or bool(self.train_datasets or self.non_default_hyperparameters or self.training_logs)

    def measure(self, name: str, text: str, results: Sequence[EvalResult] = ()) -> None:
        """Adds measurements of the model in its current state to its card.

        Args:
            name: A word that identifies the measurement; a new one with the same name replaces it.
            text: A third-level heading and its section, in Markdown.
            results: The measurements as entries of the metadata's `model-index`. Defaults to none.
        """
        self.measured[name] = Measured(Part(text), results, state_of(self.model))  # the next card adds the cosines

    def sign(self, folder: str | os.PathLike[str]) -> None:
        """Signs a just saved card, so that the next save can detect whether it was edited; checks one of others."""
        path = Path(folder, README)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            is_new = self._loaded_text is None
            text = sign(text, self._embedded.cosines) if is_new else self.with_own_results(text)
            path.write_text(text, encoding="utf-8")

    def check_results(self, card: Path, folder: Path) -> None:
        """Writes a card that others wrote or edited to a folder if it has results of another model, without them."""
        try:
            text = card.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            return
        if (rest := self.with_own_results(text)) != text:
            (folder / README).write_bytes(rest.encode())

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Rewrites the card in the folder of a saved model, unless others wrote or edited it."""
        path = Path(folder, README)
        if self._loaded_text is None and may_write_card(path):
            self.curves, self.save_dir = Path(folder, "curves.png").is_file(), os.fspath(folder)
            with replacing_file(path) as staged:
                staged.write_text(str(render(self.variables())), encoding="utf-8")

    def variables(self) -> dict[str, Any]:
        """Returns the variables of the card's template, JSON-serializable."""
        given = self.model_name  # type: ignore[has-type]
        upstream = super().to_dict()
        self.model_name, self._cached_dict = given, None  # filled by upstream
        model, shown, earlier = self.model, self._embedded, self._kept.parts
        template, adapter, base = model.template, adapter_config(model), self.find_base()
        quantized, comes_so = is_quantized(model.body), came_quantized(model.body)
        relation = "adapter" if adapter else "quantized" if quantized and not comes_so else "finetune"
        parts, results = self._results(upstream)
        metadata = self._metadata(upstream, base, relation, results)
        license = metadata.get("license")
        hardware = self.hardware or (self._this_machine() if self.trained_here else None)
        return {
            "metadata": metadata,
            "cosines": shown.cosines,
            "title": escape(self._title(base)),
            "repo_id": one_line(self.model_id or _PLACEHOLDER).replace('"', ""),
            "is_named": bool(self.model_id),
            "base": base,
            "base_revision": self._base_revision(adapter, base),
            "adapter": _describe_adapter(adapter) if adapter else None,
            "facts": {name: value for name, value in model.describe().items() if name in _SHOWN} | self._saved_dtype(),
            "quantized": quantized and (comes_so or adapter is None),
            "truncate_dim": model.truncate_dim,
            "similarity": model.similarity_fn_name or "cosine",
            "sentences": SENTENCES,
            "shape": shown.shape,
            "similarities": shown.similarities,
            "template_block": fence(template.text.replace(HOLE, "{sentence}")),
            "demonstrations": [(code(shot.sentence), code(shot.word)) for shot in template.demonstrations],
            "preprocessing": template.preprocessing,
            "rendered": fence(template.render(SENTENCES[0])),
            "parts": parts,
            "training": describe_training(self, upstream) if self._has_record() else None,
            "earlier_training": earlier["training"].text if "training" in earlier else None,
            "hardware": escape(hardware) if hardware else None,
            "curves": self.curves,
            "limits": self.limits or (earlier["limits"].text if "limits" in earlier else None),
            "license": code(license) if license else None,
            "license_from_base": bool(license) and not self._own_license,
            "requirement": requirement(),
        }

    def try_to_set_base_model(self) -> None:
        """Does nothing, because the base model is known without a request to the Hub."""

    def run_usage_snippet(self) -> None:
        """Embeds the card's sentences, unless `generate_widget_examples` is False."""
        self._embedded = Embedded()
        if self.generate_widget_examples:
            self._embedded = Embedded.of(self.model)

    def format_eval_metrics(self) -> dict[str, Any]:
        """Formats the evaluators' results for the kept checkpoint like upstream, and omits other checkpoints."""
        everything = self.eval_results_dict  # type: ignore[has-type]
        self.eval_results_dict = self._of_the_kept_checkpoint()
        try:
            formatted: dict[str, Any] = super().format_eval_metrics() if self.eval_results_dict else {}
        finally:
            self.eval_results_dict = everything
        return formatted

    def to_dict(self) -> dict[str, Any]:
        """Returns the variables of the card's template, for upstream's rendering."""
        variables = self.variables()
        self._cached_dict = variables  # type: ignore[assignment]
        return variables

    def to_yaml(self, line_break: str | None = None) -> str:
        """Returns the card's metadata as YAML, for upstream's rendering."""
        variables, self._cached_dict = self._cached_dict or self.variables(), None
        return ModelCardData(**variables["metadata"]).to_yaml(line_break=line_break)

    @property
    def _own_license(self) -> str | None:
        return self.license or self._kept.metadata.get("license")

    def _metadata(
        self, upstream: dict[str, Any], base: str | None, relation: str, results: list[EvalResult]
    ) -> dict[str, Any]:
        """Returns the card's metadata without empty values."""
        known, own_license = self._kept.metadata, self._own_license
        name = one_line(self.model_id or self.model_name or "")
        metadata = {
            **{key: self.base_card.get(key) for key in ("license_name", "license_link") if not own_license},
            **{key: known[key] for key in _KEPT if known.get(key)},
            **{key: upstream[key] for key in ("metrics", "widget", "co2_eq_emissions") if upstream.get(key)},
            **{key: value for key, value in (("language", self.language), ("datasets", self.datasets)) if value},
            "license": own_license or self.base_card.get("license"),
            "library_name": self.library_name,
            "pipeline_tag": self.pipeline_tag,
            "tags": list(dict.fromkeys([*self.tags, *known.get("tags", ()), TAG])),
            "base_model": base,
            "base_model_relation": relation if base else None,
            "model_name": name or f"PromptEOL on {base or 'a decoder LLM'}" if results else None,
            "eval_results": results or None,
        }
        metadata = {key: value for key, value in metadata.items() if value not in (None, [], {})}
        filled: dict[str, Any] = one_line_each(ModelCardData(**metadata).to_dict())  # type: ignore[no-untyped-call]
        return filled

    def _results(self, upstream: dict[str, Any]) -> tuple[list[dict[str, Any]], list[EvalResult]]:
        """Returns the parts of the results section, and the results of the model in its current state."""
        cosines, state = self._embedded.cosines, state_of(self.model) if self.measured else None
        parts, fresh = dict(self._kept.parts), set()
        found: list[Sequence[EvalResult]] = [self._kept.results if self._embedded.has(self._kept.cosines) else ()]
        if upstream.get("eval_metrics"):
            parts["metrics"] = Part(describe_evaluators(self._of_the_kept_checkpoint()), cosines)
            found.append(model_index_to_eval_results(upstream["model-index"])[1])
        for name, one in self.measured.items():
            if one.state == state:
                fresh.add(name)
                if cosines:
                    self.measured[name] = one = replace(one, part=Part(one.part.text, cosines), state=None)
            parts[name] = one.part
            if name in fresh or self._embedded.has(one.part.cosines):
                found.append(one.results)
        shown = [
            {
                "name": name,
                "text": part.text,
                "cosines": write_cosines(part.cosines),
                "note": None if name in fresh else self._note(part.cosines),
            }
            for name, part in parts.items()
            if name not in ("training", "limits")
        ]
        return shown, merge_results(*found)

    def _note(self, cosines: Cosines) -> str | None:
        if self._embedded.has(cosines):
            return None
        return _CHANGED.format(escape(self.change or _CHANGE)) if self._embedded.cosines else _UNCHECKED

    def _of_the_kept_checkpoint(self) -> dict[Any, dict[str, Any]]:
        """Returns the results of the evaluators whose last evaluation was of the kept checkpoint."""

        def last_step(evaluator: Any) -> int | None:
            name = getattr(evaluator, "primary_metric", None)
            return next((row["Step"] for row in reversed(self.training_logs) if name in row), None)

        steps = (None, -1, self.best_model_step)  # -1: evaluated after training
        return {
            evaluator: metrics
            for evaluator, metrics in (self.eval_results_dict or {}).items()
            if self.best_model_step is None or last_step(evaluator) in steps
        }

    def _saved_dtype(self) -> dict[str, str]:
        """Returns the dtype in the saved configuration, with which the model is loaded by default."""
        try:
            config = json.loads(Path(self.save_dir or "", "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        dtype = config.get("dtype") or config.get("torch_dtype")
        return {"dtype": str(dtype)} if dtype else {}

    def _title(self, base: str | None) -> str:
        if self.model_name:
            return one_line(self.model_name)
        if self.model_id:
            return str(self.model_id).split("/")[-1]
        return f"PromptEOL on {base}" if base else "PromptEOL sentence embeddings"

    def find_base(self) -> str | None:
        """Returns the repository of the base LLM, None if others could not load it."""
        adapter = adapter_config(self.model)
        known = self._kept.metadata.get("base_model")
        if adapter:
            names = [adapter.base_model_name_or_path]
        elif known:
            names = known if isinstance(known, list) else [known]
        else:
            names = [self.base_model, self.model[0].config.name_or_path]
        names = [self.base_repository, *names]
        return next((name for name in names if name and not os.path.exists(name) and is_repository(name)), None)

    def _base_revision(self, adapter: PeftConfig | None, base: str | None) -> str | None:
        commit = self.model.commit
        if adapter is not None:
            commit = commit or adapter.revision
        elif base != self.model[0].config.name_or_path:
            commit = self.base_model_revision
        return commit if base and re.fullmatch("[0-9a-f]{40}", commit or "") else None

    def _this_machine(self) -> str:
        if torch.cuda.is_available():
            return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        device: str = self.model.device.type
        return f"{os.cpu_count()} CPU cores" if device == "cpu" else device


def render(variables: Mapping[str, Any]) -> ModelCard:
    """Renders and signs a card from the output of `PromptEOLModelCardData.variables`."""
    data = ModelCardData(**variables["metadata"])
    path = str(PromptEOLModelCardData.template_path)
    others = {name: value for name, value in variables.items() if name != "metadata"}
    card: ModelCard = ModelCard.from_template(data, template_path=path, **others)
    return ModelCard(sign(card.content, tuple(variables["cosines"])))


def may_write_card(path: Path) -> bool:
    """Whether a README may be replaced, i.e. was not written or edited by others."""
    try:
        return is_ours(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def is_repository(name: str) -> bool:
    """Whether a name is a valid repository name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def as_own_data(data: SentenceTransformerModelCardData) -> PromptEOLModelCardData:
    """Converts card data of upstream's class to this package's, with all fields that an author can set."""
    if isinstance(data, PromptEOLModelCardData):
        return data
    given = {one.name: getattr(data, one.name) for one in fields(data) if one.init}
    return PromptEOLModelCardData(**given)


def adapter_config(model: Any) -> PeftConfig | None:
    """Returns the configuration of a model's active adapter, None if it has none."""
    configs = adapters_of(model.body)
    return configs[model.body.active_adapters()[0]] if configs else None


def _describe_adapter(adapter: PeftConfig) -> list[str]:
    names = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    facts = [f"{name} {getattr(adapter, key)}" for key, name in names.items() if hasattr(adapter, key)]
    targets = getattr(adapter, "target_modules", None) or ()
    layers = [targets] if isinstance(targets, str) else sorted({name.rsplit(".", 1)[-1] for name in targets})
    return [
        escape("LoRA" if kind == "LORA" else kind),
        *facts,
        *([f"on {', '.join(map(code, layers))}"] * bool(layers)),
    ]


def merge_results(*groups: Iterable[EvalResult] | None) -> list[EvalResult]:
    """Returns the results of all groups; of two of the same measurement, the later one."""
    key = attrgetter("dataset_type", "dataset_name", "dataset_config", "dataset_split", "metric_type")
    return list({key(one): one for group in groups for one in group or ()}.values())
