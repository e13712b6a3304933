"""Parses sentences and recipes from the page's forms; raises ValueError with a one-sentence message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from st_prompteol import TEMPLATES, Demonstration, PromptTemplate
from st_prompteol.prompt.tokenizer import tokenizable
from st_prompteol.recipes import Recipe
from st_prompteol.standardization import METHODS, Method

MAX_SENTENCES = 32
MAX_LENGTH = 300  # characters of a sentence, a template or a demonstration
OWN_TEXT = "your own text"  # template choices in addition to the names in TEMPLATES
OWN_MODEL = "the model's own"
STANDARDIZATIONS: dict[str, Method | None] = {"plain": None, **{method: method for method in METHODS}}


def split_sentences(text: str) -> list[str]:
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
    own: PromptTemplate,
    template: str,
    own_text: str,
    layer: int,
    standardization: str,
    demonstrations: Sequence[tuple[str, str]],
) -> Recipe:
    """Returns the recipe of a form.

    Args:
        own: The model's own template, which keeps its demonstrations if the form has none.
        template: A name in `TEMPLATES`, `OWN_TEXT` or `OWN_MODEL`.
        own_text: The template's text if `template` is `OWN_TEXT`.
        layer: The hidden state to use.
        standardization: One of `STANDARDIZATIONS`.
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
    if template == OWN_TEXT:
        own_text = tokenizable(own_text)
        _check_length("The template", own_text)
        chosen = PromptTemplate(own_text)
    else:
        chosen = own if template == OWN_MODEL else TEMPLATES[template]
    if shots:
        chosen = replace(chosen, demonstrations=tuple(shots))
    return Recipe(chosen, layer, STANDARDIZATIONS[standardization])


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{what} has {len(text)} characters, but this page takes {MAX_LENGTH}: shorten it.")
