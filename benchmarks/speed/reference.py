"""The reference implementation, and models of known shapes with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from st_prompteol import Demonstration

JOCKEY = Demonstration("A jockey riding a horse.", "Equestrian")
TIED = {"tie_word_embeddings": True}
# Model type, hidden size, size of the feed-forward layers, number of layers, number of heads, and other non-default
# values of the configuration
SHAPES: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "toy": ("opt", 64, 128, 2, 4, {}),  # for testing a benchmark
    "opt-125m": ("opt", 768, 3072, 12, 12, {}),
    "opt-350m": ("opt", 1024, 4096, 24, 16, {"word_embed_proj_dim": 512, "do_layer_norm_before": False}),
    "opt-1.3b": ("opt", 2048, 8192, 24, 32, {}),
    "opt-2.7b": ("opt", 2560, 10240, 32, 32, {}),
    "opt-6.7b": ("opt", 4096, 16384, 32, 32, {}),
    "opt-13b": ("opt", 5120, 20480, 40, 40, {}),
    "stories260k": ("llama", 64, 172, 5, 8, {"num_key_value_heads": 4, "max_position_embeddings": 512, **TIED}),
    "smollm2-135m": ("llama", 576, 1536, 30, 9, {"num_key_value_heads": 3, "max_position_embeddings": 8192, **TIED}),
    "llama-3.2-1b": ("llama", 2048, 8192, 16, 32, {"num_key_value_heads": 8, "max_position_embeddings": 8192, **TIED}),
    "llama-7b": ("llama", 4096, 11008, 32, 32, {}),
    "llama-13b": ("llama", 5120, 13824, 40, 40, {}),
    "qwen3-0.6b": (
        *("qwen3", 1024, 3072, 28, 16),
        {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192, **TIED},
    ),
}


def config_of(shape: str, vocabulary: int, **options: Any) -> PretrainedConfig:
    """Returns the configuration of a shape with the given vocabulary size."""
    model_type, hidden, feed_forward, layers, heads, others = SHAPES[shape]
    if model_type == "opt":
        others = {"ffn_dim": feed_forward, "word_embed_proj_dim": hidden, **others}
    else:
        others = {"intermediate_size": feed_forward, **others}
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return AutoConfig.for_model(model_type, vocab_size=vocabulary, **sizes, **others, **options)


def reference_embeddings(lm: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes embeddings like the reference: with the logits and all hidden states of a causal LM.

    Args:
        lm: A causal LM.
        batch: `input_ids` and `attention_mask`, padded on the left.

    Returns:
        The embeddings `(batch_size, hidden_size)`.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    embeddings: torch.Tensor = lm(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    return embeddings


class Reference:
    """The reference's encoding: texts in their given order, without a prefix cache.

    Args:
        lm: A causal LM.
        tokenizer: The tokenizer of the LM.
        batch_size: The number of texts per forward pass.
    """

    def __init__(self, lm: PreTrainedModel, tokenizer: Any, batch_size: int) -> None:
        self.lm, self.tokenizer, self.batch_size = lm.eval(), tokenizer, batch_size
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    @classmethod
    def open(cls, folder: str, batch_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Reference:
        """Loads a causal LM with its tokenizer."""
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
        return cls(lm, AutoTokenizer.from_pretrained(folder), batch_size)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """Returns embeddings `(len(texts), hidden_size)`, on the CPU."""
        batches = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        tokens = (self.tokenizer(batch, padding=True, return_tensors="pt").to(self.lm.device) for batch in batches)
        return torch.cat([reference_embeddings(self.lm, batch).cpu() for batch in tokens])


@contextmanager
def model_folder(
    model: str, tokenizer: str | None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[str]:
    """Yields `model` itself, or for a name in `SHAPES` a folder with random weights and a real tokenizer."""
    if model not in SHAPES:
        yield model
        return
    if tokenizer is None:
        raise ValueError(f"{model!r} is a shape without a tokenizer of its own: give --tokenizer.")
    with TemporaryDirectory() as folder:
        opened = AutoTokenizer.from_pretrained(tokenizer)
        opened.save_pretrained(folder)
        vocabulary = -(-len(opened) // 8) * 8  # kernels are slow for sizes that are not multiples of 8
        torch.manual_seed(0)
        with torch.device(device):
            lm = AutoModelForCausalLM.from_config(config_of(model, vocabulary), dtype=dtype)
        lm.save_pretrained(folder)
        del lm
        yield folder
