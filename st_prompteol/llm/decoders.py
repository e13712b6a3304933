"""Checks before loading: decoder LLMs are supported, and adapters whose base model is one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from peft import PeftConfig
from sentence_transformers.util import load_file_path
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PretrainedConfig,
)

logger = logging.getLogger(__name__)


def hub_kwargs_of(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments in `model_kwargs` that locate files on the Hub or in the cache."""
    return {
        key: model_kwargs[key]
        for key in ("revision", "token", "cache_dir", "local_files_only")
        if model_kwargs.get(key) is not None
    }


def split_gguf(model_name_or_path: str) -> tuple[str, str | None]:
    """Splits the path of a GGUF file into folder or repository and file name; other names are returned with None.

    Args:
        model_name_or_path: A local file (`models/llama.gguf`), one in a repository (`user/repository/llama.gguf`), or
            any other model.
    """
    if not model_name_or_path.endswith(".gguf") or os.path.isdir(model_name_or_path):
        return model_name_or_path, None
    if os.path.isfile(model_name_or_path):
        folder, file = os.path.split(model_name_or_path)
        return folder or os.curdir, file
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", model_name_or_path)
    if hub is None or hub[1].startswith("."):
        raise FileNotFoundError(f"{model_name_or_path!r} is not a file: check the path.")
    return hub[1], hub[2]


def find_file(model_name_or_path: str, filename: str, hub_kwargs: dict[str, Any]) -> str | None:
    """Returns the local path of a file in a folder or repository; None if it has no such file."""
    where = {"cache_folder" if key == "cache_dir" else key: value for key, value in hub_kwargs.items()}
    path: str | None = load_file_path(model_name_or_path, filename, **where)
    return path


def has_file(model_name_or_path: str, filename: str, hub_kwargs: dict[str, Any]) -> bool:
    """Returns whether a folder or repository contains a file."""
    return find_file(model_name_or_path, filename, hub_kwargs) is not None


def load_adapter_config(model_name_or_path: str, hub_kwargs: dict[str, Any]) -> PeftConfig | None:
    """Loads the configuration of an adapter; returns None if the repository is not an adapter."""
    if not has_file(model_name_or_path, "adapter_config.json", hub_kwargs):
        return None
    try:
        adapter = PeftConfig.from_pretrained(model_name_or_path, **hub_kwargs)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The adapter_config.json of {model_name_or_path!r} is none that the installed peft knows ({error}): mend "
            "it, or install the version of peft that it was made with."
        ) from error
    if not adapter.base_model_name_or_path:
        raise ValueError(
            f"The adapter_config.json of {model_name_or_path!r} does not name the base LLM: write its repository or "
            "folder there as base_model_name_or_path."
        )
    return adapter


def check_complete(model_name_or_path: str, missing: Iterable[str]) -> None:
    """Raises ValueError for weights missing from the checkpoint, which would be random; ignores an unused pooler."""
    names = sorted(name for name in missing if not name.startswith("pooler."))
    if names:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"The checkpoint {model_name_or_path!r} has no tensor for {some}, which would be random: download or save "
            "it again, or take the config.json that belongs to it."
        )


def opened_commit(model_name_or_path: str, hub_kwargs: dict[str, Any]) -> str | None:
    """Returns the commit of a repository that has just been loaded, from the cache; None for a folder."""
    if os.path.isdir(model_name_or_path):
        return None
    revision = hub_kwargs.get("revision")
    for filename in ("config.json", "adapter_config.json", "modules.json"):
        path = try_to_load_from_cache(
            model_name_or_path,
            filename,
            cache_dir=hub_kwargs.get("cache_dir"),
            revision=getattr(revision, "resolved", revision),
        )
        snapshot = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", path) if isinstance(path, str) else None
        if snapshot:
            return snapshot[1]
    return None


def warn_if_base_moved(model_name_or_path: str, adapter: PeftConfig, hub_kwargs: dict[str, Any]) -> None:
    """Warns if the base of an adapter has newer commits than the recorded one; skipped when offline."""
    base, recorded = str(adapter.base_model_name_or_path), adapter.revision
    offline = hub_kwargs.get("local_files_only") or constants.HF_HUB_OFFLINE
    if offline or os.path.isdir(base) or not re.fullmatch("[0-9a-f]{40}", recorded or ""):
        return
    try:
        newest = HfApi().model_info(base, token=hub_kwargs.get("token"), timeout=10).sha
    except Exception as error:  # loading the files will raise it again, or does not need the Hub
        logger.debug("Could not look for newer commits of %r: %s", base, type(error).__name__)
        return
    if newest != recorded:
        logger.warning(
            "%r has moved to %s since the adapter %r was made on %s, which is what is opened here; plain "
            "SentenceTransformer opens the newest.",
            base,
            str(newest)[:12],
            model_name_or_path,
            str(recorded)[:12],
        )


