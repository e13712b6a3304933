"""Texts of megabytes: what a truncating tokenizer would read and throw away is cut off before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CHARACTERS = 8  # of a token, to begin with
_MARGIN = 64  # tokens in front of the cut, which it may change


def shorten(text: str, tokens: int, tokenize: Callable[[str], Sequence[int]]) -> str:
    """Returns a text, or so much of it that its first tokens are the same.

    A piece is tokenised twice, the second time without its last character. Where both begin with the same tokens, and
    there are more of them than are needed, the tokens do not depend on where, or whether, the text is cut; else the
    piece is doubled.

    Args:
        text: The text.
        tokens: How many tokens must be the same.
        tokenize: Returns the token ids of a text.
    """
    start = len(text) - len(text.lstrip())  # which a template may strip
    size = _CHARACTERS * (tokens + _MARGIN)
    while start + size < len(text):
        ids, others = (tokenize(text[start : start + size - less]) for less in (0, 1))
        if len(others) >= tokens + _MARGIN and list(ids[:tokens]) == list(others[:tokens]):
            return text[: start + size]
        size *= 2
    return text
