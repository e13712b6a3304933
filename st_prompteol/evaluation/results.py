"""Results on disk: one file per finished task, written atomically, in a folder per model and method."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.evaluation.senteval import TaskResult, task_files
from st_prompteol.extras import versions_of
from st_prompteol.files.atomic import digest_of_files, replacing_file
from st_prompteol.llm.decoders import opened_commit, split_gguf
from st_prompteol.saved.identity import digest, identify

logger = logging.getLogger(__name__)

_FILES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")  # files that belong to a model
_PACKAGES = "st-prompteol sentence-transformers transformers torch peft numpy scipy scikit-learn".split()


@dataclass(frozen=True)
class Run:
    """A model evaluated with one method, to which a folder of results belongs.

    Args:
        model: The model's repository or folder.
        revision: Its commit on the Hub, or a hash of the folder's files.
        method: Name of the embedding method in tables.
        settings: Everything that the embeddings depend on, as returned by `identify`, and the method.
        parameters: Number of parameters.

    Example:
        >>> run = Run.of(PromptEOL("tiny"), TINY)
        >>> run.method, run.folder("results").parts[:2]
        ('as saved', ('results', 'tiny'))
    """

    model: str
    revision: str
    method: str
    settings: Mapping[str, Any]
    parameters: int

    @classmethod
    def of(
        cls, model: SentenceTransformer, name: str, method: str = "as saved", *, revision: str | None = None
    ) -> Run:
        """Describes a loaded model.

        Args:
            model: The model.
            name: Its repository or folder.
            method: Name of the embedding method in tables. Defaults to `"as saved"`.
            revision: The branch, tag or commit that was loaded. Defaults to None: the main branch.
        """
        body = model.transformers_model
        settings = {"method": method, **identify(model)}
        # transformers accounts for 4-bit weights, which are packed two per byte
        parameters = body.num_parameters() if body is not None else sum(p.numel() for p in model.parameters())
        return cls(name, revision_of(name, revision), method, settings, parameters)

    @property
    def digest(self) -> str:
        """A short hash of the settings."""
        return digest(self.settings)[:8]

    @property
    def identity(self) -> str:
        """A short hash of the settings that the embeddings depend on."""
        return identity_of(self.settings)

    def folder(self, results_dir: str | Path) -> Path:
        """Returns the folder of its results, `<results_dir>/<model>/<revision>/<method>-<hash of the settings>`."""
        # a local model by its folder's name: its revision, a hash of its files, distinguishes folders of the same name
        model = Path(self.model).resolve().name if os.path.exists(self.model) else self.model
        return Path(results_dir, _slug(model), self.revision[:18], f"{_slug(self.method)}-{self.digest}")


def identity_of(settings: Mapping[str, Any]) -> str:
    """Returns a short hash of the settings of a run that the embeddings depend on."""
    return digest(settings, but=("method",))[:8]


def revision_of(name: str, revision: str | None = None) -> str:
    """Returns the commit of a cached Hub model or, for a folder, a hash of the model's files."""
    if os.path.isfile(name):  # GGUF
        return f"local-{digest_of_files([Path(name)])[:12]}"
    if not os.path.isdir(name):
        return opened_commit(split_gguf(name)[0], {"revision": revision}) or "unknown"
    files = (path for path in sorted(Path(name).rglob("*")) if path.suffix in _FILES and path.is_file())
    return f"local-{digest_of_files(files, named_in=name)[:12]}"


def save_result(results_dir: str | Path, run: Run, result: TaskResult, data_dir: str | Path, seconds: float) -> None:
    """Writes the result of a task to `<task>.json`, with the settings, data and versions needed to reproduce it."""
    folder = run.folder(results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model": run.model,
        "revision": run.revision,
        "method": run.method,
        "parameters": run.parameters,
        "task": result.task,
        "score": result.score,
        "details": result.details,
        "settings": dict(run.settings),
        "data": data_fingerprint(data_dir, result.task),
        "versions": versions_of(_PACKAGES),
        "seconds": round(seconds, 3),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with replacing_file(folder / f"{result.task}.json") as staged:
        staged.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def load_result(results_dir: str | Path, run: Run, task: str, data_dir: str | Path) -> TaskResult | None:
    """Returns the saved result of a task; None if there is none for this run and this data.

    A damaged file is renamed to `<task>.json.damaged`.
    """
    path = run.folder(results_dir) / f"{task}.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = TaskResult(content["task"], float(content["score"]), content["details"])
        data = content["data"]
    except (ValueError, KeyError, TypeError) as error:
        os.replace(path, f"{path}.damaged")
        logger.warning("%s is damaged (%s): set aside as %s.damaged, the task runs again.", path, error, path.name)
        return None
    return result if data == data_fingerprint(data_dir, task) else None


def data_fingerprint(data_dir: str | Path, task: str) -> str:
    """Returns a hash of the files that a task reads."""
    return digest_of_files(task_files(data_dir, task))[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "__", name.strip("/")).strip("_") or "model"
