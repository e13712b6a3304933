"""The mean of a model's embeddings under several templates, to compare with one template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.model import PromptEOL
from st_prompteol.pooling import LastTokenPooling
from st_prompteol.template import get_template


class TemplateEnsemble(SentenceTransformer):
    """A model whose embeddings are the mean of those under several templates, not normalised.

    It takes as many passes as there are templates. It stays in memory: a saved model has one tokenizer, so one
    template, and no stock module encodes a sentence several times.

    Args:
        model: The decoder LLM, whose weights are shared; its template is set by every call of `encode`.
        templates: Names of templates, or texts with one `{sentence}`.
    """

    def __init__(self, model: PromptEOL, templates: Sequence[str]) -> None:
        dimension = model[0].get_embedding_dimension()
        super().__init__(modules=[model[0], LastTokenPooling(dimension)], device=str(model.device))
        self.templates = [get_template(template) for template in templates]
        self[0].template = self.templates[0]

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encodes as `SentenceTransformer.encode` does, under each template; returns the mean."""
        total: Any = 0
        for template in self.templates:
            self[0].template = template
            total = total + super().encode(*args, **kwargs)
        self[0].template = self.templates[0]
        return total / len(self.templates)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError."""
        raise ValueError("A mean over templates cannot be saved: a saved model has one template. Save one of them.")


def apply_ensembles(
    model: PromptEOL, ensembles: Sequence[Sequence[str]], layers: Sequence[int]
) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields the name of each ensemble at each layer and a model that computes it: use each before the next."""
    for layer in layers:
        for templates in ensembles:
            model.layer = layer
            name = f"mean of {' and '.join(templates)}"
            yield (name if layer == -1 else f"{name}, layer {layer}"), TemplateEnsemble(model, templates)
