"""The data of a model card: upstream's training record, properties of the loaded model, and evaluation results."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
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
from st_prompteol.card.training import describe_evaluators, describe_training
from st_prompteol.extras import requirement
from st_prompteol.files.atomic import replacing_file
from st_prompteol.llm.fingerprint import Fingerprint
from st_prompteol.llm.loaded import adapters_of, came_quantized, is_quantized
from st_prompteol.prompt.template import HOLE

logger = logging.getLogger(__name__)

TAG = "prompteol"
README = "README.md"
# The last one has no period, so that preprocessing changes its embedding
SENTENCES = ["A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again"]
_PLACEHOLDER = "sentence_transformers_model_id"  # sentence-transformers replaces it when it pushes a folder
_SAME = 0.01  # maximum difference of cosine similarities of one model in another dtype or with a merged adapter
# Metadata of the earlier card to keep in the new one
_KEPT = ("language", "datasets", "metrics", "widget", "co2_eq_emissions", "license_name", "license_link")
_CHANGED = "**The numbers above were measured before {}**: they are those of the model as it was then."
_CHANGE = "the model was changed (its template, layer, weights or what is behind the pooling)"
_UNCHECKED = "Whether the model still is as it was when the numbers above were measured has not been checked."
_SHOWN = (
    "architecture", "template tokens", "max_seq_length", "layer", "dimension", "behind the pooling", "parameters",
    "dtype", "quantization",
)  # fmt: skip


@dataclass(frozen=True)
class _Embedded:
    """The embeddings of the card's sentences."""

    shape: str
    similarities: list[str]
    cosines: Cosines


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
    parts: dict[str, Part] = field(default_factory=dict, init=False, repr=False)
    results: dict[str, Sequence[EvalResult]] = field(default_factory=dict, init=False, repr=False)
    states: dict[str, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)
    base_card: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    curves: bool = field(default=False, init=False, repr=False)
    template_path: Path = field(default=Path(__file__).with_name("model_card.md.jinja"), init=False, repr=False)
    _embedded: _Embedded | None = field(default=None, init=False, repr=False)
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
            self._opened = self._state()

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
            if self._embedded:
                return self._is_same(cosines)
        is_loaded = self._loaded_text is not None and is_same_card(text, self._loaded_text)
        return is_loaded and self._opened == self._state()

    def _has_record(self) -> bool:
        return self.trained_here or bool(self.train_datasets or self.non_default_hyperparameters or self.training_logs)

    def measure(self, name: str, text: str, results: Sequence[EvalResult] = ()) -> None:
        """Adds measurements of the model in its current state to its card.

        Args:
            name: A word that identifies the measurement; a new one with the same name replaces it.
            text: A third-level heading and its section, in Markdown.
            results: The measurements as entries of the metadata's `model-index`. Defaults to none.
        """
        self.parts[name] = Part(text)  # the next card adds its cosine similarities
        self.results[name] = results
        self.states[name] = self._state()

    def sign(self, folder: str | os.PathLike[str]) -> None:
        """Signs a just saved card, so that the next save can detect whether it was edited; checks one of others."""
        path = Path(folder, README)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if self._loaded_text is None:
                text = sign(text, self._embedded.cosines if self._embedded else ())
            else:
                text = self.with_own_results(text)
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
        return self._variables(upstream)

    def try_to_set_base_model(self) -> None:
        """Does nothing, because the base model is known without a request to the Hub."""

    def run_usage_snippet(self) -> None:
        """Embeds the card's sentences, unless `generate_widget_examples` is False."""
        self._embedded = None
        if self.generate_widget_examples:
            self._embedded = self._embed()

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

    def _variables(self, upstream: dict[str, Any]) -> dict[str, Any]:
        """Returns the variables of the card's template, JSON-serializable."""
        model, body = self.model, self.model.body
        template, known = model.template, {} if self.trained_here else self.earlier.metadata
        adapter = adapter_config(model)
        base = self.find_base()
        own_license = self.license or known.get("license")
        license = own_license or self.base_card.get("license")
        quantized, comes_so = is_quantized(body), came_quantized(body)
        relation = "adapter" if adapter else "quantized" if quantized and not comes_so else "finetune"
        name = one_line(self.model_id or self.model_name or "")
        shown = self._embedded
        parts, results = self._measured(upstream)
        metadata = {
            **{key: self.base_card.get(key) for key in ("license_name", "license_link") if not own_license},
            **{key: known[key] for key in _KEPT if known.get(key)},
            **{key: upstream[key] for key in ("metrics", "widget", "co2_eq_emissions") if upstream.get(key)},
            **{key: value for key, value in (("language", self.language), ("datasets", self.datasets)) if value},
            "license": license,
            "library_name": self.library_name,
            "pipeline_tag": self.pipeline_tag,
            "tags": list(dict.fromkeys([*self.tags, *known.get("tags", ()), TAG])),
            "base_model": base,
            "base_model_relation": relation if base else None,
            "model_name": name or f"PromptEOL on {base or 'a decoder LLM'}" if results else None,
            "eval_results": results or None,
        }
        metadata = {key: value for key, value in metadata.items() if value not in (None, [], {})}
        earlier = {} if self.trained_here else self.earlier.parts
        hardware = self.hardware or (self._this_machine() if self.trained_here else None)
        return {
            "metadata": one_line_each(ModelCardData(**metadata).to_dict()),  # type: ignore[no-untyped-call]
            "cosines": list(shown.cosines) if shown else [],
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
            "shape": shown.shape if shown else None,
            "similarities": shown.similarities if shown else [],
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
            "license_from_base": bool(license) and not own_license,
            "requirement": requirement(),
        }

    def _measured(self, upstream: dict[str, Any]) -> tuple[list[dict[str, Any]], list[EvalResult]]:
        """Returns the parts of the results section, and the results of the model in its current state."""
        parts = {} if self.trained_here else dict(self.earlier.parts)
        found: dict[tuple[Any, ...], EvalResult] = {}
        if not self.trained_here and self._is_same(self.earlier.cosines):
            found |= {key_of(result): result for result in self.earlier.results}
        if upstream.get("eval_metrics"):
            cosines = self._embedded.cosines if self._embedded else ()
            parts["metrics"] = Part(describe_evaluators(self._of_the_kept_checkpoint()), cosines)
            found |= {key_of(result): result for result in model_index_to_eval_results(upstream["model-index"])[1]}
        fresh = {name for name, state in self.states.items() if state == self._state()}
        for name in self.parts:
            if name in fresh and self._embedded:
                self.parts[name] = Part(self.parts[name].text, self._embedded.cosines)
                del self.states[name]
            parts[name] = self.parts[name]
            if name in fresh or self._is_same(parts[name].cosines):
                found |= {key_of(result): result for result in self.results[name]}
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
        return shown, list(found.values())

    def _state(self) -> tuple[Any, ...]:
        """Returns the model's state as far as it is known without computing embeddings."""
        model = self.model
        prompt = model.prompts.get(model.default_prompt_name)
        changeable = model.template, model.layer, model.max_seq_length, model.truncate_dim, prompt
        active = model.body.active_adapters() if model.adapters else []
        weights = hashlib.sha256()
        for sample in Fingerprint(model).samples:
            weights.update(sample.cpu().view(torch.uint8).numpy().data)
        modules = id(model.body), *map(id, list(model)[1:])
        return *changeable, modules, tuple(model.adapters), tuple(active), weights.hexdigest()

    def _note(self, cosines: Cosines) -> str | None:
        if self._is_same(cosines):
            return None
        return _CHANGED.format(escape(self.change or _CHANGE)) if self._embedded else _UNCHECKED

    def _is_same(self, cosines: Cosines) -> bool:
        """Whether these cosine similarities are those of the model in its current state, as far as known."""
        now = self._embedded.cosines if self._embedded else ()
        return len(now) == len(cosines) > 0 and all(
            abs(one - other) <= _SAME for one, other in zip(now, cosines, strict=True)
        )

    def _embed(self) -> _Embedded:
        model = self.model
        embeddings = model.encode(SENTENCES, convert_to_tensor=True, show_progress_bar=False).float().cpu()
        cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
        similarities = str(model.similarity(embeddings, embeddings).float().cpu()).splitlines()
        pairs = torch.triu_indices(len(SENTENCES), len(SENTENCES), offset=1)
        return _Embedded(
            str(tuple(embeddings.shape)), similarities, tuple(round(float(one), 4) for one in cosines[*pairs])
        )

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
        known = None if self.trained_here else self.earlier.metadata.get("base_model")
        names = [self.base_model, self.model[0].config.name_or_path]
        if adapter or known:
            names = [adapter.base_model_name_or_path] if adapter else known if isinstance(known, list) else [known]
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


def key_of(result: EvalResult) -> tuple[Any, ...]:
    """Returns a key that is equal for two results of the same measurement."""
    return result.dataset_type, result.dataset_name, result.dataset_config, result.dataset_split, result.metric_type
