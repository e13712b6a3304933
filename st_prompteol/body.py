"""The body of a decoder LLM as a sentence-transformers module: what a name opens, and which hidden state is read."""

from __future__ import annotations

import copy
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftConfig
from sentence_transformers.base.modules import Transformer
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from st_prompteol.adapters import load_adapter
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
from st_prompteol.quantization import (
    body_of,
    check_read,
    describe_quantization,
    is_saved_with_head,
    opening_quantized,
    settle,
)

# Of `sentence_bert_config.json`: what sentence-transformers before 5.4 does not know, and what an inner layer needs
_LAYER_KEYS = ("transformer_task", "modality_config", "module_output_name")


class DecoderTransformer(Transformer):
    """The body of a decoder LLM, or of the one that an adapter was trained on with the adapter on top.

    Args:
        model_name_or_path: A decoder LLM, a saved model, or an adapter repository with or without tokenizer files.
        layer: Which hidden state is read.
        model_kwargs: As sentence-transformers' `Transformer` takes them.
        processor_kwargs: Likewise.
        config_kwargs: Likewise.
        **kwargs: Likewise.

    Attributes:
        quantization: How the weights are, or came, quantised, in a few words; None for floats.
        gguf_file: The name of the GGUF file that was opened; None for other checkpoints.
        base_config: The configuration that others find under the name of the base; None if its weights have changed.

    Raises:
        ValueError: If the model is not a decoder, the layer is out of range, or an adapter does not fit.
        FileNotFoundError: If the base model of an adapter cannot be found.
        ImportError: If the model comes quantised, and a package that its format needs is missing.
    """

    quantization: str | None
    gguf_file: str | None
    base_config: PretrainedConfig | None

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
        if gguf_file:  # which holds configuration and tokenizer too
            processor_kwargs, config_kwargs = (
                {"gguf_file": gguf_file, **options} for options in (processor_kwargs, config_kwargs)
            )
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
        with TemporaryDirectory() as folder:
            if config.get_text_config() is not config:  # a multimodal model, whose processor would want images
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
        source, hub_kwargs = model_name_or_path, hub_kwargs_of(model_kwargs)
        if is_peft_model:
            adapter = PeftConfig.from_pretrained(model_name_or_path, **hub_kwargs)
            source, model_kwargs["revision"] = str(adapter.base_model_name_or_path), adapter.revision
        stated = getattr(config, "quantization_config", None) or (
            {"quant_method": "gguf"} if "gguf_file" in model_kwargs else None
        )
        self.base_config = copy.deepcopy(config)
        task = "text-generation" if is_saved_with_head(config) else transformer_task
        with opening_quantized(source, config, model_kwargs):
            model, report = super()._load_model(
                source, task, config, backend, False, output_loading_info=True, **model_kwargs
            )
            model = body_of(model)
            settle(model, stated)
        check_complete(source, report["missing_keys"])
        check_read(source, model, report["unexpected_keys"])
        # upstream's own attribute, which it no longer fills: adapters and results are recorded with it
        model.config._commit_hash = opened_commit(source, hub_kwargs_of(model_kwargs))
        self.quantization = describe_quantization(stated, model)
        if is_peft_model:
            load_adapter(model, model_name_or_path, **hub_kwargs)
        return model

    def get_config_dict(self) -> dict[str, Any]:
        """Returns what `sentence_bert_config.json` holds: what every version reads, more for an inner layer only.

        An adapter's folder has no `config.json`, and transformers 4 opens every model in float32: where these would
        say another dtype than the model computes in, `model_args` states it.
        """
        config: dict[str, Any] = super().get_config_dict()
        if layer_of(self.modality_config) == -1:
            config = {key: value for key, value in config.items() if key not in _LAYER_KEYS}
        dtype = str(self.model.dtype).removeprefix("torch.")
        if hasattr(self.model, "peft_config") or dtype != "float32":
            config["model_args"] = {"torch_dtype": dtype}
        unlimited = self.max_seq_length == VERY_LARGE_INTEGER
        return {"max_seq_length": None if unlimited else self.max_seq_length, "do_lower_case": False, **config}

    def get_embedding_dimension(self) -> int:
        """Returns the length of an embedding."""
        config = self.config.get_text_config()
        # OPT-350m projects its 1024 numbers to 512 after the last block.
        if layer_of(self.modality_config) == -1 and getattr(config, "word_embed_proj_dim", None):
            return int(config.word_embed_proj_dim)
        return int(config.hidden_size)


def reading_layer(layer: int) -> dict[str, Any]:
    """What makes sentence-transformers read hidden state `layer`."""
    output = "last_hidden_state" if layer == -1 else ["hidden_states", layer]
    return {"text": {"method": "forward", "method_output_name": output}}


def layer_of(modality_config: dict[str, Any]) -> int:
    """Returns the layer that a model of this configuration reads."""
    method_output_name = modality_config["text"]["method_output_name"]
    return -1 if method_output_name == "last_hidden_state" else int(method_output_name[1])


def saved_layer(modality_config: dict[str, Any] | None) -> int | None:
    """Returns the layer that a saved model reads, -1 for a base LLM, None for a model in another form."""
    if modality_config is None:
        return -1
    try:
        layer = layer_of(modality_config)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return layer if modality_config == reading_layer(layer) else None


def foreign(model_name_or_path: str) -> str:
    """Returns what to say of a saved model in another form."""
    return (
        f"{model_name_or_path!r} is a sentence-transformers model, but not one in PromptEOL's form: open it with "
        "SentenceTransformer, or pass a template to read sentences in."
    )
