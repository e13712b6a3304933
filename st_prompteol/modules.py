"""The first module of a `PromptEOL`: a prompt template and a decoder LLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PretrainedConfig, PreTrainedModel

from st_prompteol.fast import PLAN, FastPath
from st_prompteol.llm.adapter_files import check_base, finish_saved_adapter
from st_prompteol.llm.adapters import check_saving_adapters, record_base_revision
from st_prompteol.llm.body import DecoderTransformer, foreign, layer_of, reading_layer, saved_layer
from st_prompteol.llm.decoders import check_layer
from st_prompteol.llm.loaded import adapters_of
from st_prompteol.llm.nf4 import keep_nf4_unpacked, unpack_nf4
from st_prompteol.llm.quantization import check_saving
from st_prompteol.llm.reading import Reading, inner_embeddings
from st_prompteol.prompt.template import PromptTemplate, get_template
from st_prompteol.prompt.tokenizer import TemplateTokenizer, tokenizable
from st_prompteol.saved.stock import check_tokenizer, stock_body, stored_tensors


class PromptEOLTransformer(DecoderTransformer):
    """A decoder LLM without its language-model head, applied to sentences inside a prompt template.

    The template is part of the tokenizer, so the saved files are those of sentence-transformers' own `Transformer` and
    load without this package.

    Args:
        model_name_or_path: Hub id or folder of a decoder LLM, a saved model or an adapter repository.
        template: A `PromptTemplate`, the name of one in `TEMPLATES`, or a text with one `{sentence}`. Defaults to
            None: the template of a saved model, `"prompteol"` for a base LLM.
        layer: The hidden state to use: -1 is the last one, after the final norm; -2 the output of the second-to-last
            block. Defaults to None: the layer of a saved model, -1 for a base LLM.
        fast: Whether to compute the shared prefix of the sentences once. Embeddings are the same either way. Defaults
            to True.
        modality_config: The value in a saved model's `sentence_bert_config.json`. Defaults to None.
        module_output_name: The value in a saved model's `sentence_bert_config.json`, always `"token_embeddings"`.
            Defaults to None.
        model_kwargs: Keyword arguments for `from_pretrained` of the model. Defaults to None.
        processor_kwargs: Keyword arguments for `from_pretrained` of the tokenizer. Defaults to None.
        config_kwargs: Keyword arguments for `from_pretrained` of the configuration. Defaults to None.
        **kwargs: Other arguments of sentence-transformers' `Transformer`.

    Raises:
        ValueError: If the model is not a decoder, the layer is out of range, the template does not fit into
            `max_seq_length` tokens or cannot be built into this tokenizer, an adapter does not fit, or a saved
            sentence-transformers model is not in this format.
        FileNotFoundError: If the base model of an adapter cannot be found.

    Example:
        >>> transformer = PromptEOLTransformer(TINY, template="prompt", layer=-2)
        >>> transformer.template.text
        'This sentence : "{sentence}" means'
    """

    forward_kwargs: set[str] = {"reading"}  # noqa: RUF012 - as upstream declares it

    def __init__(
        self,
        model_name_or_path: str,
        *,
        template: str | PromptTemplate | None = None,
        layer: int | None = None,
        fast: bool = True,
        modality_config: dict[str, Any] | None = None,
        module_output_name: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        layer = saved_layer(modality_config) if layer is None else layer
        if layer is None and template is None:
            raise ValueError(foreign(model_name_or_path))
        super().__init__(
            model_name_or_path,
            layer=-1 if layer is None else layer,
            model_kwargs=model_kwargs or {},
            processor_kwargs=processor_kwargs or {},
            config_kwargs=config_kwargs or {},
            **kwargs,
        )
        self.put_body(self.model, fast)
        if super().tokenizer is None:
            raise ValueError(f"{model_name_or_path!r} has no tokenizer, but PromptEOL embeds text.")
        self.processor = TemplateTokenizer.of(super().tokenizer)
        if template is not None:
            self.template = template
        elif self.tokenizer.template is not None:
            self._check_length(self.template, self.max_seq_length)
        elif modality_config is None:
            self.template = "prompteol"
        else:
            raise ValueError(foreign(model_name_or_path))

    def put_body(self, model: PreTrainedModel, fast: bool) -> None:
        """Sets `model` as the body and, if `fast`, prepares it for the fast path."""
        self.model = model
        self._fast_path = FastPath(model)
        self.fast = fast

    @property
    def fast(self) -> bool:
        """Whether the shared prefix is computed once. Assign False for the computation of sentence-transformers."""
        return self._fast_path.is_installed

    @fast.setter
    def fast(self, fast: bool) -> None:
        if fast:
            self._fast_path.install()
        else:
            self._fast_path.remove()

    def train(self, mode: bool = True) -> PromptEOLTransformer:
        """Sets training or evaluation mode; for training, drops the prefix cache and unpacks 4-bit weights."""
        if mode:
            self._fast_path.forget()
            keep_nf4_unpacked(self.model)
        super().train(mode)
        return self

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Saves model or adapter, tokenizer and configuration in the format of upstream's `Transformer`."""
        check_saving(self.model)
        check_saving_adapters(self.model)
        unpack_nf4(self.model)
        record_base_revision(self.model)
        base_config: PretrainedConfig | None = getattr(self.model, "base_config", None)
        check_base(self.model, base_config)
        body = stock_body(self.model)
        body.save_pretrained(output_path, **stored_tensors(body))
        if adapters_of(self.model) and base_config is not None:
            finish_saved_adapter(Path(output_path), self.model, base_config)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)
        check_tokenizer(Path(output_path), self.tokenizer)

    @property
    def tokenizer(self) -> TemplateTokenizer:
        """The tokenizer, which includes the template."""
        tokenizer: TemplateTokenizer = super().tokenizer
        return tokenizer

    @property
    def template(self) -> PromptTemplate:
        """The prompt template. Assign a `PromptTemplate`, a name or a text to change it."""
        return cast(PromptTemplate, self.tokenizer.template)

    @template.setter
    def template(self, template: str | PromptTemplate) -> None:
        template = get_template(template)
        self._check_length(template, self.max_seq_length)
        tokenizer = self.tokenizer.copy()  # a running `encode` keeps the old one
        tokenizer.template = template
        self.processor = tokenizer

    @property
    def layer(self) -> int:
        """The hidden state to use; -1 is the last one, after the final norm. Assign a number to change it."""
        return layer_of(self.modality_config)

    @layer.setter
    def layer(self, layer: int) -> None:
        check_layer(layer, self.config)
        self.modality_config = reading_layer(layer)

    @property
    def max_seq_length(self) -> int | None:
        """The maximum number of tokens with BOS and template; longer sentences are truncated at their own end."""
        length: int | None = super().max_seq_length
        return length

    @max_seq_length.setter
    def max_seq_length(self, max_seq_length: int | None) -> None:
        self._check_length(self.template, max_seq_length)
        tokenizer = self.tokenizer.copy()
        tokenizer.model_max_length = max_seq_length
        self.processor = tokenizer

    def count_template_tokens(self) -> int:
        """Returns the number of tokens of BOS, demonstrations and template around every sentence."""
        return sum(map(len, self.tokenizer.tokenize_template()))

    def _check_length(self, template: PromptTemplate, max_seq_length: int | None) -> None:
        if max_seq_length is None:
            return
        needed = len(self.tokenizer.tokenize_plainly(template.render("x")))
        if max_seq_length < needed:
            raise ValueError(
                f"max_seq_length={max_seq_length} leaves no room for a sentence: the template takes {needed} tokens "
                f"with a sentence of one letter. Raise max_seq_length or shorten the template: {template.text!r} with "
                f"{len(template.demonstrations)} demonstrations."
            )
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and max_seq_length > positions > 0:
            raise ValueError(f"max_seq_length={max_seq_length} exceeds the {positions} positions that the model has.")

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, reading: Reading | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenizes sentences inside the template.

        Args:
            inputs: The sentences. Lone surrogates are replaced with U+FFFD, because tokenizers reject them.
            prompt: Text to place before every sentence, inside the template. Defaults to None.
            reading: The call state of `encode`. Defaults to None.
            **kwargs: Other arguments of `Transformer.preprocess`.

        Returns:
            `input_ids` and `attention_mask`, each `(batch_size, sequence_length)`, padded on the right.

        Raises:
            TypeError: If an input is not a string.
            ValueError: If a sentence results in no tokens.
        """
        texts = [tokenizable(sentence) for sentence in inputs]
        features: dict[str, Any] = super().preprocess(texts, prompt, **kwargs)
        ids = features.get("input_ids")
        if isinstance(ids, torch.Tensor) and (ids.shape[-1] == 0 or not features["attention_mask"].any(dim=1).all()):
            raise ValueError(
                f"An empty sentence leaves nothing to embed: the template {self.template.text!r} adds no text and the "
                "tokenizer no BOS. Drop empty sentences or use a template with text."
            )
        if reading is not None and self.fast:
            features[PLAN] = self._fast_path.plan(features, self.tokenizer.head_ids)
        return features

    def forward(self, features: dict[str, Any], reading: Reading | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings` `(batch_size, sequence_length, hidden_size)` to the features.

        If `reading` requests last tokens only, the features may be reduced to the last tokens, with a
        `sequence_length` of 1. They then include `inner_embeddings(layer)`, `(batch_size, hidden_size)`, for each
        inner layer of `reading`.

        Args:
            features: The output of `preprocess`.
            reading: The call state of `encode`. Defaults to None.
            **kwargs: Other arguments of `Transformer.forward`.
        """
        reading, layer = reading or Reading(), self.layer
        if torch.is_grad_enabled():  # gradients mean that the weights may change
            self._fast_path.forget()
        states = self._fast_path.run(features, reading, layer, self.tokenizer.head_ids) if self.fast else None
        features.pop(PLAN, None)
        if states is None and reading.inner_layers:
            states = self._run_whole(features, [layer, *reading.inner_layers])
        if states is None:
            whole: dict[str, Any] = super().forward(features, **kwargs)
            return whole
        features["token_embeddings"] = states[layer]
        if reading.last_only:
            last = features["attention_mask"].sum(dim=1, keepdim=True) - 1
            features["input_ids"] = features["input_ids"].gather(1, last)
            features["attention_mask"] = torch.ones_like(last)
            features |= {inner_embeddings(layer): states[layer][:, 0] for layer in reading.inner_layers}
        return features

    def _run_whole(self, features: dict[str, Any], layers: list[int]) -> dict[int, torch.Tensor]:
        """Runs the full forward pass; returns last-token hidden states `(batch_size, 1, hidden_size)` by layer."""
        ids, mask = features["input_ids"], features["attention_mask"]
        outputs = self.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        last = mask.sum(dim=1) - 1
        rows = torch.arange(len(ids), device=ids.device)
        return {layer: outputs.hidden_states[layer][rows, last][:, None] for layer in layers}


