"""Published scores (Jiang et al. 2023 and its successors) for comparison, and the demonstrations of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from st_prompteol.evaluation.score_table import ScoreRow
from st_prompteol.prompt.template import Demonstration


def _row(model: str, method: str, sts: float, transfer: float | None = None) -> ScoreRow:
    averages = {"STS avg": sts} | ({} if transfer is None else {"transfer avg": transfer})
    return ScoreRow(model, f"{method} (published)", {}, averages=averages)


_LLAMA2 = "meta-llama/Llama-2-7b-hf"
_ICL, _CSE = "PromptEOL + demonstration", "PromptEOL + CSE"

# Averages over the 7 STS tasks, and over the 7 transfer tasks if known, x100
PUBLISHED: tuple[ScoreRow, ...] = (
    _row("facebook/opt-125m", _ICL, 67.46),
    _row("facebook/opt-350m", _ICL, 69.02),
    _row("facebook/opt-1.3b", _ICL, 77.52),
    _row("facebook/opt-2.7b", _ICL, 78.18),
    _row("facebook/opt-6.7b", _ICL, 79.08),
    _row("facebook/opt-13b", _ICL, 79.04),
    _row("facebook/opt-30b", _ICL, 78.94),
    _row("facebook/opt-66b", _ICL, 78.19),
    _row("facebook/opt-1.3b", _CSE, 84.79),
    _row("facebook/opt-2.7b", _CSE, 85.62),
    _row("facebook/opt-6.7b", _CSE, 85.82),
    _row("facebook/opt-13b", _CSE, 85.97),
    _row("huggyllama/llama-7b", _CSE, 85.70),
    _row("huggyllama/llama-13b", _CSE, 85.85),
    _row("huggyllama/llama-30b", _CSE, 86.24),
    _row(_LLAMA2, "PromptEOL", 70.03, 90.94),
    _row(_LLAMA2, "Pretended CoT, layer -2", 76.86, 90.75),
    _row(_LLAMA2, "Knowledge, layer -2", 77.14, 90.93),
    _row(_LLAMA2, "mean of both, layer -2", 78.23),
    _row(_LLAMA2, "MetaEOL, mean of 8 prompts", 75.96),
    _row(_LLAMA2, "PromptEOL + Token Prepending", 77.19, 91.42),
    _row("sentence-transformers/sentence-t5-xxl", "ST5-Enc 4.8B", 84.96, 91.63),
    _row("princeton-nlp/sup-simcse-roberta-large", "SimCSE", 82.52, 88.08),
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
"""The paper's demonstration for each size of OPT, chosen on STS-B dev (section 3.2)."""

DEFAULT_DEMONSTRATION = DEMONSTRATIONS["facebook/opt-2.7b"]


def published_rows(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    """Returns the published rows of the models among `rows`.

    Args:
        rows: Measured rows.

    Example:
        >>> published = published_rows([ScoreRow("facebook/opt-6.7b", "mine", {})])
        >>> [(row.method, row.average("STS avg")) for row in published]
        [('PromptEOL + demonstration (published)', 79.08), ('PromptEOL + CSE (published)', 85.82)]
    """
    models = {row.model for row in rows}
    return [row for row in PUBLISHED if row.model in models]
