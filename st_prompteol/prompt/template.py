"""Prompt templates: the text around a sentence; the hidden state of its last token is the embedding.

Uses the standard library only. `PromptTemplate.render` is the reference implementation; `prompt.tokenizer` builds the
same function into a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

Preprocessing = Literal["paper", "none"]

HOLE = "{sentence}"

# Closing quote for a word that follows an opening quote; other words are not quoted.
CLOSING_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "「": "」"}


def _check_characters(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{text!r:.80} holds a lone surrogate, which is no character: drop it, or write the whole one."
        )


@dataclass(frozen=True)
class Demonstration:
    """A demonstration: an example sentence with its one-word summary, placed before the sentence to embed.

    Args:
        sentence: The example sentence, e.g. `"A jockey riding a horse."`. The template's preprocessing applies.
        word: The word that summarizes it, e.g. `"Equestrian"`. It is inserted unchanged.

    Raises:
        ValueError: If either is empty or contains a line break, or if the word contains a double quote, which would
            close the template's opening quote.

    Example:
        >>> Demonstration("A jockey riding a horse.", "Equestrian").word
        'Equestrian'
    """

    sentence: str
    word: str

    def __post_init__(self) -> None:
        for name, value in (("sentence", self.sentence), ("word", self.word)):
            if not isinstance(value, str) or not value.strip() or value.splitlines() != [value]:
                raise ValueError(
                    f"A demonstration's {name} must be one line of text that is not blank, got {value!r}: "
                    "mend or drop this demonstration."
                )
        _check_characters(f"{self.sentence}{self.word}")
        if '"' in self.word:
            raise ValueError(
                f"A demonstration's word must not hold a double quote, got {self.word!r}: the template quotes the "
                "word itself."
            )


@dataclass(frozen=True)
class PromptTemplate:
    r"""A prompt template: the text around a sentence, the demonstrations before it, and the sentence preprocessing.

    Args:
        text: The template with exactly one `{sentence}`; every other brace is literal. Defaults to PromptEOL's
            `This sentence : "{sentence}" means in one word:"` (Jiang et al. 2023, section 3.1).
        demonstrations: Demonstrations to place before the sentence (section 3.2), in this order. Defaults to none.
        preprocessing: `"paper"` applies the paper's evaluation preprocessing: it strips white space around a sentence
            and around the template, appends a period to a non-empty sentence that does not end in one of `. ? " '`,
            replaces double quotes with single ones, and replaces a final question mark with a period. `"none"` leaves
            sentences unchanged. Defaults to `"paper"`.

    Raises:
        ValueError: If `text` does not contain exactly one `{sentence}`, if `preprocessing` is unknown, or if there are
            demonstrations but no text after `{sentence}` for their words to follow.

    Example:
        >>> PromptTemplate(demonstrations=(Demonstration("A jockey riding a horse.", "Equestrian"),)).render("Hi")
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".This sentence : "Hi." means in one word:"'
    """  # noqa: E501 - the rendered example is one line

    text: str = 'This sentence : "{sentence}" means in one word:"'
    demonstrations: tuple[Demonstration, ...] = ()
    preprocessing: Preprocessing = "paper"

    def __post_init__(self) -> None:
        holes = self.text.count(HOLE)
        if holes != 1:
            raise ValueError(
                f"The template {self.text!r} has {holes} places for the sentence, but it needs exactly one: "
                f"write {HOLE} once where the sentence goes."
            )
        _check_characters(self.text)
        if self.preprocessing not in get_args(Preprocessing):
            raise ValueError(
                f"Unknown preprocessing {self.preprocessing!r}: choose one of {', '.join(get_args(Preprocessing))}."
            )
        object.__setattr__(self, "demonstrations", tuple(self.demonstrations))
        for demonstration in self.demonstrations:
            if not isinstance(demonstration, Demonstration):
                raise ValueError(f"{demonstration!r} is not a Demonstration: write Demonstration(sentence, word).")
        if self.demonstrations and not self._after:
            raise ValueError(
                f"The template {self.text!r} ends with the sentence, so a demonstration's word has no place in it: "
                "use a template with text after the sentence, or no demonstrations."
            )

    @property
    def _before(self) -> str:
        return self.text.split(HOLE)[0]

    @property
    def _after(self) -> str:
        return self.text.split(HOLE)[1]

    @property
    def _gap(self) -> str:
        """The separator between the template and a demonstration's word: empty after a quote or white space."""
        return "" if self._after[-1:] in CLOSING_QUOTES or self._after[-1:].isspace() else " "

    @property
    def _stop(self) -> str:
        """The text after a demonstration's word: the closing quote, if the template opens one, and a period."""
        return CLOSING_QUOTES.get(self._after[-1:], "") + "."

    @property
    def head(self) -> str:
        """The text before every sentence, which is the demonstrations and the template up to `{sentence}`."""
        shown = (
            self._before + self._clean(shot.sentence) + self._after + self._gap + shot.word + self._stop
            for shot in self.demonstrations
        )
        head = "".join(shown) + self._before
        return head.lstrip() if self.preprocessing == "paper" else head

    @property
    def tail(self) -> str:
        """The text after every sentence."""
        return self._after.rstrip() if self.preprocessing == "paper" else self._after

    def _clean(self, sentence: str) -> str:
        if self.preprocessing == "none":
            return sentence
        sentence = sentence.strip()
        if not sentence:
            return sentence
        if sentence[-1] not in ".?\"'":
            sentence += "."
        sentence = sentence.replace('"', "'")
        return sentence[:-1] + "." if sentence[-1] == "?" else sentence

    def render(self, sentence: str) -> str:
        """Returns the full text to tokenize for `sentence`, without the BOS token."""
        return self.head + self._clean(sentence) + self.tail

    def to_dict(self) -> dict[str, Any]:
        """Returns the template as a JSON-serializable dictionary, the input of `from_dict`."""
        shots = [{"sentence": shot.sentence, "word": shot.word} for shot in self.demonstrations]
        return {"text": self.text, "demonstrations": shots, "preprocessing": self.preprocessing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptTemplate:
        """Creates a template from the output of `to_dict`; other keys are ignored.

        Raises:
            ValueError: If a value is missing or invalid.
        """
        try:
            shots = tuple(Demonstration(shot["sentence"], shot["word"]) for shot in values["demonstrations"])
            return cls(values["text"], shots, values["preprocessing"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{values!r:.300} is not a template: it needs text, demonstrations (a list of sentence and word) and "
                "preprocessing."
            ) from error


TEMPLATES: Mapping[str, PromptTemplate] = MappingProxyType(
    {
        "prompteol": PromptTemplate(),
        "prompt": PromptTemplate('This sentence : "{sentence}" means'),
        "none": PromptTemplate("{sentence}"),
        "pretended-cot": PromptTemplate(
            'After thinking step by step , this sentence : "{sentence}" means in one word:"'
        ),
        "knowledge": PromptTemplate(
            "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
            'provide additional but less central details. With this in mind , this sentence : "{sentence}" means in '
            'one word:"'
        ),
        "summarize": PromptTemplate('Summarize the sentence: "{sentence}" in one word:"', preprocessing="none"),
    }
)
"""The templates by name.

PromptEOL, the prompt without its one-word limit, and the bare sentence (Jiang et al. 2023); Pretended CoT and
Knowledge Enhancement (Zhang et al., https://arxiv.org/abs/2404.03921), which use layer -2; EmbedFilter's
(CentreChen/EmbFilter), which uses layer -1 and no preprocessing.

Example:
    >>> list(TEMPLATES)
    ['prompteol', 'prompt', 'none', 'pretended-cot', 'knowledge', 'summarize']
    >>> TEMPLATES["prompt"].render("It rains")
    'This sentence : "It rains." means'
"""


def get_template(template: str | PromptTemplate) -> PromptTemplate:
    """Returns a `PromptTemplate` for a template (unchanged), a name in `TEMPLATES`, or a text with one `{sentence}`.

    Raises:
        ValueError: If `template` is neither a known name nor a text with one `{sentence}`.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, str) and template in TEMPLATES:
        return TEMPLATES[template]
    if isinstance(template, str) and HOLE in template:
        return PromptTemplate(template)
    raise ValueError(
        f"Unknown template {template!r}: choose one of {', '.join(TEMPLATES)}, or write a text with {HOLE} in it."
    )