class LastTokenPooling(Pooling):
    """Pools the hidden state of each sentence's last token, like upstream's `Pooling(..., "lasttoken")`, by indexing.

    Args:
        embedding_dimension: The size of a hidden state.
        pooling_mode: Must be `"lasttoken"`, as in a saved configuration. Defaults to `"lasttoken"`.
        include_prompt: Has no effect on the last token; accepted because saved configurations contain it. Defaults to
            True.

    Raises:
        ValueError: If `pooling_mode` is not `"lasttoken"`.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> transformer = PromptEOLTransformer(TINY)
        >>> pooling = LastTokenPooling(transformer.get_embedding_dimension())
        >>> SentenceTransformer(modules=[transformer, pooling]).encode("It rains.").shape
        (256,)
    """

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = True) -> None:
        if pooling_mode != "lasttoken":
            raise ValueError(
                f"LastTokenPooling cannot pool by {pooling_mode!r}: use sentence-transformers' Pooling for that."
            )
        super().__init__(embedding_dimension, pooling_mode=pooling_mode, include_prompt=include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` `(batch_size, hidden_size)` to the features."""
        if "cu_seq_lens_q" in features:  # a packed batch, without padding
            return super().forward(features, **kwargs)  # type: ignore[no-any-return]
        token_embeddings, mask = features["token_embeddings"], features["attention_mask"]
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).argmax(dim=1)  # (batch_size,), for padding on either side
        rows = torch.arange(mask.shape[0], device=token_embeddings.device)
        features["sentence_embedding"] = token_embeddings[rows, last.to(token_embeddings.device)]
        return features
