"""Reads folders saved by this version in older versions of transformers, for every family whose configuration changed.

    python -m benchmarks.families.old_transformers --tokenizer TOKENIZER --versions 4.48.3 4.57.6

Uses small random models of each architecture (Qwen2 is saved as Llama) with non-default values, and sentences longer
than every window. Each version is installed in an environment of its own. The table shows the smallest cosine
similarity to `PromptEOL`'s embeddings, or the exception that was raised.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from benchmarks.clients.folders import ROOT, reference
from benchmarks.clients.run import measure
from benchmarks.clients.table import in_transformers
from benchmarks.speed.measuring import table
from st_prompteol import PromptEOL

SENTENCES = {"short": "x", "long": "A man is playing a guitar. " * 8, "question": "Is it raining?"}
SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
LLAMA = {"intermediate_size": 96, "num_key_value_heads": 2, "rms_norm_eps": 3e-4}
WINDOW = {"sliding_window": 16}
SLIDING = {"use_sliding_window": True, "max_window_layers": 2, **WINDOW}
FULL, SLIDES = "full_attention", "sliding_attention"
FACTORS = {"short_factor": [1 + i / 9 for i in range(6)], "long_factor": [1.0 + i for i in range(6)]}


def rope(kind: str = "default", **values: Any) -> dict[str, Any]:
    """Returns a rope configuration in the keys of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500000.0, **values}}


LINEAR, YARN = rope("linear", factor=4.0), rope("yarn", factor=4.0, original_max_position_embeddings=64)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LONG = rope("longrope", partial_rotary_factor=0.75, **FACTORS)
HALF = rope(partial_rotary_factor=0.5)
GEMMA = {**LLAMA, **WINDOW, "head_dim": 32}
GEMMA3 = {**GEMMA, "num_hidden_layers": 7}
TWO_ROPES = {FULL: LINEAR["rope_parameters"], SLIDES: {"rope_type": "default", "rope_theta": 20000.0}}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "OPT": ("opt", {"ffn_dim": 96}),
    "OPT-350m": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "GPT-2": ("gpt2", {}),
    "GPT-2, scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "GPT-Neo": ("gpt_neo", {"attention_types": [[["global", "local"], 2]], "window_size": 16}),
    "GPT-J": ("gptj", {"rotary_dim": 8}),
    "GPT-NeoX": ("gpt_neox", {"intermediate_size": 96, **HALF}),
    "BLOOM": ("bloom", {}),
    "Falcon": ("falcon", rope()),
    "Llama 2": ("llama", {**LLAMA, **rope(rope_theta=10000.0)}),
    "Llama 3": ("llama", {**LLAMA, **rope()}),
    "Llama 3.2": ("llama", {**LLAMA, **LLAMA3, "head_dim": 32, "attention_bias": True, "tie_word_embeddings": True}),
    "Llama, linear": ("llama", {**LLAMA, **LINEAR}),
    "Llama, dynamic": ("llama", {**LLAMA, **rope("dynamic", factor=4.0), "max_position_embeddings": 32}),
    "Llama, YaRN": ("llama", {**LLAMA, **YARN}),
    "Llama, LongRoPE": ("llama", {**LLAMA, **rope("longrope", factor=8.0, **FACTORS), "head_dim": 12}),
    "SmolLM2": ("llama", {**LLAMA, **rope(rope_theta=100000.0), "hidden_size": 96, "num_attention_heads": 6}),
    "SmolLM3": ("smollm3", {**LLAMA, **rope()}),
    "Qwen3": ("qwen3", {**LLAMA, **rope(), "head_dim": 32, "attention_bias": True}),
    "Qwen3, sliding": ("qwen3", {**LLAMA, **rope(), **SLIDING}),
    "Mistral": ("mistral", {**LLAMA, **rope(), "head_dim": 32, "sliding_window": None}),
    "Mistral, sliding": ("mistral", {**LLAMA, **rope(), **WINDOW}),
    "Gemma": ("gemma", {**LLAMA, **rope(), "head_dim": 32, "hidden_act": "relu"}),
    "Gemma 2": ("gemma2", {**GEMMA, **rope(), "attn_logit_softcapping": 2.0}),
    "Gemma 2, reversed": ("gemma2", {**GEMMA, **rope(), "layer_types": [FULL, SLIDES] * 2}),
    "Gemma 3": ("gemma3_text", GEMMA3),
    "Gemma 3, scaled, each third": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": TWO_ROPES, "layer_types": [SLIDES, SLIDES, FULL] * 2 + [SLIDES]},
    ),
    "Gemma 3, reversed": ("gemma3_text", {**GEMMA, "layer_types": [FULL, SLIDES] * 2}),
    "Gemma 3, scaled twice": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": dict.fromkeys((FULL, SLIDES), TWO_ROPES[FULL])},
    ),
    "Phi": ("phi", {"intermediate_size": 96, "qk_layernorm": True, **HALF}),
    "Phi-3": ("phi3", {**LLAMA, **rope(), **WINDOW}),
    "Phi-4-mini": ("phi3", {**LLAMA, **LONG, "original_max_position_embeddings": 32}),
    "StableLM": ("stablelm", {**LLAMA, "use_qkv_bias": True, **HALF}),
    "Nemotron": ("nemotron", {**LLAMA, **HALF}),
    "GLM-4": ("glm4", {**LLAMA, **HALF, "head_dim": 16}),
    "OLMo": ("olmo", {**LLAMA, "clip_qkv": 2.0, **rope()}),
    "OLMo 2": ("olmo2", {**LLAMA, **rope()}),
    "StarCoder2": ("starcoder2", {**LLAMA, **WINDOW, **rope()}),
    "Granite": ("granite", {**LLAMA, **LLAMA3, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "Cohere": ("cohere", {**LLAMA, **rope()}),
}


def save(name: str, tokenizer: Any, folder: str) -> None:
    """Saves a family's model in our form."""
    model_type, options = FAMILIES[name]
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.AutoConfig.for_model(model_type, **json.loads(json.dumps({**SIZES, **ids, **options})))
    body = transformers.AutoModel.from_config(config).float().eval()
    for weight in body.parameters():
        noise = torch.randn_like(weight)
        weight.data = weight + 0.2 * noise if weight.dim() == 1 else noise * 1.5 / weight.shape[-1] ** 0.5
    with TemporaryDirectory() as base:
        body.save_pretrained(base)
        tokenizer.save_pretrained(base)
        PromptEOL(base).save_pretrained(folder, create_model_card=False)


def cell(measured: dict[str, Any]) -> str:
    """Formats what a version made of a folder."""
    return measured["error"].partition(":")[0] if "error" in measured else f"{measured['minimum']:.6f}"


def main() -> int:
    """Saves the models, installs each version, compares and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or repository of a tokenizer")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--versions", nargs="+", default=["4.48.3", "4.57.6"])
    parser.add_argument("--cache", type=Path, default=ROOT / "build/clients", help="where environments are made")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer, model_max_length=512)
    with TemporaryDirectory() as saved:
        folders, references = {}, {}
        for name in args.families:
            folder = str(Path(saved, name))
            try:
                save(name, tokenizer, folder)
                references[name] = reference(folder, list(SENTENCES.values()))
                folders[name] = folder
            except Exception as error:  # some are refused: their folders would not open everywhere
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        read = [
            measure(in_transformers(version), args.cache.resolve(), folders, SENTENCES, references)["kinds"]
            for version in args.versions
        ]
    lines = [[name, *(cell(kinds[name]) for kinds in read)] for name in folders]
    print(table(f"saved by transformers {transformers.__version__} | {' | '.join(args.versions)}", lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
