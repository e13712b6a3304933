"""What the page does, without the page: sentences and recipes as they were typed, and one model for all visitors.

What a visitor gets wrong is a ValueError of one sentence, which the page shows as it is.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from st_prompteol import TEMPLATES, Demonstration, PromptEOL, PromptEOLTransformer, PromptTemplate
from st_prompteol.template import get_template
from st_prompteol.tokens import tokenizable

MAX_SENTENCES = 32
MAX_LENGTH = 300  # characters of a sentence, of a template and of a demonstration
MIN_TO_CENTRE = 8  # different sentences: the mean of fewer is mostly one of them
OWN_TEXT = "your own text"  # choices of a template besides the names in TEMPLATES
OWN_MODEL = "the model's own"
_FILLERS = ["0.", "1 2 3'"]  # sentences that begin and end differently


@dataclass(frozen=True)
class Recipe:
    """What a visitor has chosen: the arguments that `PromptEOL` is opened with.

    Args:
        template: A name in `TEMPLATES` or a text with one `{sentence}`; None for the model's own template.
        demonstrations: Worked examples in front of every sentence; none leave the template as it is.
        layer: Which hidden state is read.
        centred: Whether the mean embedding of the visitor's sentences is subtracted.
    """

    template: str | None = None
    demonstrations: tuple[Demonstration, ...] = ()
    layer: int = -1
    centred: bool = False

    def describe(self) -> str:
        """Returns the recipe in a few words."""
        shots = len(self.demonstrations)
        words = [
            self.template or OWN_MODEL,
            *([f"{shots} demonstration{'s' if shots > 1 else ''}"] if shots else []),
            f"layer {self.layer}",
            *(["centred"] if self.centred else []),
        ]
        return ", ".join(words)


@dataclass(frozen=True)
class Token:
    """A token as it stands in the text that goes into the model.

    Args:
        text: Its characters.
        part: `"head"` for what all sentences share and is computed once, `"sentence"`, `"tail"` for the template
            behind it, `"cut"` for the end of a sentence that is too long for the model.
    """

    text: str
    part: Literal["head", "sentence", "tail", "cut"]


@dataclass(frozen=True)
class Result:
    """What a recipe makes of the sentences.

    Args:
        recipe: The recipe.
        embeddings: `(sentences, embedding_dimension)`.
        similarities: `(sentences, sentences)`.
        tokens: The tokens of each sentence in its template.
    """

    recipe: Recipe
    embeddings: np.ndarray[Any, Any]
    similarities: np.ndarray[Any, Any]
    tokens: list[list[Token]]


def read_sentences(text: str) -> list[str]:
    """Returns the sentences of a text, one per line; blank lines are left out.

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
        own_text: The template's text where `template` is `OWN_TEXT`.
        layer: Which hidden state is read.
        centred: Whether embeddings are centred.
        demonstrations: Sentences and words; a pair of which both are blank is left out.

    Raises:
        ValueError: If the own text has no `{sentence}`, a demonstration lacks its sentence or its word or has no place
            in the template, or a text is longer than `MAX_LENGTH`.
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


