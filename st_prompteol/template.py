"""Prompt templates: a sentence becomes the text whose last token's hidden state is its embedding.

Standard library only. `PromptTemplate.render` is the definition; `st_prompteol.tokens` makes the same function part of
a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

Preprocessing = Literal["paper", "none"]

HOLE = "{sentence}"

# A word that follows an opening quote is closed by its counterpart; after anything else it stands bare.
CLOSING_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "「": "」"}


def _check_characters(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{text!r:.80} holds a lone surrogate, which is no character: drop it, or write the whole one."
        )


@dataclass(frozen=True)
class Demonstration:
    """One worked example in front of the sentence: a sentence and the word that stands for it.

    Args:
        sentence: The demonstration's sentence, e.g. `"A jockey riding a horse."`; preprocessed as the template says.
        word: The word that the template asks for, e.g. `"Equestrian"`; it stands in the prompt as it is.

    Raises:
        ValueError: If either is empty or holds a line break, or the word holds a double quote, which would end the
            quotation that the template opened.

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
    r"""The text around a sentence, with its demonstrations and the preprocessing of sentences.

    Args:
        text: The template with exactly one `{sentence}`; every other brace is literal. Defaults to PromptEOL's
            `This sentence : "{sentence}" means in one word:"` (Jiang et al. 2023, section 3.1).
        demonstrations: Worked examples in front of the sentence (section 3.2), in this order. Defaults to none.
        preprocessing: `"paper"` applies the paper's evaluation preprocessing: white space around a sentence and
            around the template is stripped, a full stop is appended to a sentence that is not empty and does not end
            in one of `. ? " '`, double quotes become single ones, and a final question mark becomes a full stop.
            `"none"` leaves sentences as they are. Defaults to `"paper"`.

    Raises:
        ValueError: If `text` holds no hole or more than one, `preprocessing` is unknown, or there are demonstrations
            but no text after the hole that a word could follow.

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
        """What separates a demonstration's word from the template: nothing after a quote or a space."""
        return "" if self._after[-1:] in CLOSING_QUOTES or self._after[-1:].isspace() else " "

    @property
    def _stop(self) -> str:
        """What follows a demonstration's word: the quote that the template opened, if it did, and a full stop."""
        return CLOSING_QUOTES.get(self._after[-1:], "") + "."

    @property
    def head(self) -> str:
        """The text in front of every sentence, which is the demonstrations and the template up to the hole."""
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
        """Returns the text that is tokenised for `sentence`, without the BOS."""
        return self.head + self._clean(sentence) + self.tail

    def to_dict(self) -> dict[str, Any]:
        """Returns the template as plain values, ready for JSON; `from_dict` reads them back."""
        shots = [{"sentence": shot.sentence, "word": shot.word} for shot in self.demonstrations]
        return {"text": self.text, "demonstrations": shots, "preprocessing": self.preprocessing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptTemplate:
        """Reads what `to_dict` returned; other keys are left alone.

        Raises:
            ValueError: If a value is missing, or is not one that a template takes.
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
Knowledge Enhancement (Zhang et al., https://arxiv.org/abs/2404.03921), whose authors read layer -2; EmbedFilter's
(CentreChen/EmbFilter), whose authors read layer -1 and do not prepare sentences.

Example:
    >>> list(TEMPLATES)
    ['prompteol', 'prompt', 'none', 'pretended-cot', 'knowledge', 'summarize']
    >>> TEMPLATES["prompt"].render("It rains")
    'This sentence : "It rains." means'
"""


def get_template(template: str | PromptTemplate) -> PromptTemplate:
    """Returns a `PromptTemplate`: one is passed through, a name is looked up, a text with a hole is wrapped.

    Raises:
        ValueError: If `template` is neither the name of a template nor a text with one `{sentence}`.
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
