"""Published numbers (Jiang et al. 2023 and its successors), to stand beside measured ones; and its demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from st_prompteol.template import Demonstration


@dataclass(frozen=True)
class Published:
    """An average over the 7 STS tasks, and over the 7 transfer tasks where it is known, x100.

    Args:
        model: The base model's repository, or what the paper calls it where it has none.
        method: What was done with it.
        sts: Mean Spearman of the 7 STS tasks.
        transfer: Mean accuracy of the 7 transfer tasks. Defaults to None: not published.
    """

    model: str
    method: str
    sts: float
    transfer: float | None = None


def _opt(method: str, **averages: float) -> tuple[Published, ...]:
    return tuple(
        Published(f"facebook/opt-{size[1:].replace('_', '.')}", method, sts) for size, sts in averages.items()
    )


_LLAMA2 = "meta-llama/Llama-2-7b-hf"
_ICL, _CSE = "PromptEOL + demonstration (published)", "PromptEOL + CSE (published)"

PUBLISHED: tuple[Published, ...] = (
    *_opt(_ICL, _125m=67.46, _350m=69.02, _1_3b=77.52, _2_7b=78.18, _6_7b=79.08, _13b=79.04, _30b=78.94, _66b=78.19),
    *_opt(_CSE, _1_3b=84.79, _2_7b=85.62, _6_7b=85.82, _13b=85.97),
    Published("huggyllama/llama-7b", _CSE, 85.70),
    Published("huggyllama/llama-13b", _CSE, 85.85),
    Published("huggyllama/llama-30b", _CSE, 86.24),
    Published(_LLAMA2, "PromptEOL (published)", 70.03, 90.94),
    Published(_LLAMA2, "Pretended CoT, layer -2 (published)", 76.86, 90.75),
    Published(_LLAMA2, "Knowledge, layer -2 (published)", 77.14, 90.93),
    Published(_LLAMA2, "mean of both, layer -2 (published)", 78.23),
    Published(_LLAMA2, "MetaEOL, mean of 8 prompts (published)", 75.96),
    Published(_LLAMA2, "PromptEOL + Token Prepending (published)", 77.19, 91.42),
    Published("sentence-transformers/sentence-t5-xxl", "ST5-Enc 4.8B (published)", 84.96, 91.63),
    Published("princeton-nlp/sup-simcse-roberta-large", "SimCSE (published)", 82.52, 88.08),
)

DEMONSTRATIONS: Mapping[str, Demonstration] = MappingProxyType(
    {
        "facebook/opt-125m": Demonstration("A man is smoking.", "Smoking"),
        "facebook/opt-350m": Demonstration("A man is playing on a guitar and singing.", "Music"),
        "facebook/opt-1.3b": Demonstration("relating to switzerland or its people.", "Swiss"),
        "facebook/opt-2.7b": Demonstration("A jockey riding a horse.", "Equestrian"),
        "facebook/opt-6.7b": Demonstration("The man is riding a horse.", "Horseback-riding"),
        "facebook/opt-13b": Demonstration("meat from a deer.", "Venison"),
        "facebook/opt-30b": Demonstration("The man is riding a motorcycle down the road.", "Motorcycling"),
        "facebook/opt-66b": Demonstration("of or relating to tutors or tutoring.", "Tutorial"),
    }
)
"""The demonstration that the paper chose for each size of OPT, by STS-B dev (section 3.2)."""

DEFAULT_DEMONSTRATION = DEMONSTRATIONS["facebook/opt-2.7b"]
