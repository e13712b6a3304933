"""What the benchmarks share: the reference's way of computing, random models of known shapes, the machine's facts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

TIED = {"tie_word_embeddings": True}
# Model type, hidden size, size of the feed-forward layers, number of layers, number of heads, and what else differs
# from the configuration's defaults
SHAPES: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "tiny": ("opt", 64, 128, 2, 4, {}),  # to try a benchmark out
    "opt-125m": ("opt", 768, 3072, 12, 12, {}),
    "opt-2.7b": ("opt", 2560, 10240, 32, 32, {}),
    "stories260k": ("llama", 64, 172, 5, 8, {"num_key_value_heads": 4, "max_position_embeddings": 512, **TIED}),
    "smollm2-135m": ("llama", 576, 1536, 30, 9, {"num_key_value_heads": 3, "max_position_embeddings": 8192, **TIED}),
    "llama-7b": ("llama", 4096, 11008, 32, 32, {}),
    "qwen3-0.6b": (
        *("qwen3", 1024, 3072, 28, 16),
        {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192, **TIED},
    ),
}


def config_of(shape: str, vocabulary: int, **options: Any) -> PretrainedConfig:
    """Returns the configuration of a shape with a vocabulary of that many tokens."""
    model_type, hidden, feed_forward, layers, heads, others = SHAPES[shape]
    if model_type == "opt":
        others = {"ffn_dim": feed_forward, "word_embed_proj_dim": hidden}
    else:
        others = {"intermediate_size": feed_forward, **others}
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return AutoConfig.for_model(model_type, vocab_size=vocabulary, **sizes, **others, **options)


def reference_embeddings(lm: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes embeddings as the reference does: logits and all hidden states of a causal LM.

    Args:
        lm: A causal LM.
        batch: `input_ids` and `attention_mask`, padded on the left.

    Returns:
        Shape `(batch_size, hidden_size)`.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    embeddings: torch.Tensor = lm(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    return embeddings


class Reference:
    """The reference's encoding: in float32, texts in the order that they come in, each whole.

    Args:
        folder: A saved causal LM with its tokenizer.
        batch_size: Texts per forward pass.
    """

    def __init__(self, folder: str, batch_size: int) -> None:
        self.batch_size = batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """Returns embeddings `(len(texts), hidden_size)`."""
        batches = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        return torch.cat(
            [reference_embeddings(self.model, self.tokenizer(b, padding=True, return_tensors="pt")) for b in batches]
        )


def save_random_model(shape: str, tokenizer: str, folder: str) -> None:
    """Saves a causal LM of random weights with a real tokenizer."""
    opened = AutoTokenizer.from_pretrained(tokenizer)
    opened.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(shape, len(opened))).save_pretrained(folder)


def seconds_of(function: Callable[[], Any]) -> float:
    """Calls a function and returns how long that took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """Returns what a page of measurements says about when, where and with what they were made."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
