"""Somebody without this package: plain sentence-transformers, which opens whatever was saved or published."""

from __future__ import annotations

import sys
from typing import Any

sys.modules["st_prompteol"] = None  # type: ignore[assignment]  # importing it is an error

from huggingface_hub import constants
from sentence_transformers import SentenceTransformer

from .calls import answer_calls


def encode(path: str, sentences: list[str], **options: Any) -> list[list[float]]:
    model = SentenceTransformer(path, device="cpu", **options)
    embeddings = model.encode(sentences)
    assert embeddings.shape == (len(sentences), model.get_embedding_dimension())
    return embeddings.tolist()


def encode_all(paths: list[str], sentences: list[str], offline: bool = False) -> dict[str, list[list[float]]]:
    constants.HF_HUB_OFFLINE = offline
    try:
        return {path: encode(path, sentences) for path in paths}
    finally:
        constants.HF_HUB_OFFLINE = False


def opens(path: str, **options: Any) -> bool:
    try:
        SentenceTransformer(path, **options)
    except OSError:
        return False
    return True


def mteb_score(path: str, task: str, sentences: list[str]) -> tuple[float, list[list[float]]]:
    """As mteb opens a model by its name."""
    import mteb

    model = mteb.get_model(path, device="cpu")
    results = mteb.evaluate(model, [mteb.get_task(task)], cache=None)
    return results.task_results[0].get_score(), model.model.encode(sentences).tolist()


if __name__ == "__main__":
    answer_calls(globals())
