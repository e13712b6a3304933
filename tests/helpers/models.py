"""Random causal LMs of a few thousand parameters and adapters, saved as their authors would publish them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sentence_transformers.util import batch_to_device
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from st_prompteol import PromptEOL, lora_config

from .tokenizers import build_tokenizer

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 256}


Config = Callable[[int], Any]  # of a number of tokens


def sized(kind: Any, **more: Any) -> Config:
    return lambda vocab: kind(**{"vocab_size": vocab, **SIZES, **more})


def grouped(kind: Any, **more: Any) -> Config:
    """Of a family whose heads share keys and values."""
    return sized(kind, **{"intermediate_size": 64, "num_key_value_heads": 2, **more})


_GEMMA = {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8}


ARCHITECTURES: dict[str, Config] = {
    "opt": sized(OPTConfig, ffn_dim=64, word_embed_proj_dim=32),
    "opt-350m": sized(OPTConfig, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False),
    "opt-64": sized(OPTConfig, ffn_dim=128, word_embed_proj_dim=64, hidden_size=64),
    "llama-64": grouped(LlamaConfig, intermediate_size=128, hidden_size=64),
    "gpt2": lambda vocab: GPT2Config(vocab_size=vocab, n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "gpt-neox": sized(GPTNeoXConfig, intermediate_size=64),
    "llama": grouped(LlamaConfig),
    "mistral": grouped(MistralConfig, sliding_window=8),
    "qwen2": grouped(Qwen2Config),
    "qwen3": grouped(Qwen3Config, head_dim=8),
    "gemma2": grouped(Gemma2Config, **_GEMMA),
    "gemma3": grouped(Gemma3TextConfig, **_GEMMA),
}


def build_causal_lm(
    folder: Path, architecture: str | Config = "opt", *, seed: int = 0, bos: bool = True, odd_norms: bool = False
) -> str:
    """A random causal LM of a few thousand parameters with its tokenizer, saved as its authors would publish it."""
    tokenizer = build_tokenizer(folder, bos=bos)
    torch.manual_seed(seed)
    # a few rows more than tokens: some families add special tokens of their own when the tokenizer is opened
    config = ARCHITECTURES[architecture] if isinstance(architecture, str) else architecture
    model = AutoModelForCausalLM.from_config(config(len(tokenizer) + 8))
    for parameter in model.parameters():  # the default initialisation makes all sentences alike
        if parameter.ndim > 1 or odd_norms:
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


def adapted(model: PromptEOL) -> None:
    """Adds an adapter that changes embeddings."""
    model.add_adapter(lora_config(r=4))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def features_of(model: PromptEOL, sentences: list[str], **options: Any) -> dict[str, Any]:
    """A batch as `encode` hands it to the modules: where the model is."""
    return batch_to_device(model.preprocess(sentences, **options), model.device)


def gradients_of(model: PromptEOL) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of the gradients that there are."""
    return {name: p.grad.clone().cpu() for name, p in model.named_parameters() if p.grad is not None}


def quick(names: Iterable[str], *kept: str) -> list[Any]:
    """Parameters of a test: those kept are in `make test`, the others are slow tests."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


def publish_adapter(base: str, folder: Path, *, seed: int = 1, binary: bool = False, **lora: Any) -> str:
    """A random adapter saved by peft from a causal LM: no tokenizer files, keys `base_model.model.model.…`."""
    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options)).save_pretrained(folder)
    if binary:
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    return str(folder)
