"""The mean of a model's embeddings with several templates, as a baseline for single templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.model import PromptEOL
from st_prompteol.modules import LastTokenPooling


class TemplateEnsemble(SentenceTransformer):
    """A model whose embeddings are the mean over several templates, not normalized.

    Encoding takes one pass per template. The model cannot be saved: a saved model has one tokenizer, therefore one
    template, and no stock module encodes a sentence several times.

    Args:
        model: The decoder LLM, whose weights are shared.
        templates: Names of templates, or texts with one `{sentence}`.
        layer: The hidden state to read. Defaults to -1.
    """

    def __init__(self, model: PromptEOL, templates: Sequence[str], layer: int = -1) -> None:
        alone = model.view()
        del alone[1:]
        views = [alone.view(template, layer)[0] for template in templates]
        pooling, device = LastTokenPooling(views[0].get_embedding_dimension()), str(model.device)
        super().__init__(modules=[views[0], pooling], device=device)
        self.templates = [view.template for view in views]
        self._members = [SentenceTransformer(modules=[view, pooling], device=device) for view in views]

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encodes with each template and returns the mean. See `SentenceTransformer.encode`."""
        return sum(member.encode(*args, **kwargs) for member in self._members) / len(self._members)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a mean over templates cannot be saved."""
        raise ValueError("A mean over templates cannot be saved: a saved model has one template. Save one of them.")


def apply_ensembles(
    model: PromptEOL, ensembles: Sequence[Sequence[str]], layers: Sequence[int]
) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields each ensemble at each layer as a name and a model."""
    for layer in layers:
        for templates in ensembles:
            name = f"mean of {' and '.join(templates)}"
            yield (name if layer == -1 else f"{name}, layer {layer}"), TemplateEnsemble(model, templates, layer)
