"""The embedding methods that the paper compares, and means over templates, as sentence-transformers models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_prompteol.evaluation.published import DEFAULT_DEMONSTRATION, DEMONSTRATIONS
from st_prompteol.llm.body import shallow_copy
from st_prompteol.model import PromptEOL
from st_prompteol.modules import LastTokenPooling
from st_prompteol.prompt.template import TEMPLATES, PromptTemplate
from st_prompteol.prompt.tokenizer import TemplateTokenizer


def apply_decoder_methods(
    model: PromptEOL, model_name: str, layers: Sequence[int] = (-1,)
) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields the paper's methods for a decoder LLM, each as a name and a model that shares the weights.

    Args:
        model: The decoder LLM.
        model_name: Its repository, which determines the paper's demonstration; OPT-2.7B's for models not in the paper.
        layers: The hidden states to read. Defaults to the last.
    """
    shown = replace(TEMPLATES["prompteol"], demonstrations=(DEMONSTRATIONS.get(model_name, DEFAULT_DEMONSTRATION),))
    methods = {
        "mean of tokens": TEMPLATES["none"],
        "last token": TEMPLATES["none"],
        "prompt without the one-word limit": TEMPLATES["prompt"],
        "PromptEOL": TEMPLATES["prompteol"],
        "PromptEOL + 1 demonstration": shown,
    }
    alone = model.view()
    del alone[1:]
    for layer in layers:
        for name, template in methods.items():
            transformer = alone.view(template, layer)[0]
            dimension = transformer.get_embedding_dimension()
            pooling = Pooling(dimension, "mean") if name == "mean of tokens" else LastTokenPooling(dimension)
            shared = SentenceTransformer(modules=[transformer, pooling], device=str(model.device))
            yield at_layer(name, layer), shared


def apply_encoder_methods(model_name_or_path: str, **kwargs: Any) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields methods for a BERT-like encoder: the mean of its tokens, and PromptBERT's masked prompt.

    Args:
        model_name_or_path: A masked language model: Hub id or folder.
        **kwargs: Arguments of sentence-transformers' `Transformer`, and `device`.

    Raises:
        ValueError: If the tokenizer has no mask token.
    """
    device = kwargs.pop("device", None)
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = Transformer(
        model_name_or_path, modality_config={"text": output}, module_output_name="token_embeddings", **kwargs
    )
    tokenizer = transformer.tokenizer
    if getattr(tokenizer, "mask_token", None) is None:
        raise ValueError(
            f"{model_name_or_path!r} is neither a decoder LLM nor a masked language model (no mask token), so the "
            "methods do not apply: evaluate it as it is."
        )
    prompt = f'This sentence : "{{sentence}}" means {tokenizer.mask_token}'
    mask = MaskTokenPooling(tokenizer.mask_token_id)
    methods = {
        "mean of tokens": (TEMPLATES["none"].text, Pooling(transformer.get_embedding_dimension(), "mean")),
        "masked prompt": (f"{prompt}.", mask),
        "masked prompt without the period": (prompt, mask),
    }
    end = tokenizer.sep_token or tokenizer.eos_token or ""
    # The template is part of the tokenizer here too: a long sentence is truncated at its own end and keeps the mask.
    plain = TemplateTokenizer.of(tokenizer)
    for name, (text, pooling) in methods.items():
        view = shallow_copy(transformer)
        view.processor = plain.copy()
        view.processor.template = PromptTemplate(text + end)
        yield name, SentenceTransformer(modules=[view, pooling], device=device)


class MaskTokenPooling(Module):
    """Pooling of the hidden state at the mask token of a masked prompt, as in PromptBERT.

    Args:
        mask_token_id: Id of the tokenizer's mask token. If a sentence contains it as well, the last one, which is the
            template's, is read.
    """

    config_keys = ("mask_token_id",)

    def __init__(self, mask_token_id: int) -> None:
        super().__init__()
        self.mask_token_id = mask_token_id

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` `(batch_size, hidden_size)` to the features.

        Raises:
            ValueError: If a row has no mask token.
        """
        is_mask = features["input_ids"] == self.mask_token_id  # (batch_size, sequence_length)
        if not is_mask.any(dim=1).all():
            raise ValueError(
                f"A sentence was tokenized without the mask token (id {self.mask_token_id}): MaskTokenPooling needs a "
                "template that holds it."
            )
        positions = torch.arange(is_mask.shape[1], device=is_mask.device)
        last = (is_mask * positions).argmax(dim=1)
        rows = torch.arange(len(last), device=last.device)
        features["sentence_embedding"] = features["token_embeddings"][rows, last]
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Saves the configuration."""
        self.save_config(output_path)


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
            yield at_layer(name, layer), TemplateEnsemble(model, templates, layer)


def at_layer(method: str, layer: int) -> str:
    """Returns the name of a method that reads a layer."""
    return method if layer == -1 else f"{method}, layer {layer}"
