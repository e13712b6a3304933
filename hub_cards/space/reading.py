"""The input tokens of a model, and the part of the prompt that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from st_prompteol import PromptEOLTransformer


@dataclass(frozen=True)
class Token:
    """A token of the model's input text.

    Args:
        text: The characters of the token.
        part: `"head"` for the shared prefix, which is computed once; `"sentence"`; `"tail"` for the end of the
            template; or `"cut"` for the truncated end of a long sentence.
    """

    text: str
    part: Literal["head", "sentence", "tail", "cut"]


def read_tokens(transformer: PromptEOLTransformer, sentences: list[str]) -> list[list[Token]]:
    """Returns the tokens of each sentence in the model's current template."""
    tokenizer = transformer.tokenizer
    head, behind = tokenizer.tokenize_template()
    tail, rows = len(behind), []
    for sentence in sentences:
        ids = tokenizer([sentence])["input_ids"][0]
        begun = _count_shared(ids, head)
        ended = len(ids) - tail
        lost = max(0, len(ids) - (transformer.max_seq_length or len(ids)))
        parts = ["head"] * begun + ["sentence"] * (ended - begun - lost) + ["cut"] * lost + ["tail"] * tail
        texts = _texts_of(tokenizer, ids, transformer.template.render(sentence))
        rows.append([Token(text, part) for text, part in zip(texts, parts, strict=True)])  # type: ignore[arg-type]
    return rows


def _count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _texts_of(tokenizer: Any, ids: list[int], text: str) -> list[str]:
    """Returns the characters of each token, or the token's name if it is a part of a character."""
    names = tokenizer.convert_ids_to_tokens(ids)
    whole = tokenizer.plain.encode(text, add_special_tokens=False)
    if ids != [*tokenizer.bos, *whole.ids]:  # the sentence contains the text of an added token
        return [name.replace("▁", " ").replace("Ġ", " ") for name in names]
    spans = [*([(0, 0)] * len(tokenizer.bos)), *whole.offsets]
    return [
        name if start == end or (start, end) in (spans[at - 1 : at] + spans[at + 1 : at + 2]) else text[start:end]
        for at, (name, (start, end)) in enumerate(zip(names, spans, strict=True))
    ]
