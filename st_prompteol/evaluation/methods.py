"""The ways of getting a vector out of a language model that the paper compares, as sentence-transformers models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_prompteol.evaluation.published import DEFAULT_DEMONSTRATION, DEMONSTRATIONS
from st_prompteol.model import PromptEOL
from st_prompteol.pooling import LastTokenPooling
from st_prompteol.template import TEMPLATES, Demonstration, PromptTemplate
from st_prompteol.tokens import TemplateTokenizer

MASKED_PROMPT = 'This sentence : "{sentence}" means '


@dataclass(frozen=True)
class Method:
    """One way of getting a vector out of a language model.

    Args:
        name: What tables call it.
        template: What the sentence is put into.
        pooling: Which token's hidden state is the embedding, or the mean of all.
        layer: Which hidden state is read, -1 the last. Defaults to -1.
    """

    name: str
    template: PromptTemplate
    pooling: Literal["last", "mean", "mask"] = "last"
    layer: int = -1


def decoder_methods(
    model_name: str, layers: Sequence[int] = (-1,), demonstrations: Sequence[Demonstration] = ()
) -> list[Method]:
    """Lists what the paper compares for a decoder LLM, on each of `layers`.

    Args:
        model_name: The model's repository, by which the paper's demonstration for it is found.
        layers: The hidden states to read. Defaults to the last.
        demonstrations: Those of the last method. Defaults to the paper's for this model, or for OPT-2.7B.
    """
    shots = tuple(demonstrations) or (DEMONSTRATIONS.get(model_name, DEFAULT_DEMONSTRATION),)
    shown = replace(TEMPLATES["prompteol"], demonstrations=shots)
    methods = [
        Method("mean of tokens", TEMPLATES["none"], "mean"),
        Method("last token", TEMPLATES["none"]),
        Method("prompt without the one-word limit", TEMPLATES["prompt"]),
        Method("PromptEOL", TEMPLATES["prompteol"]),
        Method(f"PromptEOL + {len(shots)} demonstration{'s' * (len(shots) > 1)}", shown),
    ]
    return [
        replace(method, layer=layer, name=method.name if layer == -1 else f"{method.name}, layer {layer}")
        for layer in layers
        for method in methods
    ]


def encoder_methods(mask_token: str) -> list[Method]:
    """Lists what the paper compares for a BERT-like encoder: means, and PromptBERT's masked prompt."""
    return [
        Method("mean of tokens", TEMPLATES["none"], "mean"),
        Method("masked prompt", PromptTemplate(f"{MASKED_PROMPT}{mask_token}."), "mask"),
        Method("masked prompt without the period", PromptTemplate(f"{MASKED_PROMPT}{mask_token}"), "mask"),
    ]


def apply_decoder_methods(model: PromptEOL, methods: Sequence[Method]) -> Iterator[tuple[Method, SentenceTransformer]]:
    """Yields a model per method, one after the other on the same weights: use each before asking for the next."""
    transformer = model[0]
    for method in methods:
        transformer.template, transformer.layer = method.template, method.layer
        dimension = transformer.get_embedding_dimension()
        pooling = LastTokenPooling(dimension) if method.pooling == "last" else Pooling(dimension, method.pooling)
        yield method, SentenceTransformer(modules=[transformer, pooling], device=str(model.device))


def apply_encoder_methods(model_name_or_path: str, **kwargs: Any) -> Iterator[tuple[Method, SentenceTransformer]]:
    """Yields a model per method of an encoder with a mask token, one after the other on the same weights.

    Args:
        model_name_or_path: A masked language model: Hub id or folder.
        **kwargs: As sentence-transformers' `Transformer` takes them, and `device`.

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
    # The template is part of the tokenizer here too, so that a long sentence loses its own end, never the mask.
    transformer.processor = TemplateTokenizer.of(tokenizer)
    end = tokenizer.sep_token or tokenizer.eos_token or ""
    for method in encoder_methods(tokenizer.mask_token):
        transformer.processor.template = replace(method.template, text=method.template.text + end)
        dimension = transformer.get_embedding_dimension()
        masked = method.pooling == "mask"
        pooling = MaskTokenPooling(dimension, tokenizer.mask_token_id) if masked else Pooling(dimension, "mean")
        yield method, SentenceTransformer(modules=[transformer, pooling], device=device)


class MaskTokenPooling(Module):
    """The hidden state at the mask token of a masked prompt, as PromptBERT reads it.

    Args:
        embedding_dimension: The size of a hidden state.
        mask_token_id: The tokenizer's mask token. Where a sentence holds one itself, the template's, the last one,
            counts.
    """

    config_keys = ("embedding_dimension", "mask_token_id")

    def __init__(self, embedding_dimension: int, mask_token_id: int) -> None:
        super().__init__()
        self.embedding_dimension = embedding_dimension
        self.mask_token_id = mask_token_id

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` `(batch_size, hidden_size)` to the features.

        Raises:
            ValueError: If a row has no mask token.
        """
        is_mask = features["input_ids"] == self.mask_token_id  # (batch_size, sequence_length)
        if not is_mask.any(dim=1).all():
            raise ValueError(
                f"A sentence was tokenised without the mask token (id {self.mask_token_id}): MaskTokenPooling needs a "
                "template that holds it."
            )
        positions = torch.arange(is_mask.shape[1], device=is_mask.device)
        last = (is_mask * positions).argmax(dim=1)
        rows = torch.arange(len(last), device=last.device)
        features["sentence_embedding"] = features["token_embeddings"][rows, last]
        return features

    def get_embedding_dimension(self) -> int:
        """Returns the length of an embedding."""
        return self.embedding_dimension

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Saves the configuration."""
        self.save_config(output_path)
