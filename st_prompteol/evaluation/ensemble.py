"""The mean of a model's embeddings with several templates, as a baseline for single templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.model import PromptEOL
from st_prompteol.pooling import LastTokenPooling
from st_prompteol.template import get_template


class TemplateEnsemble(SentenceTransformer):
    """A model whose embeddings are the mean over several templates, not normalized.

    Encoding takes one pass per template. The model cannot be saved: a saved model has one tokenizer, therefore one
    template, and no stock module encodes a sentence several times.

    Args:
        model: The decoder LLM, whose weights are shared; every call of `encode` sets its template.
        templates: Names of templates, or texts with one `{sentence}`.
    """

    def __init__(self, model: PromptEOL, templates: Sequence[str]) -> None:
        dimension = model[0].get_embedding_dimension()
        super().__init__(modules=[model[0], LastTokenPooling(dimension)], device=str(model.device))
        self.templates = [get_template(template) for template in templates]
        self[0].template = self.templates[0]

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encodes with each template and returns the mean. See `SentenceTransformer.encode`."""
        total: Any = 0
        for template in self.templates:
            self[0].template = template
            total = total + super().encode(*args, **kwargs)
        self[0].template = self.templates[0]
        return total / len(self.templates)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a mean over templates cannot be saved."""
        raise ValueError("A mean over templates cannot be saved: a saved model has one template. Save one of them.")


def apply_ensembles(
    model: PromptEOL, ensembles: Sequence[Sequence[str]], layers: Sequence[int]
) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields each ensemble at each layer as a name and a model; use each model before requesting the next."""
    for layer in layers:
        for templates in ensembles:
            model.layer = layer
            name = f"mean of {' and '.join(templates)}"
            yield (name if layer == -1 else f"{name}, layer {layer}"), TemplateEnsemble(model, templates)
