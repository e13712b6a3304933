"""Very long texts: removes the part that will be truncated before the text is tokenized."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import pairwise

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

_CHARACTERS = 8  # first estimate of characters per token
_MARGIN = 64  # first number of additional tokens
_WORDS_BEHIND = 2  # words that the pre-tokenizer must have read after a boundary


def is_long(text: str, tokens: int) -> bool:
    """Whether a text is far longer than `tokens` tokens."""
    return len(text) > _CHARACTERS * (tokens + _MARGIN)


class Shortener:
    """Truncates texts where the preceding tokens provably do not depend on the rest.

    This holds at a boundary between two words of the pre-tokenizer, because its patterns look ahead at most at the
    next words. Without a pre-tokenizer that finds words, it holds between two characters that occur together in no
    token of the vocabulary, so that no merge can join them. At either boundary the kind of character must change
    (space, letter, digit, other), so that no run that a pattern matches as a whole, and no character with combining
    marks, is split.

    Args:
        tokenizer: The tokenizer without a template. It must not be changed afterwards.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pairs: frozenset[str] | None = None
        # The vocabularies of WordPiece and of BPE with continuation marks do not show which characters may join
        model = tokenizer.model
        self._is_opaque = not isinstance(model, (BPE, Unigram)) or bool(
            getattr(model, "continuing_subword_prefix", None)
        )

    def shorten(self, text: str, tokens: int, prepare: Callable[[str], str]) -> str:
        """Returns a text, shortened if its first tokens stay the same.

        Args:
            text: The text.
            tokens: The number of tokens that must stay the same.
            prepare: Converts the beginning of a text to the beginning of the string that is tokenized.
        """
        start = len(text) - len(text.lstrip())  # a template may strip it
        size = _CHARACTERS * (tokens + _MARGIN)
        while start + size < len(text):
            piece = text[: start + size]
            if self._has_boundary(prepare(piece), tokens):
                return piece
            size *= 2
        return text

    def _has_boundary(self, text: str, tokens: int) -> bool:
        """Whether there is a boundary after the first tokens of a text that does not depend on the following text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words = [word or 0 for word in encoding.word_ids]  # None only occurs for special tokens, not used here
        offsets, pieces = encoding.offsets, encoding.tokens
        for place in range(tokens, len(words)):
            end = offsets[place - 1][1]
            if not 0 < end <= offsets[place][0] < len(text) or _kind(text[end - 1]) == _kind(text[end]):
                continue
            if unicodedata.category(text[end])[0] == "M":
                continue
            if words[place - 1] != words[place]:
                if words[-1] - words[place] >= _WORDS_BEHIND:
                    return True
            elif words[0] == words[-1] and not self._may_merge(pieces[place - 1][-1] + pieces[place][0]):
                return True
        return False

    def _may_merge(self, pair: str) -> bool:
        """Whether two consecutive characters may be part of one token."""
        if self._pairs is None:
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
            self._pairs = frozenset(left + right for token in vocabulary for left, right in pairwise(token))
        return self._is_opaque or pair in self._pairs


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "other"
