"""One loaded model for all visitors, and the Python code that reproduces a result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from reading import Token, read_tokens
from recipes import OWN_MODEL, OWN_TEXT

from st_prompteol import TEMPLATES, PromptEOL
from st_prompteol.recipes import Recipe
from st_prompteol.recipes.recipe import template_name

MIN_TO_STANDARDIZE = 8  # distinct sentences; the statistics of fewer depend too much on each of them


@dataclass(frozen=True)
class Result:
    """The result of a recipe for the sentences.

    Args:
        recipe: The recipe.
        embeddings: The embeddings `(sentences, embedding_dimension)`.
        similarities: The similarities `(sentences, sentences)`.
        tokens: The tokens of each sentence in its template.
    """

    recipe: Recipe
    embeddings: np.ndarray[Any, Any]
    similarities: np.ndarray[Any, Any]
    tokens: list[list[Token]]


class Playground:
    """One loaded model for all visitors, each of whom gets a view of it with their recipe.

    Args:
        model_name_or_path: The model, as in `PromptEOL`.
    """

    def __init__(self, model_name_or_path: str) -> None:
        self.name = model_name_or_path
        self.model = PromptEOL(model_name_or_path)
        self.own_template, self.own_layer = self.model.template, self.model.layer
        self.layers = range(-1, -self.model[0].config.get_text_config().num_hidden_layers - 1, -1)

    @property
    def templates(self) -> list[str]:
        """The available templates, the model's own first."""
        own = self.own_name
        return [own, *(name for name in TEMPLATES if name != own), OWN_TEXT]

    @property
    def own_name(self) -> str:
        """The name of the model's template, `OWN_MODEL` if it has none."""
        return next((name for name, template in TEMPLATES.items() if template == self.own_template), OWN_MODEL)

    def describe(self) -> str:
        """Returns a short description of the model."""
        facts = self.model.describe()
        parameters, architecture = int(facts["parameters"] or 0), str(facts["architecture"]).removesuffix("Model")
        return (
            f"{architecture} with {parameters / 1e6:,.0f} million parameters, {len(self.layers)} layers, "
            f"embeddings of {facts['dimension']} numbers"
        )

    def run(self, recipe: Recipe, sentences: list[str]) -> Result:
        """Encodes the sentences with the recipe.

        Raises:
            ValueError: If the model does not support the recipe, or there are too few sentences to standardize by.
        """
        if recipe.standardization and len(set(sentences)) < MIN_TO_STANDARDIZE:
            raise ValueError(
                f"{len(set(sentences))} different sentences are too few for statistics: write at least "
                f"{MIN_TO_STANDARDIZE}, or choose plain."
            )
        model = self.model.view(recipe.template, recipe.layer)
        if recipe.standardization:
            model.standardize(sentences, recipe.standardization)
        embeddings = model.encode(sentences)
        tokens = read_tokens(model[0], sentences)
        return Result(recipe, embeddings, model.similarity(embeddings, embeddings).numpy(), tokens)

    def write_code(self, recipe: Recipe, sentences: list[str]) -> str:
        """Returns Python code that computes the same."""
        arguments = [_quote(self.name)]
        own = self.own_template
        if recipe.template != replace(own, demonstrations=recipe.demonstrations or own.demonstrations):
            arguments.append(f"template={_quote(template_name(recipe.template))}")
        if recipe.demonstrations and recipe.template != own:
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
                f"from st_prompteol import {'Demonstration, ' if 'Demonstration(' in call else ''}PromptEOL",
                "",
                "sentences = [",
                *(f"    {_quote(sentence)}," for sentence in sentences),
                "]",
                f"model = {call}",
                *([f'model.standardize(sentences, "{recipe.standardization}")'] if recipe.standardization else []),
                "embeddings = model.encode(sentences)",
                "print(model.similarity(embeddings, embeddings))",
            ]
        )


def _quote(text: str) -> str:
    """Formats a string as Python code, in double quotes unless it contains some."""
    code = repr(text)
    return code if '"' in text else f'"{code[1:-1]}"'
