"""Shared by the benchmarks: the reference implementation, random models of known shapes, counting and timing."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from st_prompteol import Demonstration, PromptEOL
from st_prompteol.fast import FastPath

JOCKEY = Demonstration("A jockey riding a horse.", "Equestrian")
TIED = {"tie_word_embeddings": True}
# Model type, hidden size, size of the feed-forward layers, number of layers, number of heads, and other non-default
# values of the configuration
SHAPES: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "tiny": ("opt", 64, 128, 2, 4, {}),  # for testing a benchmark
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
    def open(cls, folder: str, batch_size: int) -> Reference:
        """Loads a saved causal LM with its tokenizer in float32."""
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(lm, AutoTokenizer.from_pretrained(folder), batch_size)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """Returns embeddings `(len(texts), hidden_size)`, on the CPU."""
        batches = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        tokens = (self.tokenizer(batch, padding=True, return_tensors="pt").to(self.lm.device) for batch in batches)
        return torch.cat([reference_embeddings(self.lm, batch).cpu() for batch in tokens])


def random_lm(shape: str, vocabulary: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Creates a causal LM with random weights on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(shape, vocabulary), dtype=dtype)
    return lm.eval()


def save_random_model(shape: str, tokenizer: str, folder: str, **options: Any) -> None:
    """Saves a causal LM with random weights, with the options of `random_lm`, and a real tokenizer."""
    opened = AutoTokenizer.from_pretrained(tokenizer)
    opened.save_pretrained(folder)
    random_lm(shape, len(opened), **options).save_pretrained(folder)


def wait() -> None:
    """Synchronizes with the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any]) -> float:
    """Calls a function and returns its duration in seconds, including its work on a GPU."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def latency(model: PromptEOL, sentence: str, calls: int = 300) -> dict[str, float]:
    """Encodes one sentence at a time; returns median seconds of `encode` and of a forward pass over its own tokens."""
    own = model[0].tokenizer(sentence + model.template.tail, add_special_tokens=False, return_tensors="pt")
    ids = own["input_ids"].to(model.device)
    seconds: dict[str, list[float]] = {"forward": [], "encode": []}
    with torch.inference_mode():
        for _ in range(calls):
            seconds["forward"].append(seconds_of(lambda: model[0].model(input_ids=ids, use_cache=False)))
            seconds["encode"].append(seconds_of(lambda: model.encode(sentence)))
    return {way: statistics.median(values) for way, values in seconds.items()}


def flops_per_sentence(model: PromptEOL, sentences: list[str]) -> float:
    """Counts the useful FLOPs of a sentence, without prefix and padding."""
    enabled, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False  # its products are not counted
    try:
        with FlopCounterMode(display=False) as counter:
            model.encode(sentences, batch_size=1)
    finally:
        torch.backends.mkldnn.enabled = enabled
    return counter.get_total_flops() / len(sentences)


@contextmanager
def noting_shared_heads() -> Iterator[list[bool]]:
    """Yields a list to which every forward pass appends whether it used the prefix cache."""
    run, noted = FastPath.run, []

    def noting(*args: Any) -> Any:
        states = run(*args)
        noted.append(states is not None)
        return states

    FastPath.run = noting  # type: ignore[method-assign]
    try:
        yield noted
    finally:
        FastPath.run = run  # type: ignore[method-assign]


def machine() -> dict[str, Any]:
    """Returns the date, the machine and the versions for a page of measurements."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
