"""Texts of megabytes: the end that a truncating tokenizer would drop is cut off before it is tokenized."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import pairwise

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

_CHARACTERS = 8  # of a token, to begin with
_MARGIN = 64  # tokens behind those that are needed, to begin with
_WORDS_BEHIND = 2  # words that a pre-tokenizer has to have read behind a boundary


def is_long(text: str, tokens: int) -> bool:
    """Whether a text is far longer than its first tokens."""
    return len(text) > _CHARACTERS * (tokens + _MARGIN)


class Shortener:
    """Cuts texts where the tokens in front provably do not depend on what follows.

    They do not at a boundary between two words of the pre-tokenizer, whose patterns read no further than the words
    behind it. Where the pre-tokenizer finds no words, they do not between two characters that are together in no token
    of the vocabulary, which no merge can join. At either boundary another kind of character must begin (a space, a
    letter, a digit, another one), so that it divides no run that a pattern reads to its end, and no character from
    marks that belong to it.

    Args:
        tokenizer: The tokenizer, without a template; it must not be changed afterwards.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pairs: frozenset[str] | None = None
        # A WordPiece vocabulary, and a BPE with its marks of continuation, does not show which characters may join
        model = tokenizer.model
        self._is_opaque = not isinstance(model, (BPE, Unigram)) or bool(
            getattr(model, "continuing_subword_prefix", None)
        )

    def shorten(self, text: str, tokens: int, prepare: Callable[[str], str]) -> str:
        """Returns a text, or so much of it that its first tokens are the same.

        Args:
            text: The text.
            tokens: How many tokens must be the same.
            prepare: Returns what every text with a given beginning begins with when it is tokenized.
        """
        start = len(text) - len(text.lstrip())  # which a template may strip
        size = _CHARACTERS * (tokens + _MARGIN)
        while start + size < len(text):
            piece = text[: start + size]
            if self._has_boundary(prepare(piece), tokens):
                return piece
            size *= 2
        return text

    def _has_boundary(self, text: str, tokens: int) -> bool:
        """Whether behind the first tokens of a text there is a boundary that does not depend on what follows."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words = [word or 0 for word in encoding.word_ids]  # None only of special tokens, which there are none of
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
        """Whether two characters that follow each other may be in one token."""
        if self._pairs is None:
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
            self._pairs = frozenset(left + right for token in vocabulary for left, right in pairwise(token))
        return self._is_opaque or pair in self._pairs


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "other"
