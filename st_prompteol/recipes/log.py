"""`search.jsonl`: the log of a search's measurements, each written immediately, which makes a search resumable."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from st_prompteol.files.atomic import append_lines, read_json_lines
from st_prompteol.model import PromptEOL
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.saved.identity import digest, identify

Similarities = npt.NDArray[np.float32]


class SearchLog:
    """A log of measurements, looked up by everything that they depend on.

    Args:
        path: The file, created if missing; a line truncated by a crash is ignored. None keeps measurements in memory
            only.
        key: Everything that the measurements of the search depend on besides the recipe: model, precision, data, …
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self.key = json.loads(json.dumps(dict(key)))
        self._path = None if path is None else Path(path)
        self._found: dict[tuple[Recipe, int], Similarities] = {}
        for row in read_json_lines(path, _read) if path is not None else ():
            if {name: row.get(name) for name in self.key} == self.key:
                recipe, similarities = _read(row)
                self._found[recipe, row["pairs"]] = similarities

    def get(self, recipe: Recipe, pairs: int) -> Similarities | None:
        """Returns the cosine similarities `(pairs,)` of the first pairs; None if they were not measured."""
        return self._found.get((recipe, pairs))

    def add(
        self, measured: Mapping[Recipe, tuple[Similarities, float]], pairs: int, encodings: int, seconds: float
    ) -> None:
        """Appends the measurements of one pass over the sentences.

        Args:
            measured: By recipe, the cosine similarities of the first pairs, `(pairs,)`, and their score, for readers
                of the file.
            pairs: Number of pairs.
            encodings: Number of encoded sentences.
            seconds: Duration of the pass, in seconds.
        """
        lines = []
        for recipe, (similarities, score) in measured.items():
            row = {
                **self.key,
                **recipe.to_dict(),
                "pairs": pairs,
                "score": round(score, 4),
                "encodings": encodings,
                "seconds": round(seconds, 3),
                "similarities": base64.b64encode(similarities.astype("<f4").tobytes()).decode("ascii"),
            }
            lines.append(json.dumps(row, ensure_ascii=False))
            self._found[recipe, pairs] = similarities
            encodings, seconds = 0, 0.0  # counted once per pass
        if self._path is not None:
            append_lines(self._path, lines)


def model_key(model: PromptEOL) -> dict[str, Any]:
    """Returns everything that a model's embeddings depend on besides the recipe, as JSON values."""
    identity = identify(model)
    method = (identity["quantization"] or {}).get("quant_method")
    return {
        "model": model[0].config.name_or_path,
        "revision": model.commit,
        "identity": digest(identity, but=("template", "layer")),
        "precision": identity["dtype"] + (f", {getattr(method, 'value', method)}" if method else ""),
    }


def _read(row: Any) -> tuple[Recipe, Similarities]:
    """Reads a row; raises ValueError, KeyError or TypeError if it is incomplete."""
    if not isinstance(row, dict):
        raise TypeError("a row is an object")
    recipe = Recipe.from_dict(row)
    similarities = np.frombuffer(base64.b64decode(row["similarities"], validate=True), dtype="<f4")
    if row["pairs"] != len(similarities) or not isinstance(recipe.layer, int) or not np.isfinite(similarities).all():
        raise ValueError("a row holds a similarity for each of its pairs")
    return recipe, similarities
