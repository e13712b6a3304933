"""The body of a decoder LLM as a sentence-transformers module: loading, and the choice of the hidden state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from sentence_transformers.base.modules import Transformer
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from st_prompteol.llm.adapters import load_adapter
from st_prompteol.llm.decoders import (
    check_base_is_full,
    check_complete,
    check_layer,
    has_file,
    hub_kwargs_of,
    load_adapter_config,
    load_decoder_config,
    opened_commit,
    warn_if_base_moved,
)
from st_prompteol.llm.loaded import adapters_of
from st_prompteol.llm.quantization import (
    body_of,
    check_read,
    describe_quantization,
    is_saved_with_head,
    opening_quantized,
    settle,
    stated_quantization,
)

Thing = TypeVar("Thing")
# Keys of `sentence_bert_config.json` that an inner layer needs and sentence-transformers before 5.4 does not know
_LAYER_KEYS = ("transformer_task", "modality_config", "module_output_name")


class DecoderTransformer(Transformer):
    """The body of a decoder LLM; for an adapter, its base model with the adapter loaded.

    Args:
        model_name_or_path: A decoder LLM, a saved model, or an adapter repository with or without tokenizer files.
        layer: The hidden state to use.
        model_kwargs: Keyword arguments for `from_pretrained` of the model.
        processor_kwargs: Keyword arguments for `from_pretrained` of the tokenizer.
        config_kwargs: Keyword arguments for `from_pretrained` of the configuration.
        **kwargs: Other arguments of sentence-transformers' `Transformer`.

    Attributes:
        quantization: A short description of the quantization of the checkpoint; None for float weights.
        gguf_file: The name of the loaded GGUF file; None for other checkpoints.

    Raises:
        ValueError: If the model is not a decoder, the layer is out of range, or an adapter does not fit.
        FileNotFoundError: If the base model of an adapter cannot be found.
        ImportError: If the checkpoint is quantized and a package that its format requires is missing.
    """

    quantization: str | None
    gguf_file: str | None

    def __init__(
        self,
        model_name_or_path: str,
        *,
        layer: int,
        model_kwargs: dict[str, Any],
        processor_kwargs: dict[str, Any],
        config_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        gguf_file = model_kwargs.get("gguf_file")
        if gguf_file:  # it also contains the configuration and the tokenizer
            processor_kwargs, config_kwargs = (
                {"gguf_file": gguf_file, **options} for options in (processor_kwargs, config_kwargs)
            )
        hub_kwargs = hub_kwargs_of(model_kwargs)
        adapter = load_adapter_config(model_name_or_path, hub_kwargs)
        if adapter is not None:
            check_base_is_full(model_name_or_path, adapter, hub_kwargs)
        config = load_decoder_config(model_name_or_path, adapter, config_kwargs)
        check_layer(layer, config)
        if adapter is not None:
            warn_if_base_moved(model_name_or_path, adapter, hub_kwargs)
        # For an adapter repository without tokenizer files, load the base model, then the adapter.
        bare_adapter = adapter is not None and not has_file(model_name_or_path, "tokenizer_config.json", hub_kwargs)
        if adapter is not None and bare_adapter:
            source = str(adapter.base_model_name_or_path)
            model_kwargs, processor_kwargs, config_kwargs = (
                {**options, "revision": adapter.revision}
                for options in (model_kwargs, processor_kwargs, config_kwargs)
            )
        else:
            source = model_name_or_path
        with TemporaryDirectory() as folder:
            if config.get_text_config() is not config:  # a multimodal model, whose processor expects images
                tokenizer = AutoTokenizer.from_pretrained(source, **processor_kwargs)
                tokenizer.init_kwargs.pop("processor_class", None)
                tokenizer.save_pretrained(folder)
                kwargs["tokenizer_name_or_path"] = folder
            super().__init__(
                source,
                modality_config=reading_layer(layer),
                module_output_name="token_embeddings",
                model_kwargs=model_kwargs,
                processor_kwargs=processor_kwargs,
                config_kwargs=config_kwargs,
                **kwargs,
            )
        self.gguf_file = gguf_file
        if bare_adapter:
            load_adapter(self.model, model_name_or_path, **hub_kwargs)

    def _load_config(
        self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]
    ) -> tuple[PretrainedConfig, bool]:
        """Loads the LLM's configuration; an adapter's base at its pinned revision, where upstream takes the newest."""
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
        """Loads the body; makes quantized weights usable on this CPU and checks all tensors of an adapter."""
        source, hub_kwargs = model_name_or_path, hub_kwargs_of(model_kwargs)
        if is_peft_model:
            adapter = PeftConfig.from_pretrained(model_name_or_path, **hub_kwargs)
            source, model_kwargs["revision"] = str(adapter.base_model_name_or_path), adapter.revision
        stated = stated_quantization(config, model_kwargs)
        base_config = copy.deepcopy(config)
        task = "text-generation" if is_saved_with_head(config) else transformer_task
        with opening_quantized(source, config, model_kwargs):
            model, report = super()._load_model(
                source, task, config, backend, False, output_loading_info=True, **model_kwargs
            )
            model = body_of(model)
            settle(model, stated)
        check_complete(source, report["missing_keys"])
        check_read(source, model, report["unexpected_keys"])
        # upstream no longer sets this attribute of its own; adapters and results record it
        model.config._commit_hash = opened_commit(source, hub_kwargs_of(model_kwargs))
        model.base_config = base_config  # what is published, until the weights of the base change
        self.quantization = describe_quantization(stated, model)
        if is_peft_model:
            load_adapter(model, model_name_or_path, **hub_kwargs)
        return model

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DecoderTransformer:
        """Moves or casts the model (`.to`, `.half`), but does not round buffers that a loaded model has in float32.

        Rotary frequencies are not saved but computed in float32 when a model is loaded, so a saved model would
        otherwise embed differently.
        """
        dtype, buffers = self.model.dtype, dict(self.model.named_buffers())
        super()._apply(fn, recurse)
        if self.model.dtype != dtype:
            _restore_buffers(self.model, buffers)
        return self

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the content of `sentence_bert_config.json`; keys of newer versions only if an inner layer is used.

        An adapter folder has no `config.json`, and transformers 4 loads every model in float32. `model_args` states
        the dtype where the model uses another one.
        """
        config: dict[str, Any] = super().get_config_dict()
        if layer_of(self.modality_config) == -1:
            config = {key: value for key, value in config.items() if key not in _LAYER_KEYS}
        dtype = str(self.model.dtype).removeprefix("torch.")
        if adapters_of(self.model) or dtype != "float32":
            config["model_args"] = {"torch_dtype": dtype}
        unlimited = self.max_seq_length == VERY_LARGE_INTEGER
        return {"max_seq_length": None if unlimited else self.max_seq_length, "do_lower_case": False, **config}

    def get_embedding_dimension(self) -> int:
        """Returns the length of an embedding."""
        config = self.config.get_text_config()
        # OPT-350m projects its 1024-dimensional hidden states to 512 dimensions after the last block.
        if layer_of(self.modality_config) == -1 and getattr(config, "word_embed_proj_dim", None):
            return int(config.word_embed_proj_dim)
        return int(config.hidden_size)


