"""What tests build and compare with: tiny models and tokenizers, a tiny SentEval, a process without us."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.util import batch_to_device
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from st_prompteol import Demonstration, PromptEOL, lora_config

# tiny models and tiny classifiers: two threads only wait for each other, in processes that tests start as well
torch.set_num_threads(1)
threadpool_limits(limits=1)

JOCKEY = Demonstration("A jockey riding a horse.", "Equestrian")
VENISON = Demonstration("meat from a deer.", "Venison")
SHOTS = (JOCKEY, VENISON)
TEXT = [
    "This sentence : means in one word:",
    "A jockey riding a horse.",
    "A man is playing a guitar and singing.",
    "The cat sat on the mat, and the dog did not.",
    "relating to switzerland or its people.",
]
SENTENCES = [
    "A jockey riding a horse.",
    "What is this",
    "?",
    "Is it raining?",
    'He said "no" twice',
    "une phrase en français, et une autre, et encore une autre qui est longue",
    "x",
    "😀 emoji! ",
]

WORDS = "a the man woman dog cat horse plays rides sings walks small big red guitar beach this sentence means in"

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


def build_tokenizer(folder: Path, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like OPT's, in small: it puts a BOS in front if asked, and has no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return fast


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


def quick(names: Iterable[str], *kept: str) -> list[Any]:
    """Parameters of a test: those kept are in `make test`, the others are slow tests."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


def assert_alike(one: Any, other: Any, atol: float = 1e-5) -> None:
    """That numbers differ by no more than a share of the largest."""
    np.testing.assert_allclose(one, other, rtol=0, atol=atol * np.abs(other).max())


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


def dequantized(base: str, quantized: PromptEOL) -> PromptEOL:
    """The base in float32 with the weights that the quantized ones stand for: what quantized inference means."""
    model = PromptEOL(base, device=str(quantized.device))
    for name, module in quantized[0].model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(getattr(module, "in_features", None), int) or weight is None:
            continue
        if hasattr(weight, "quant_state"):  # bitsandbytes nf4
            from bitsandbytes.functional import dequantize_4bit

            exact = dequantize_4bit(weight.data, weight.quant_state)
        elif hasattr(weight, "SCB"):  # bitsandbytes int8
            exact = weight.data.float() * weight.SCB[:, None] / 127
        else:
            exact = weight.dequantize() if is_traceable_wrapper_subclass(weight) else weight.detach()
        values = exact.float().reshape(module.out_features, module.in_features).clone()
        model[0].model.get_submodule(name).weight.data = values
    return model


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def build_senteval(folder: Path) -> Path:
    """A tiny folder in SentEval's layout: STS-B and MR, made of a few words."""
    rng = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS.split(), size=rng.integers(3, 8)))

    sts_b = folder / "STS" / "STSBenchmark"
    sts_b.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        rows = (f"g\tf\t2012\t{n}\t{rng.uniform(0, 5):.3f}\t{sentence()}\t{sentence()}\n" for n in range(40))
        (sts_b / f"sts-{split}.csv").write_text("".join(rows), encoding="utf-8")
    (folder / "MR").mkdir()
    for name in ("neg", "pos"):
        lines = "".join(f"{name} {sentence()}\n" for _ in range(40))
        (folder / "MR" / f"rt-polarity.{name}").write_text(lines, encoding="latin-1")
    return folder


class PlainProcess:
    """A process in which `st_prompteol` cannot be imported, and which encodes with plain sentence-transformers."""

    SCRIPT = """
import json, sys
sys.modules["st_prompteol"] = None
from sentence_transformers import SentenceTransformer
models = {}
for line in sys.stdin:
    request = json.loads(line)
    try:
        model = SentenceTransformer(request["path"], device="cpu", local_files_only=True)
        embeddings = model.encode(request["sentences"])
        answer = {"embeddings": embeddings.tolist(), "dimension": model.get_embedding_dimension()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("ANSWER" + json.dumps(answer), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def request(self, path: str | Path, sentences: list[str]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"path": str(path), "sentences": sentences}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError("the process without st_prompteol ended")

    def encode(self, path: str | Path, sentences: list[str]) -> np.ndarray[Any, Any]:
        answer = self.request(path, sentences)
        assert "error" not in answer, answer["error"]
        embeddings = np.array(answer["embeddings"], dtype=np.float32)
        assert embeddings.shape == (len(sentences), answer["dimension"])
        return embeddings

    def close(self) -> None:
        self.process.communicate(timeout=30)
