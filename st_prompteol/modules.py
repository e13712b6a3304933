"""The two sentence-transformers modules: a decoder LLM behind a template, and the pooling of its last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from st_prompteol.adapters import (
    keep_nf4_scales,
    keep_nf4_unpacked,
    load_adapter,
    record_base_revision,
    skip_unpackable_modules,
    unpack_nf4,
)
from st_prompteol.attention import install
from st_prompteol.blocks import prepare, run_to_layers
from st_prompteol.decoders import (
    check_complete,
    check_layer,
    has_file,
    hub_kwargs_of,
    load_adapter_config,
    load_decoder_config,
    opened_commit,
    warn_if_base_moved,
)
from st_prompteol.linear import install_fast_linear
from st_prompteol.shared_head import HeadCache, is_exact, run_behind
from st_prompteol.stock import check_tokenizer, stock_body
from st_prompteol.template import PromptTemplate, get_template
from st_prompteol.tokens import TemplateTokenizer, tokenizable

_FILLERS = ("0.", "1 2 3'")  # sentences that begin and end differently, after preprocessing too
# Of `sentence_bert_config.json`: what sentence-transformers before 5.4 does not know, and what an inner layer needs
_LAYER_KEYS = ("transformer_task", "modality_config", "module_output_name")
_HEADS = HeadCache()
_CPU_TOKENS = 1024  # that a CPU computes at once: its matrix products gain nothing by more, its caches lose
# Where only last tokens are read: the layers that are read beside the model's own
_inner_layers: ContextVar[tuple[int, ...] | None] = ContextVar("inner_layers", default=None)


class PromptEOLTransformer(Transformer):
    """A decoder LLM that reads every sentence inside a template; its language-model head is never loaded.

    The template is part of the tokenizer, so the saved form is that of sentence-transformers' own `Transformer` and
    opens without this package.

    Args:
        model_name_or_path: A decoder LLM, a model saved in this form, or an adapter repository: Hub id or folder.
        template: A `PromptTemplate`, the name of one in `TEMPLATES`, or a text with one `{sentence}`. Defaults to
            None: the template of a saved model, `"prompteol"` for a base LLM.
        layer: Which hidden state is read: -1 is the last one, after the final norm; -2 the output of the last but one
            block. Defaults to None: the layer of a saved model, -1 for a base LLM.
        modality_config: What a saved model's `sentence_bert_config.json` holds. Defaults to None.
        module_output_name: Likewise; it is always `"token_embeddings"`. Defaults to None.
        model_kwargs: As sentence-transformers' `Transformer` takes them. Defaults to None.
        processor_kwargs: Likewise. Defaults to None.
        config_kwargs: Likewise. Defaults to None.
        **kwargs: Likewise.

    Raises:
        ValueError: If the model is not a decoder, the layer is out of range, the template does not fit into
            `max_seq_length` tokens or cannot become part of this tokenizer, an adapter does not fit, or a saved
            sentence-transformers model is not in this form.
        FileNotFoundError: If the base model of an adapter cannot be found.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        template: str | PromptTemplate | None = None,
        layer: int | None = None,
        modality_config: dict[str, Any] | None = None,
        module_output_name: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        model_kwargs, processor_kwargs, config_kwargs = model_kwargs or {}, processor_kwargs or {}, config_kwargs or {}
        if layer is None:
            layer = _saved_layer(modality_config)
        if layer is None:
            if template is None:
                raise ValueError(_foreign(model_name_or_path))
            layer = -1

        hub_kwargs = hub_kwargs_of(model_kwargs)
        adapter = load_adapter_config(model_name_or_path, hub_kwargs)
        config = load_decoder_config(model_name_or_path, adapter, config_kwargs)
        check_layer(layer, config)
        if adapter is not None:
            warn_if_base_moved(model_name_or_path, adapter, hub_kwargs)
        # An adapter repository without tokenizer files is opened as its base, with the adapter put on top.
        bare_adapter = adapter is not None and not has_file(model_name_or_path, "tokenizer_config.json", hub_kwargs)
        if adapter is not None and bare_adapter:
            source = str(adapter.base_model_name_or_path)
            model_kwargs, processor_kwargs, config_kwargs = (
                {**options, "revision": adapter.revision}
                for options in (model_kwargs, processor_kwargs, config_kwargs)
            )
        else:
            source = model_name_or_path
        super().__init__(
            source,
            modality_config=_modality_config(layer),
            module_output_name="token_embeddings",
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            **kwargs,
        )
        if bare_adapter:
            load_adapter(self.model, model_name_or_path, **hub_kwargs)

        self.put_body(self.model)
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
            raise ValueError(_foreign(model_name_or_path))

    def _load_config(
        self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]
    ) -> tuple[PretrainedConfig, bool]:
        """Reads the configuration of the LLM; upstream takes the newest one of an adapter's base, here the pinned."""
        adapter = load_adapter_config(model_name_or_path, hub_kwargs_of(config_kwargs))
        if adapter is None or backend != "torch":
            config, is_peft_model = super()._load_config(model_name_or_path, backend, config_kwargs)
            return config, is_peft_model
        return load_decoder_config(model_name_or_path, adapter, config_kwargs), True

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: PretrainedConfig,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> PreTrainedModel:
        """Loads the body; a quantised one so that this CPU can run it, an adapter with every tensor accounted for."""
        skip_unpackable_modules(config, model_kwargs)
        source, hub_kwargs = model_name_or_path, hub_kwargs_of(model_kwargs)
        if is_peft_model:
            adapter = PeftConfig.from_pretrained(model_name_or_path, **hub_kwargs)
            source, model_kwargs["revision"] = str(adapter.base_model_name_or_path), adapter.revision
        model, report = super()._load_model(
            source, transformer_task, config, backend, False, output_loading_info=True, **model_kwargs
        )
        check_complete(source, report["missing_keys"])
        # upstream's own attribute, which it no longer fills: adapters and results are recorded with it
        model.config._commit_hash = opened_commit(source, hub_kwargs_of(model_kwargs))
        keep_nf4_scales(model)
        if is_peft_model:
            load_adapter(model, model_name_or_path, **hub_kwargs)
        return model

    def put_body(self, model: PreTrainedModel) -> None:
        """Makes `model` the body and prepares it for the fast path; once, as a body that is prepared stays so."""
        self.model = model
        prepare(model)
        install_fast_linear(model)
        self._can_share = None if install(model) else False  # None: found out when it is first needed
        self._head: tuple[PromptTemplate, torch.Tensor] | None = None

    def train(self, mode: bool = True) -> PromptEOLTransformer:
        """Sets training or evaluation mode; what trains is first made ready for gradients, its shared head dropped."""
        if mode:
            _HEADS.forget(self.model)
            keep_nf4_unpacked(self.model)
        super().train(mode)
        return self

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Saves model or adapter, tokenizer and configuration, in the form of upstream's `Transformer`."""
        unpack_nf4(self.model)
        record_base_revision(self.model)
        stock_body(self.model).save_pretrained(output_path)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)
        check_tokenizer(Path(output_path), self.tokenizer)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns what `sentence_bert_config.json` holds: what every version reads, more for an inner layer only."""
        config: dict[str, Any] = super().get_config_dict()
        if self.layer == -1:
            config = {key: value for key, value in config.items() if key not in _LAYER_KEYS}
        unlimited = self.max_seq_length == VERY_LARGE_INTEGER
        return {"max_seq_length": None if unlimited else self.max_seq_length, "do_lower_case": False, **config}

    @property
    def tokenizer(self) -> TemplateTokenizer:
        """The tokenizer, of which the template is a part."""
        tokenizer: TemplateTokenizer = super().tokenizer
        return tokenizer

    @property
    def template(self) -> PromptTemplate:
        """The template that sentences are read in. Assign another one, its name or its text to change it."""
        return cast(PromptTemplate, self.tokenizer.template)

    @template.setter
    def template(self, template: str | PromptTemplate) -> None:
        template = get_template(template)
        self._check_length(template, self.max_seq_length)
        self.tokenizer.template = template

    @property
    def layer(self) -> int:
        """Which hidden state is read: -1 is the last one, after the final norm. Assign another one to change it."""
        return _layer(self.modality_config["text"]["method_output_name"])

    @layer.setter
    def layer(self, layer: int) -> None:
        check_layer(layer, self.config)
        self.modality_config = _modality_config(layer)

    @property
    def max_seq_length(self) -> int | None:
        """The most tokens a rendered sentence may have, BOS and template included; longer ones lose their own end."""
        length: int | None = super().max_seq_length
        return length

    @max_seq_length.setter
    def max_seq_length(self, max_seq_length: int | None) -> None:
        self._check_length(self.template, max_seq_length)
        self.tokenizer.model_max_length = max_seq_length

    def count_template_tokens(self) -> int:
        """Returns how many tokens BOS, demonstrations and template take in front of and after every sentence."""
        first, second = self.tokenizer(list(_FILLERS))["input_ids"]
        return sum(
            len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
            for one, other in ((first, second), (first[::-1], second[::-1]))
        )

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

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenises sentences in their template.

        Args:
            inputs: The sentences. Lone surrogates, which no tokenizer takes, are read as U+FFFD.
            prompt: Text in front of every sentence, inside the template. Defaults to None.
            **kwargs: As `Transformer.preprocess` takes them.

        Returns:
            `input_ids` and `attention_mask`, each `(batch_size, sequence_length)`, padded on the right.

        Raises:
            TypeError: If an input is not a string.
            ValueError: If a sentence leaves no token at all.
        """
        features: dict[str, Any] = super().preprocess([tokenizable(sentence) for sentence in inputs], prompt, **kwargs)
        ids = features.get("input_ids")
        if isinstance(ids, torch.Tensor) and (ids.shape[-1] == 0 or not features["attention_mask"].any(dim=1).all()):
            raise ValueError(
                f"An empty sentence leaves nothing to embed: the template {self.template.text!r} adds no text and the "
                "tokenizer no BOS. Drop empty sentences or use a template with text."
            )
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings` `(batch_size, sequence_length, hidden_size)` to the features.

        Outside of training, the tokens that all rows begin with are computed once and kept, rows are computed without
        padding, and no block above the layer runs; the result is the same. Within `reading_last_tokens` the features
        are afterwards those of the last tokens only, with a `sequence_length` of 1.
        """
        if torch.is_grad_enabled():  # whoever asks for gradients is about to change the weights
            _HEADS.forget(self.model)
        inner = _inner_layers.get()
        length = self._shared_length(features)
        if length > 0 and self._can_share is None:
            self._can_share = is_exact(self.model, self.layer)
        if length > 0 and self._can_share:
            hidden = self._run_behind_head(features, length, [self.layer, *(inner or ())], last_only=inner is not None)
        elif inner:
            hidden = self._run_whole(features, [self.layer, *inner])
        else:
            return super().forward(features, **kwargs)  # type: ignore[no-any-return]
        features["token_embeddings"] = hidden.pop(self.layer)
        if inner is not None:
            last = features["attention_mask"].sum(dim=1, keepdim=True) - 1
            features["input_ids"] = features["input_ids"].gather(1, last)
            features["attention_mask"] = torch.ones_like(last)
            features |= {inner_embeddings(layer): hidden[layer][:, 0] for layer in inner}
        return features

    def _run_whole(self, features: dict[str, Any], layers: list[int]) -> dict[int, torch.Tensor]:
        """Returns by layer the hidden states of the last tokens, `(batch_size, 1, hidden_size)`, of whole rows."""
        ids, mask = features["input_ids"], features["attention_mask"]
        states = run_to_layers(self.model, layers, input_ids=ids, attention_mask=mask, use_cache=False)
        last = mask.sum(dim=1) - 1
        rows = torch.arange(len(ids), device=ids.device)
        return {layer: hidden[rows, last][:, None] for layer, hidden in states.items()}

    def _run_behind_head(
        self, features: dict[str, Any], length: int, layers: list[int], *, last_only: bool
    ) -> dict[int, torch.Tensor]:
        """Returns by layer the hidden states of all tokens, or of the last ones, with a `sequence_length` of 1."""
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        head = _HEADS.get(self.model, self._head_ids(), max(layers))[length]
        parts = _split(mask[:, length:].sum(dim=1)) if ids.device.type == "cpu" else [slice(None)]
        outputs = [run_behind(self.model, head, ids[part], mask[part], layers, last_only=last_only) for part in parts]
        states = {layer: torch.cat([output[layer] for output in outputs]) for layer in layers}
        if last_only:
            return {layer: hidden[:, None] for layer, hidden in states.items()}
        hidden = states[self.layer]
        whole = hidden.new_zeros(*ids.shape, hidden.shape[-1])
        whole[:, :length] = head.hidden
        whole[:, length:][mask[:, length:].to(hidden.device)] = hidden
        return {self.layer: whole}

    def _head_ids(self) -> torch.Tensor:
        """The tokens that every row begins with, `(head_length,)`, on the model's device."""
        if self._head is None or self._head[0] != self.template:
            first, second = self.tokenizer(list(_FILLERS))["input_ids"]
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
            self._head = (self.template, torch.tensor([token for token, _ in shared]))
        return self._head[1].to(self.model.device)

    def _shared_length(self, features: dict[str, Any]) -> int:
        """How many tokens of the rows need not be computed: 0 where the model is trained or cannot share a head."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if self._can_share is False or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return 0
        if not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor) or ids.ndim != 2:
            return 0
        if torch.is_autocast_enabled(ids.device.type):  # a head kept outside of it would be of another precision
            return 0
        config = self.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if any(window is not None and ids.shape[1] > window for window in windows):
            return 0
        head = self._head_ids()
        head = head[: int(mask.sum(dim=1).min()) - 1]  # every row keeps a token of its own
        if not mask[:, : len(head)].all():  # padded on the left
            return 0
        return int((ids[:, : len(head)] == head).all(dim=0).cumprod(dim=0).sum())

    def get_embedding_dimension(self) -> int:
        """Returns the length of an embedding."""
        config = self.config.get_text_config()
        # OPT-350m projects its 1024 numbers to 512 after the last block.
        if self.layer == -1 and getattr(config, "word_embed_proj_dim", None):
            return int(config.word_embed_proj_dim)
        return int(config.hidden_size)


class LastTokenPooling(Pooling):
    """The hidden state of each sentence's last token: upstream's `Pooling(..., "lasttoken")`, read directly.

    Args:
        embedding_dimension: The size of a hidden state.
        pooling_mode: Only `"lasttoken"`, as a saved configuration says. Defaults to `"lasttoken"`.
        include_prompt: Of no effect on the last token; kept because saved configurations hold it. Defaults to True.

    Raises:
        ValueError: If `pooling_mode` is another one.
    """

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = True) -> None:
        if pooling_mode != "lasttoken":
            raise ValueError(
                f"LastTokenPooling cannot pool by {pooling_mode!r}: use sentence-transformers' Pooling for that."
            )
        super().__init__(embedding_dimension, pooling_mode=pooling_mode, include_prompt=include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` `(batch_size, hidden_size)` to the features."""
        if "cu_seq_lens_q" in features:  # rows without padding, one after the other
            return super().forward(features, **kwargs)  # type: ignore[no-any-return]
        token_embeddings, mask = features["token_embeddings"], features["attention_mask"]
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).argmax(dim=1)  # (batch_size,), whichever side the padding is on
        rows = torch.arange(mask.shape[0], device=token_embeddings.device)
        features["sentence_embedding"] = token_embeddings[rows, last.to(token_embeddings.device)]
        return features


@contextmanager
def reading_last_tokens(inner_layers: Sequence[int] = ()) -> Iterator[None]:
    """Lets `PromptEOLTransformer` compute of its last block what belongs to the last token of each sentence only.

    Args:
        inner_layers: Layers below the model's own whose last tokens are read from the same pass: the features then
            hold `inner_embeddings(layer)`, `(batch_size, hidden_size)`, for each. Defaults to none.
    """
    token = _inner_layers.set(tuple(inner_layers))
    try:
        yield
    finally:
        _inner_layers.reset(token)


def inner_embeddings(layer: int) -> str:
    """Returns the name under which the features hold what is read of an inner layer."""
    return f"layer_{layer}_embedding"


def _split(lengths: torch.Tensor) -> list[slice]:
    """Cuts rows of these lengths into parts of at most `_CPU_TOKENS` tokens, or of one row."""
    starts, tokens = [0], 0
    for row, length in enumerate(lengths.tolist()):
        tokens += length
        if tokens > _CPU_TOKENS and row > starts[-1]:
            starts.append(row)
            tokens = length
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def _modality_config(layer: int) -> dict[str, Any]:
    """What makes sentence-transformers read hidden state `layer`."""
    output = "last_hidden_state" if layer == -1 else ["hidden_states", layer]
    return {"text": {"method": "forward", "method_output_name": output}}


def _layer(method_output_name: Any) -> int:
    return -1 if method_output_name == "last_hidden_state" else int(method_output_name[1])


def _saved_layer(modality_config: dict[str, Any] | None) -> int | None:
    """Returns the layer that a saved model reads, -1 for a base LLM, None for a model in another form."""
    if modality_config is None:
        return -1
    try:
        layer = _layer(modality_config["text"]["method_output_name"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return layer if modality_config == _modality_config(layer) else None


def _foreign(model_name_or_path: str) -> str:
    return (
        f"{model_name_or_path!r} is a sentence-transformers model, but not one in PromptEOL's form: open it with "
        "SentenceTransformer, or pass a template to read sentences in."
    )
