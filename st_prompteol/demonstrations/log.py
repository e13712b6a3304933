"""`search.jsonl`: one line per measurement, appended at once: a search that was killed goes on where it was."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from st_prompteol.files import append_lines, read_json_lines
from st_prompteol.identity import digest, identify
from st_prompteol.model import PromptEOL
from st_prompteol.template import Demonstration

Similarities = npt.NDArray[np.float32]
Subset = tuple[int, int]  # the pairs from .. to, in the order of the search


class SearchLog:
    """Measurements on disk, found again by everything that they depend on.

    Args:
        path: The file, made if there is none. A line that a crash cut short is left out. Defaults to None: nothing is
            kept beyond this object.
        key: What all measurements of the search depend on: model, revision, template, precision, data, …
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self.key = json.loads(json.dumps(dict(key)))
        self._path = None if path is None else Path(path)
        self._found: dict[tuple[Any, ...], Similarities] = {}
        for row in read_json_lines(path, _check_measurement) if path is not None else ():
            if {name: row.get(name) for name in self.key} == self.key:
                place = (_pairs_of(row["demonstrations"]), row["layer"], tuple(row["pairs"]))
                self._found[place] = np.frombuffer(base64.b64decode(row["similarities"]), dtype="<f4")

    def get(self, demonstrations: Sequence[Demonstration], layer: int, subset: Subset) -> Similarities | None:
        """Returns the cosine similarities `(subset[1] - subset[0],)` of a measurement, None if there is none."""
        return self._found.get((_pairs_of(_plain(demonstrations)), layer, subset))

    def add(
        self,
        demonstrations: Sequence[Demonstration],
        measured: Mapping[int, tuple[Similarities, float]],
        subset: Subset,
        encodings: int,
        seconds: float,
    ) -> None:
        """Appends measurements that one pass over the sentences made.

        Args:
            demonstrations: What stood in front of the sentences.
            measured: Layer -> cosine similarities of the subset and, for readers of the file, their score.
            subset: Which pairs.
            encodings: How many sentences were encoded.
            seconds: What it took.
        """
        lines = []
        for layer, (similarities, score) in measured.items():
            row = {
                **self.key,
                "layer": layer,
                "demonstrations": _plain(demonstrations),
                "pairs": subset,
                "score": round(score, 4),
                "encodings": encodings,
                "seconds": round(seconds, 3),
                "similarities": base64.b64encode(similarities.astype("<f4").tobytes()).decode("ascii"),
            }
            lines.append(json.dumps(row, ensure_ascii=False))
            self._found[_pairs_of(_plain(demonstrations)), layer, subset] = similarities
        if self._path is not None:
            append_lines(self._path, lines)


def model_key(model: PromptEOL) -> dict[str, Any]:
    """Returns what the embeddings of a model depend on, ready for JSON, without demonstrations and layer."""
    identity = identify(model)
    method = (identity["quantization"] or {}).get("quant_method")
    return {
        "model": model[0].config.name_or_path,
        "revision": getattr(model[0].model.config, "_commit_hash", None),
        "identity": digest(identity, but=("template", "layer")),
        "precision": identity["dtype"] + (f", {getattr(method, 'value', method)}" if method else ""),
        "template": model.template.text,
        "preprocessing": model.template.preprocessing,
    }


def _check_measurement(row: Any) -> None:
    base64.b64decode(row["similarities"]), row["demonstrations"], row["layer"], row["pairs"]


def _plain(demonstrations: Sequence[Demonstration]) -> list[list[str]]:
    return [[shot.sentence, shot.word] for shot in demonstrations]


def _pairs_of(demonstrations: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(shot) for shot in demonstrations)