def shallow_copy(original: Thing) -> Thing:
    """Returns a copy with dictionaries of its own: submodules, hooks, prompts, measurements.

    Methods that accelerate has replaced on a module are bound to the copy.
    """
    twin = copy.copy(original)
    for name, value in vars(original).items():
        if isinstance(value, dict):
            vars(twin)[name] = value.copy()
        elif isinstance(value, MethodType) and value.__self__ is original:
            vars(twin)[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and value.args and value.args[0] is original:
            vars(twin)[name] = partial(value.func, twin, *value.args[1:], **value.keywords)
    return twin


def _restore_buffers(model: PreTrainedModel, buffers: Mapping[str, torch.Tensor]) -> None:
    """Restores buffers that are not saved and that a model loaded in the new dtype would have in their old dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.device("meta"):
            loaded = type(model)(model.config)
    finally:
        torch.set_default_dtype(default)
    saved = loaded.state_dict().keys()
    for name, buffer in loaded.named_buffers():
        if name in buffers and name not in saved and buffers[name].dtype == buffer.dtype:
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, buffers[name].to(model.get_buffer(name).device))


def reading_layer(layer: int) -> dict[str, Any]:
    """Returns the `modality_config` that makes sentence-transformers use hidden state `layer`."""
    output = "last_hidden_state" if layer == -1 else ["hidden_states", layer]
    return {"text": {"method": "forward", "method_output_name": output}}


def layer_of(modality_config: dict[str, Any]) -> int:
    """Returns the layer of a `modality_config`."""
    method_output_name = modality_config["text"]["method_output_name"]
    return -1 if method_output_name == "last_hidden_state" else int(method_output_name[1])


def saved_layer(modality_config: dict[str, Any] | None) -> int | None:
    """Returns the layer of a saved model: -1 for a base LLM, None for a model in another format."""
    if modality_config is None:
        return -1
    try:
        layer = layer_of(modality_config)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return layer if modality_config == reading_layer(layer) else None


def foreign(model_name_or_path: str) -> str:
    """Returns the error message for a saved model in another format."""
    return (
        f"{model_name_or_path!r} is a sentence-transformers model, but not one in PromptEOL's form: open it with "
        "SentenceTransformer, or pass a template to read sentences in."
    )
