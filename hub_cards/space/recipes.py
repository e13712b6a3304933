"""Parses sentences and recipes from the page's forms; raises ValueError with a one-sentence message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from st_prompteol import Demonstration, PromptTemplate
from st_prompteol.prompt.template import get_template
from st_prompteol.prompt.tokenizer import tokenizable

MAX_SENTENCES = 32
MAX_LENGTH = 300  # characters of a sentence, a template or a demonstration
OWN_TEXT = "your own text"  # template choices in addition to the names in TEMPLATES
OWN_MODEL = "the model's own"


@dataclass(frozen=True)
class Recipe:
    """A visitor's choices, which are arguments of `PromptEOL`.

    Args:
        template: A name in `TEMPLATES` or a text with one `{sentence}`; None for the model's own template.
        demonstrations: Demonstrations to place before every sentence; if empty, the template keeps its own.
        layer: The hidden state to use.
        centred: Whether to subtract the mean embedding of the visitor's sentences.
    """

    template: str | None = None
    demonstrations: tuple[Demonstration, ...] = ()
    layer: int = -1
    centred: bool = False

    def describe(self) -> str:
        """Returns a short description of the recipe."""
        shots = len(self.demonstrations)
        words = [
            self.template or OWN_MODEL,
            *([f"{shots} demonstration{'s' if shots > 1 else ''}"] if shots else []),
            f"layer {self.layer}",
            *(["centred"] if self.centred else []),
        ]
        return ", ".join(words)


def read_sentences(text: str) -> list[str]:
    """Returns the sentences of a text, one per line; blank lines are skipped.

    Raises:
        ValueError: If there are fewer than two, more than `MAX_SENTENCES`, or one is longer than `MAX_LENGTH`.
    """
    sentences = [line.strip() for line in tokenizable(text).splitlines() if line.strip()]
    if not sentences:
        raise ValueError("There is no sentence yet: write at least two, one per line.")
    if len(sentences) == 1:
        raise ValueError("One sentence has nothing to be compared with: write at least two, one per line.")
    if len(sentences) > MAX_SENTENCES:
        raise ValueError(f"These are {len(sentences)} sentences, but this page takes {MAX_SENTENCES}: leave some out.")
    for number, sentence in enumerate(sentences, start=1):
        _check_length(f"Sentence {number}", sentence)
    return sentences


def read_recipe(
    template: str, own_text: str, layer: int, centred: bool, demonstrations: Sequence[tuple[str, str]]
) -> Recipe:
    """Returns the recipe of a form.

    Args:
        template: A name in `TEMPLATES`, `OWN_TEXT` or `OWN_MODEL`.
        own_text: The template's text if `template` is `OWN_TEXT`.
        layer: The hidden state to use.
        centred: Whether to center embeddings.
        demonstrations: Pairs of sentence and word; pairs with both blank are skipped.

    Raises:
        ValueError: If the own text has no `{sentence}`, a demonstration lacks its sentence or word or does not fit the
            template, or a text is longer than `MAX_LENGTH`.
    """
    shots = []
    for number, (sentence, word) in enumerate(demonstrations, start=1):
        sentence, word = tokenizable(sentence).strip(), tokenizable(word).strip()
        if sentence and not word:
            raise ValueError(f"Demonstration {number} has no word: write the one word that stands for its sentence.")
        if word and not sentence:
            raise ValueError(f"Demonstration {number} has no sentence: write the one that {word!r} stands for.")
        if sentence:
            _check_length(f"Demonstration {number}", sentence + word)
            shots.append(Demonstration(sentence, word))
    own_text = tokenizable(own_text)
    if template == OWN_TEXT:
        _check_length("The template", own_text)
        PromptTemplate(own_text)
    named = {OWN_TEXT: own_text, OWN_MODEL: None}.get(template, template)
    if named is not None:
        replace(get_template(named), demonstrations=tuple(shots))
    return Recipe(named, tuple(shots), layer, centred)


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{what} has {len(text)} characters, but this page takes {MAX_LENGTH}: shorten it.")