def load_decoder_config(
    model_name_or_path: str, adapter: PeftConfig | None, config_kwargs: dict[str, Any]
) -> PretrainedConfig:
    """Loads the configuration of the LLM (of an adapter: its base), and rejects models that are not decoders."""
    source = model_name_or_path
    if adapter is not None:
        source, config_kwargs = str(adapter.base_model_name_or_path), {**config_kwargs, "revision": adapter.revision}
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **config_kwargs)
    except OSError as error:
        if adapter is None:
            raise
        raise FileNotFoundError(
            f"The adapter {model_name_or_path!r} was trained on {source!r}, which cannot be opened: put the base "
            "model there, log in if it is gated, or mend base_model_name_or_path in adapter_config.json."
        ) from error
    except ValueError as error:
        if "model_type" not in str(error):
            raise
        raise ValueError(
            f"{source!r} has no config.json that names its model_type: add the one of the base LLM, or name the GGUF "
            f"file to open there: {os.path.join(source, '….gguf')}."
        ) from error
    if not is_decoder(config):
        raise ValueError(
            f"{source!r} ({config.model_type}) is not a decoder LLM, so its last token has not read the sentence to "
            "predict a next one: use a causal language model such as 'facebook/opt-125m' here, and plain "
            "SentenceTransformer for encoders."
        )
    return config


def check_base_is_full(model_name_or_path: str, adapter: PeftConfig, hub_kwargs: dict[str, Any]) -> None:
    """Raises ValueError if the base model of an adapter is an adapter; looks that up in the base, once per opening."""
    base = str(adapter.base_model_name_or_path)
    try:
        if not has_file(base, "adapter_config.json", {**hub_kwargs, "revision": adapter.revision}):
            return
    except OSError as error:  # loading its configuration raises the error that names adapter and base
        logger.debug("Could not look for an adapter in %r: %s", base, type(error).__name__)
        return
    if os.path.realpath(base) == os.path.realpath(model_name_or_path):
        raise ValueError(
            f"The adapter_config.json of {model_name_or_path!r} names the adapter itself as its base model: write the "
            "repository or folder of the base LLM there as base_model_name_or_path."
        )
    raise ValueError(
        f"The base model of the adapter {model_name_or_path!r} is {base!r}, which is an adapter too: merge that into "
        "its own base by peft's merge_and_unload(), save the full model and its tokenizer to a folder, and name the "
        f"folder as base_model_name_or_path in the adapter_config.json of {model_name_or_path!r}."
    )


def is_decoder(config: PretrainedConfig) -> bool:
    """Returns whether a configuration belongs to a causal language model, alone or within a multimodal model."""
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return False
    if getattr(text_config, "is_causal", True) is False or getattr(text_config, "use_bidirectional_attention", False):
        return False
    # models whose causal LM class is the decoder alone, but whose body transformers loads with the encoder
    has_encoder = hasattr(config, "encoder_layers") or hasattr(config, "num_encoder_layers")
    if has_encoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return False
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return False
    remote_classes = getattr(config, "auto_map", {})  # custom code in the repository
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote_classes:
        return True
    if type(text_config) not in MODEL_MAPPING:
        return False
    wrappers = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.keys()
    return type(config) in wrappers or any(
        wrapper.sub_configs.get("text_config") is type(config) for wrapper in wrappers
    )


def check_layer(layer: int, config: PretrainedConfig) -> None:
    """Raises ValueError unless `layer` is the index of a block from the end, with -1 for the last."""
    blocks = config.get_text_config().num_hidden_layers
    if not isinstance(layer, int) or not -blocks <= layer <= -1:
        raise ValueError(
            f"layer={layer!r} is out of range: {config.name_or_path!r} has {blocks} blocks, so choose -1 (the last, "
            f"after the final norm) to {-blocks} (the first)."
        )
