"""`Recipe`: the settings of a decoder LLM that embeds sentences without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from st_prompteol.prompt.template import TEMPLATES, Demonstration, PromptTemplate
from st_prompteol.standardization import METHODS, Method

_PARTICIPLES = {"center": "centered", "scale": "scaled", "whiten": "whitened"}


@dataclass(frozen=True)
class Recipe:
    """Settings for embeddings from a decoder LLM without training.

    Args:
        template: The text around a sentence, with its demonstrations and preprocessing.
        layer: The hidden state to read; -1 is the last.
        standardization: The method of `PromptEOL.standardize`: `"center"`, `"scale"` or `"whiten"`. Defaults to None:
            plain embeddings.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> recipe = Recipe(TEMPLATES["prompt"], layer=-2, standardization="scale")
        >>> print(recipe)
        prompt, layer -2, scaled
        >>> recipe.to_code("tiny")
        "model = PromptEOL('tiny', template='prompt', layer=-2); model.standardize(sentences, 'scale')"
    """

    template: PromptTemplate
    layer: int
    standardization: Method | None = None

    def __post_init__(self) -> None:
        if self.standardization not in (None, *METHODS):
            raise ValueError(f"Unknown standardization {self.standardization!r}: choose from {', '.join(METHODS)}.")

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        """The demonstrations of the template."""
        return self.template.demonstrations

    def with_demonstrations(self, *demonstrations: Demonstration) -> Recipe:
        """Returns this recipe with other demonstrations."""
        return replace(self, template=replace(self.template, demonstrations=demonstrations))

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as JSON values; `from_dict` reads them back."""
        return {**self.template.to_dict(), "layer": self.layer, "standardization": self.standardization}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Creates a recipe from the values of `to_dict`; other keys are ignored."""
        return cls(PromptTemplate.from_dict(values), values["layer"], values["standardization"])

    def __str__(self) -> str:
        words = [demonstration.word for demonstration in self.demonstrations]
        shown = f", demonstration {' + '.join(words)}" if words else ""
        method = f", {_PARTICIPLES[self.standardization]}" if self.standardization else ""
        return f"{template_name(self.template)}, layer {self.layer}{method}{shown}"

    def to_code(self, model_name_or_path: str) -> str:
        """Returns Python code that loads a model with this recipe."""
        name = template_name(self.template)
        template = repr(name) if name in TEMPLATES else repr(replace(self.template, demonstrations=()))
        shown = f", demonstrations={list(self.demonstrations)!r}" if self.demonstrations else ""
        code = f"model = PromptEOL({model_name_or_path!r}, template={template}{shown}, layer={self.layer})"
        return code + (f"; model.standardize(sentences, {self.standardization!r})" if self.standardization else "")


def template_name(template: PromptTemplate) -> str:
    """Returns the name of a template in `TEMPLATES`, regardless of its demonstrations; its text if it has no name."""
    bare = replace(template, demonstrations=())
    return next((name for name, known in TEMPLATES.items() if known == bare), template.text)
