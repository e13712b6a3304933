"""Compares older versions of transformers on folders saved by this one, with and without the old configuration keys.

    python benchmarks/old_transformers.py FOLDER --versions 4.48.3 4.57.6

Uses small random models of each architecture with non-default values, and rows longer than every window. Each version
is installed in a separate environment under FOLDER that shares this torch. The table shows the largest difference of
the last two hidden states, relative to their largest value, for the folder as saved by transformers 5 and with the
configuration of `st_prompteol.spelling`; or the exception that was raised. `!` marks missing or unexpected weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
SIZES |= {"vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
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
    "Qwen2": ("qwen2", {**LLAMA, **rope(), "head_dim": 32}),
    "Qwen2, sliding": ("qwen2", {**LLAMA, **rope(), **SLIDING}),
    "Qwen2, YaRN": ("qwen2", {**LLAMA, **YARN}),
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


@torch.no_grad()
def hidden_states(model: torch.nn.Module) -> torch.Tensor:
    """Returns the last two hidden states of all tokens of a short, a long and a padded row."""
    ids = torch.randint(5, 1000, (2, 60), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).index_fill_(1, torch.arange(41, 60), 0)
    rows = [(ids[:1, :12], None), (ids, None), (ids, mask)]
    states = [(model(input_ids=i, attention_mask=m, output_hidden_states=True).hidden_states, m) for i, m in rows]
    real = [(state, torch.ones(state.shape[:2]) if m is None else m) for s, m in states for state in s[-2:]]
    return torch.cat([state[m.bool()].flatten() for state, m in real])


def build(folder: Path) -> None:
    """Saves every architecture with the keys of transformers 5 and with both, and its hidden states."""
    from st_prompteol.spelling import spell_for_all

    for name, (model_type, options) in FAMILIES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **json.loads(json.dumps({**SIZES, **options})))
        model = transformers.AutoModel.from_config(config).float().eval()
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            weight.data = weight + 0.2 * noise if weight.dim() == 1 else noise * 1.5 / weight.shape[-1] ** 0.5
        model.save_pretrained(folder / "five" / name)
        shutil.copytree(folder / "five" / name, folder / "both" / name, dirs_exist_ok=True)
        saved = json.loads((folder / "five" / name / "config.json").read_text())
        (folder / "both" / name / "config.json").write_text(json.dumps(spell_for_all(saved)))
        torch.save(hidden_states(model), folder / "five" / name / "states.pt")


def read(folder: Path) -> dict[str, list[str]]:
    """Returns the differences for the version of transformers in this process."""
    cells: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for name in FAMILIES:
        expected = torch.load(folder / "five" / name / "states.pt")
        for spelling in ("five", "both"):
            try:
                model, report = transformers.AutoModel.from_pretrained(
                    folder / spelling / name, torch_dtype=torch.float32, output_loading_info=True
                )
                difference = (hidden_states(model.eval()) - expected).abs().max() / expected.abs().max()
                cells[name].append(f"{difference:.0e}" + "!" * any(report.values()))
            except Exception as error:  # any error is shown in the table
                cells[name].append(type(error).__name__)
    return cells


def main() -> None:
    """Saves the models, installs each version, compares and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", nargs="+", default=["4.48.3", "4.51.3", "4.53.3", "4.56.2", "4.57.6"])
    parser.add_argument("--read", action="store_true", help="only read, in this environment, and print JSON")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.folder)))
        return
    build(arguments.folder)
    columns = {transformers.__version__: read(arguments.folder)}
    for version in arguments.versions:
        environment = arguments.folder / f"transformers-{version}"
        python = environment / "bin" / "python"
        if not environment.exists():
            venv.create(environment, with_pip=True)
            packages = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={version}"]
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        command = [python, __file__, arguments.folder, "--read"]
        columns[version] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )
    print("| saved by transformers", *(f"| {version}: as saved | both" for version in columns), "|")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for name in FAMILIES:
        print("|", name, *(f"| {cell}" for column in columns.values() for cell in column[name]), "|")


if __name__ == "__main__":
    sys.exit(main())