class Playground:
    """One model, opened once, for all visitors: a recipe is set for as long as its sentences are encoded.

    Args:
        model_name_or_path: What `PromptEOL` opens.
    """

    def __init__(self, model_name_or_path: str) -> None:
        self.name = model_name_or_path
        self.model = PromptEOL(model_name_or_path)
        self.own_template, self.own_layer = self.model.template, self.model.layer
        self.layers = range(-1, -self.model[0].config.get_text_config().num_hidden_layers - 1, -1)
        self._turn = threading.Lock()  # template and layer belong to the model, which is everybody's

    @property
    def templates(self) -> list[str]:
        """The templates that can be chosen, that of the model first."""
        own = self.own_name
        return [own, *(name for name in TEMPLATES if name != own), OWN_TEXT]

    @property
    def own_name(self) -> str:
        """The name of the model's template, `OWN_MODEL` if it has none."""
        return next((name for name, template in TEMPLATES.items() if template == self.own_template), OWN_MODEL)

    def describe(self) -> str:
        """Returns the model in a few words."""
        facts = self.model.describe()
        parameters, architecture = int(facts["parameters"] or 0), str(facts["architecture"]).removesuffix("Model")
        return (
            f"{architecture} with {parameters / 1e6:,.0f} million parameters, {len(self.layers)} layers, "
            f"embeddings of {facts['dimension']} numbers"
        )

    def run(self, recipe: Recipe, sentences: list[str]) -> Result:
        """Encodes the sentences by the recipe.

        Raises:
            ValueError: If the model cannot read them so, or they are too few to be centred.
        """
        if recipe.centred and len(set(sentences)) < MIN_TO_CENTRE:
            raise ValueError(
                f"Centring subtracts the mean of your sentences, and {len(set(sentences))} different ones say too "
                f"little of it: write at least {MIN_TO_CENTRE}, or switch it off."
            )
        template = self.own_template if recipe.template is None else get_template(recipe.template)
        if recipe.demonstrations:
            template = replace(template, demonstrations=recipe.demonstrations)
        with self._turn:
            model = copy.copy(self.model)  # the same weights
            model._modules = dict(model._modules)  # what stands behind them is this visitor's
            model.template, model.layer = template, recipe.layer
            if recipe.centred:
                model.center(sentences)
            embeddings = model.encode(sentences)
            tokens = read_tokens(model[0], sentences)
        return Result(recipe, embeddings, model.similarity(embeddings, embeddings).numpy(), tokens)

    def write_code(self, recipe: Recipe, sentences: list[str]) -> str:
        """Returns the Python code that does the same."""
        arguments = [_quote(self.name)]
        if recipe.template is not None and recipe.template != self.own_name:
            arguments.append(f"template={_quote(recipe.template)}")
        if recipe.demonstrations:
            shots = ", ".join(
                f"Demonstration({_quote(shot.sentence)}, {_quote(shot.word)})" for shot in recipe.demonstrations
            )
            arguments.append(f"demonstrations=[{shots}]")
        if recipe.layer != self.own_layer:
            arguments.append(f"layer={recipe.layer}")
        call = f"PromptEOL({', '.join(arguments)})"
        if len(call) > 80:
            call = "\n    ".join(["PromptEOL(", *(f"{argument}," for argument in arguments)]) + "\n)"
        return "\n".join(
            [
                f"from st_prompteol import {'Demonstration, ' if recipe.demonstrations else ''}PromptEOL",
                "",
                "sentences = [",
                *(f"    {_quote(sentence)}," for sentence in sentences),
                "]",
                f"model = {call}",
                *(["model.center(sentences)"] if recipe.centred else []),
                "embeddings = model.encode(sentences)",
                "print(model.similarity(embeddings, embeddings))",
            ]
        )


def read_tokens(transformer: PromptEOLTransformer, sentences: list[str]) -> list[list[Token]]:
    """Returns the tokens of each sentence in the template that the model has now."""
    tokenizer = transformer.tokenizer
    one, other = tokenizer(_FILLERS)["input_ids"]
    head, tail = _count_shared(one, other), _count_shared(one[::-1], other[::-1])
    rows = []
    for sentence in sentences:
        ids = tokenizer([sentence])["input_ids"][0]
        begun = min(head, _count_shared(ids, one))
        ended = len(ids) - tail
        lost = max(0, len(ids) - (transformer.max_seq_length or len(ids)))
        parts = ["head"] * begun + ["sentence"] * (ended - begun - lost) + ["cut"] * lost + ["tail"] * tail
        texts = _texts_of(tokenizer, ids, transformer.template.render(sentence))
        rows.append([Token(text, part) for text, part in zip(texts, parts, strict=True)])  # type: ignore[arg-type]
    return rows


def _quote(text: str) -> str:
    """Writes a string as Python code, in double quotes unless it holds some."""
    code = repr(text)
    return code if '"' in text else f'"{code[1:-1]}"'


def _count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _texts_of(tokenizer: Any, ids: list[int], text: str) -> list[str]:
    """Returns the characters of each token; a token that is a part of a character goes by its name."""
    names = tokenizer.convert_ids_to_tokens(ids)
    whole = tokenizer.plain.encode(text, add_special_tokens=False)
    if ids != [*tokenizer.bos, *whole.ids]:  # a sentence that spells an added token
        return [name.replace("▁", " ").replace("Ġ", " ") for name in names]
    spans = [*([(0, 0)] * len(tokenizer.bos)), *whole.offsets]
    return [
        name if start == end or (start, end) in (spans[at - 1 : at] + spans[at + 1 : at + 2]) else text[start:end]
        for at, (name, (start, end)) in enumerate(zip(names, spans, strict=True))
    ]


def flatten(embeddings: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """Puts embeddings on a plane by their two principal components, lengths left aside.

    Returns:
        Points `(sentences, 2)`, and the share of the variance that the plane shows.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    left, sizes, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    total = float((sizes**2).sum())
    if total < 1e-12:
        return np.zeros((len(unit), 2)), 1.0
    points = np.zeros((len(unit), 2))
    points[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    return points, float((sizes[:2] ** 2).sum() / total)


def turn_like(points: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turns and mirrors a map so that its points lie as near as they can to those of another one."""
    left, _, right = np.linalg.svd(points.T @ others)
    turned: np.ndarray[Any, Any] = points @ (left @ right)
    return turned
