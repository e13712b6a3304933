"""What can be opened: decoder LLMs, and adapters by the decoder LLM that they were trained on."""

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
    """Returns what of `model_kwargs` says where on the Hub, or in the cache, files are."""
    return {
        key: model_kwargs[key]
        for key in ("revision", "token", "cache_dir", "local_files_only")
        if model_kwargs.get(key) is not None
    }


def split_gguf(model_name_or_path: str) -> tuple[str, str | None]:
    """Returns the folder or repository of a GGUF file and the file's name in it; of any other model its name and None.

    Args:
        model_name_or_path: A file that is there (`models/llama.gguf`), or one of a repository
            (`user/repository/llama.gguf`).
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


def has_file(model_name_or_path: str, filename: str, hub_kwargs: dict[str, Any]) -> bool:
    """Says whether a folder or repository has a file."""
    where = {"cache_folder" if key == "cache_dir" else key: value for key, value in hub_kwargs.items()}
    return load_file_path(model_name_or_path, filename, **where) is not None


def load_adapter_config(model_name_or_path: str, hub_kwargs: dict[str, Any]) -> PeftConfig | None:
    """Returns the configuration of an adapter repository, None for any other."""
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
    """Raises ValueError if weights were not in the checkpoint, and so are random; a pooler's are never read."""
    names = sorted(name for name in missing if not name.startswith("pooler."))
    if names:
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"The checkpoint {model_name_or_path!r} has no tensor for {told}, which would be random: download or save "
            "it again, or take the config.json that belongs to it."
        )


def opened_commit(model_name_or_path: str, hub_kwargs: dict[str, Any]) -> str | None:
    """Returns the commit of a repository that has just been opened, by the cache's note of it; None for a folder."""
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
    """Warns if the base of an adapter has newer commits than the one recorded; offline there is no telling."""
    base, recorded = str(adapter.base_model_name_or_path), adapter.revision
    offline = hub_kwargs.get("local_files_only") or constants.HF_HUB_OFFLINE
    if offline or os.path.isdir(base) or not re.fullmatch("[0-9a-f]{40}", recorded or ""):
        return
    try:
        newest = HfApi().model_info(base, token=hub_kwargs.get("token"), timeout=10).sha
    except Exception as error:  # whatever it is: opening the files themselves will meet it, or does not need the Hub
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
    """Reads the configuration of the LLM, the base one of an adapter, and refuses what predicts no next token."""
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


def is_decoder(config: PretrainedConfig) -> bool:
    """Says whether a configuration is that of a causal language model, alone or within a multimodal one."""
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return False
    if getattr(text_config, "is_causal", True) is False or getattr(text_config, "use_bidirectional_attention", False):
        return False
    # transformers opens the body of these, which have a decoder alone as a causal language model, with its encoder
    has_encoder = hasattr(config, "encoder_layers") or hasattr(config, "num_encoder_layers")
    if has_encoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return False
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return False
    remote_classes = getattr(config, "auto_map", {})  # of a repository with its own code
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote_classes:
        return True
    if type(text_config) not in MODEL_MAPPING:
        return False
    wrappers = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.keys()
    return type(config) in wrappers or any(
        wrapper.sub_configs.get("text_config") is type(config) for wrapper in wrappers
    )


def check_layer(layer: int, config: PretrainedConfig) -> None:
    """Raises ValueError unless `layer` counts one of the blocks from the end, -1 being the last."""
    blocks = config.get_text_config().num_hidden_layers
    if not isinstance(layer, int) or not -blocks <= layer <= -1:
        raise ValueError(
            f"layer={layer!r} is out of range: {config.name_or_path!r} has {blocks} blocks, so choose -1 (the last, "
            f"after the final norm) to {-blocks} (the first)."
        )
