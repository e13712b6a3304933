"""The inputs of the comparison: fifty sentences, folders of every kind, and the reference embeddings."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize

from st_prompteol import Demonstration, PromptEOL, lora_config
from st_prompteol.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEMONSTRATIONS = [
    Demonstration("A jockey riding a horse.", "Equestrian"),
    Demonstration("meat from a deer.", "Venison"),
]
ODD = {
    "one letter": "x",
    "one space": " ",
    "spaces around": "  A man is smoking.  ",
    "space at the end": "A man is smoking ",
    "tab": "A man\tis smoking.",
    "newline": "A man is\nsmoking.",
    "newline at the end": "A man is smoking.\n",
    "Windows newline": "A man is\r\nsmoking.",
    "no full stop": "A man is smoking",
    "question": "Is a man smoking?",
    "exclamation": "A man is smoking!",
    "single quote at the end": "He calls it 'smoking'",
    "double quote at the end": 'He calls it "smoking"',
    "double quotes inside": 'The "man" is smoking.',
    "question in quotes": 'He asks "is it smoking?"',
    "braces": "A {sentence} in {} braces {0}.",
    "regular expression": r"^.*(\d+)$ [a-z]? \1 $0 | x",
    "Jinja": "{{ sentence }} {% if x %} {# no #}",
    "special token": "He wrote </s> and went on.",
    "special token in front": "<s>He wrote.",
    "the template itself": 'This sentence : "A man" means in one word:"',
    "emoji": "😀 a smile, and a family 👨‍👩‍👧",
    "Chinese": "一个男人在吸烟。",
    "right to left": "رجل يدخن",
    "combining characters": "e\u0301te\u0301 and n\u0303",
    "no-break space": "A\u00a0man\u2003is smoking.",
    "longer than max_seq_length": "A man is smoking and a woman sings. " * 120,
}


def choose_sentences(count: int = 50) -> dict[str, str]:
    """Returns unusual sentences, then plain ones from examples/sentences.tsv, by name."""
    lines = (ROOT / "examples/sentences.tsv").read_text(encoding="utf-8").splitlines()[1 : count - len(ODD) + 1]
    return {**ODD, **{f"sentence {number}": line.split("\t")[1] for number, line in enumerate(lines, start=1)}}


def save_folders(model: str, folder: Path) -> dict[str, str]:
    """Saves a full model in every common published format; formats that fail are skipped with a message."""
    shutil.rmtree(folder, ignore_errors=True)
    base, inner = str(folder / "full"), str(folder / "inner")
    PromptEOL(model).save_pretrained(base)
    builders: dict[str, Callable[[str], None]] = {
        "demonstrations": PromptEOL(base, demonstrations=DEMONSTRATIONS).save_pretrained,
        "adapter": _adapter(base).save_pretrained,
        "inner": PromptEOL(base, layer=-2).save_pretrained,
        "cut": lambda path: app(["export", inner, path, "--cut"], standalone_mode=False),
        "normalized": PromptEOL(modules=[*PromptEOL(base), Normalize()]).save_pretrained,
        "standardized": _standardized(base).save_pretrained,
    }
    folders = {"full": base}
    for kind, save in builders.items():
        try:
            save(str(folder / kind))
            folders[kind] = str(folder / kind)
        except Exception as error:
            print(f"no folder of the kind {kind!r}: {error}", file=sys.stderr)
    return folders


def _adapter(base: str) -> PromptEOL:
    """Returns a model with an adapter whose weights are not zero, as after training."""
    model = PromptEOL(base)
    torch.manual_seed(0)
    model.add_adapter(lora_config(r=4, init_lora_weights=False))
    return model


def _standardized(base: str) -> PromptEOL:
    model = PromptEOL(base)
    model.standardize([*choose_sentences().values()])
    return PromptEOL(modules=[*model, Normalize()])


def reference(folder: str, sentences: list[str]) -> dict[str, list[Any]]:
    """Returns the embeddings and token ids of `PromptEOL` for each sentence in float32."""
    model = PromptEOL(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    batches = [model.preprocess([sentence]) for sentence in sentences]
    ids = [batch["input_ids"][0].tolist() for batch in batches]
    return {"embeddings": list(model.encode(sentences)), "token ids": ids}
