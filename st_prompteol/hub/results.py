"""Results of `st-prompteol evaluate` for a card: its table, its `model-index`, and the Hub's `.eval_results`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from st_prompteol.card.markdown import escape, one_line
from st_prompteol.evaluation.data import REPOSITORY
from st_prompteol.evaluation.mteb import revision_in_results
from st_prompteol.evaluation.results import Run, identity_of
from st_prompteol.evaluation.score_table import SHORT_NAMES, ScoreRow
from st_prompteol.evaluation.senteval import CROSS_VALIDATED_TASKS, STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS
from st_prompteol.extras import missing_extra
from st_prompteol.model import PromptEOL

SOURCES = ("SentEval ", "MTEB ")  # prefixes of dataset names in a card's metadata
_SENTEVAL = (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS)


@dataclass(frozen=True)
class ModelResults:
    """The results for a card.

    Args:
        own: Task -> content of the results file, for the model itself.
        base: Rows of the base model.
    """

    own: Mapping[str, Mapping[str, Any]]
    base: tuple[ScoreRow, ...]


def read_results(
    results_dir: str | os.PathLike[str] | None, run: Run | None, base_model: str | None
) -> ModelResults | None:
    """Reads the results of a model and of its base.

    Args:
        results_dir: The `--results-dir` of `st-prompteol evaluate`; None if there are no results.
        run: The key of the model in its current state; None for a model trained since it was loaded.
        base_model: The base model, as it was evaluated; None for no rows of it.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If no result belongs to this model in its current state.
    """
    if results_dir is None:
        return None
    if not Path(results_dir).is_dir():
        raise FileNotFoundError(
            f"{os.fspath(results_dir)!r} is not a folder of results: pass the one that evaluate wrote."
        )
    if run is None:
        raise ValueError(
            f"No result in {os.fspath(results_dir)!r} can be of a model that was trained since it was opened: save "
            "it, run `st-prompteol evaluate` on the folder, and give the folder in place of the model."
        )
    own: dict[str, dict[str, Any]] = {}
    base: dict[str, dict[str, float]] = {}
    others = set()
    for content in [*_senteval_results(results_dir), *_mteb_results(results_dir, run)]:
        task, score = content["task"], float(content["score"])
        if content["revision"] == run.revision and content["identity"] == run.identity:
            own[task] = {**content, "score": score}
        elif base_model is not None and content["model"] == base_model:
            base.setdefault(content["method"], {})[task] = score
        else:
            others.add(str(content["model"]))
    if not own:
        raise ValueError(
            f"{os.fspath(results_dir)!r} holds no result of {run.model!r} as it is now"
            + (f", but of {one_line(', '.join(sorted(others)))[:200]}" if others else "")
            + f": run `st-prompteol evaluate {run.model}` with this --results-dir first."
        )
    rows = (ScoreRow(str(base_model), f"{escape(method)}, no training", scores) for method, scores in base.items())
    return ModelResults(own, tuple(rows))


def eval_results(results: ModelResults) -> list[EvalResult]:
    """Returns the results as entries of a card's `model-index`, with scores x100."""
    entries = []
    for task, content in results.own.items():
        dataset, is_similarity = _dataset(task, content), _is_similarity(task, content)
        is_folded = task in CROSS_VALIDATED_TASKS
        metric = "Spearman cosine x100" if is_similarity else "Main score x100"
        entries.append(
            EvalResult(
                task_type="semantic-similarity" if is_similarity else "text-classification",
                task_name="Semantic Similarity" if is_similarity else "Classification",
                dataset_type=dataset["id"],
                dataset_name=f"{'MTEB' if 'dataset' in content else 'SentEval'} {SHORT_NAMES.get(task, task)}",
                dataset_config=dataset["task_id"],
                dataset_split="dev" if task == STS_DEV_TASK else "train" if is_folded else "test",
                dataset_revision=dataset.get("revision"),
                metric_type="spearman_cosine" if is_similarity else "accuracy",
                metric_name=f"{metric}, mean of 10 held-out folds" if is_folded else metric,
                metric_value=round(content["score"], 4),
            )
        )
    return entries


def eval_result_files(results: ModelResults) -> dict[str, str]:
    """Returns the files of `.eval_results/` in the Hub's format, name -> YAML, one per dataset."""
    files: dict[str, list[EvalResultEntry]] = {}
    for task, content in results.own.items():
        dataset, settings = _dataset(task, content), content.get("settings", {})
        notes = ["Spearman of cosines x100" if _is_similarity(task, content) else "main score x100"]
        notes += [one_line(f"{key} {settings[key]}") for key in ("method", "dtype") if settings.get(key)]
        date = str(content.get("date"))
        entry = EvalResultEntry(
            dataset_id=dataset["id"],
            task_id=dataset["task_id"],
            dataset_revision=dataset.get("revision"),
            value=round(content["score"], 4),
            date=date if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}Z", date) else None,
            notes=", ".join(notes),
        )
        name = re.sub(r"[^\w.-]+", "_", dataset["id"].split("/")[-1])
        files.setdefault(f"{name}.yaml", []).append(entry)
    return {name: yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False) for name, entries in files.items()}


def _is_similarity(task: str, content: Mapping[str, Any]) -> bool:
    if "dataset" in content:
        return str(content.get("metric", "")).endswith("spearman")
    return task in (*STS_TASKS, STS_DEV_TASK)


def _dataset(task: str, content: Mapping[str, Any]) -> dict[str, str]:
    return {**(content.get("dataset") or {"id": REPOSITORY, "task_id": task})}


def _senteval_results(results_dir: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    for path in sorted(Path(results_dir).rglob("*.json")):
        content = path.stem in _SENTEVAL and _read(path, ("model", "revision", "method", "task", "score", "settings"))
        if content:
            yield {**content, "identity": identity_of(content["settings"])}


def _mteb_results(results_dir: str | os.PathLike[str], run: Run) -> Iterator[dict[str, Any]]:
    """Yields mteb's results for a model, `<model>/<revision>/<task>.json`, in the format of our results."""
    folders = (run.revision, f"{run.revision}-{run.identity}")
    paths = [path for path in sorted(Path(results_dir, "mteb").rglob("*.json")) if path.parent.name in folders]
    if not paths:
        return
    # the fingerprint follows the revision where the files alone do not determine it
    identity = {name: value for name, value in run.settings.items() if name != "method"}
    folder = revision_in_results(PromptEOL, run.model, run.revision, identity)
    for path in paths:
        if path.parent.name != folder:
            continue
        content = _read(path, ("task_name", "scores"))
        if not content:
            continue
        scores = [subset["main_score"] for split in content["scores"].values() for subset in split]
        dataset, metric = _mteb_dataset(content["task_name"])
        yield {
            "model": path.parent.parent.name,
            "revision": run.revision,
            "identity": run.identity,
            "method": "MTEB",
            "task": f"{content['task_name']} (MTEB)",
            "score": 100 * sum(scores) / len(scores),
            "metric": metric,
            "dataset": {
                "id": dataset,
                "task_id": content["task_name"],
                "revision": str(content.get("dataset_revision")),
            },
        }


def _mteb_dataset(task: str) -> tuple[str, str]:
    try:
        import mteb
    except ImportError as error:
        raise missing_extra("A card with MTEB's results", "mteb", "eval") from error
    metadata = mteb.get_task(task).metadata
    return str(metadata.dataset["path"]), str(metadata.main_score)


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(key in content for key in keys):
            return None
        float(content.get("score", 0))
    except (ValueError, TypeError):
        return None
    return content
