"""`st-prompteol similarity`: compares sentences with each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import Model, open_model, takes_model_options
from st_prompteol.cli.terminal import show_table


@takes_model_options
def similarity(
    model: Model,
    sentences: Annotated[list[str], typer.Argument(help="Two or more sentences.")],
    model_options: dict[str, Any],
) -> None:
    """Show how similar sentences are to each other."""
    if len(sentences) < 2:
        raise ValueError(f"One sentence ({sentences[0]!r}) has nothing to be similar to: give two or more.")
    opened = open_model(model, model_options)
    embeddings = opened.encode(sentences)
    numbers = [str(number) for number in range(1, len(sentences) + 1)]
    show_table([["", "sentence"], *map(list, zip(numbers, sentences, strict=True))], text_columns=2)
    typer.echo()
    similarities = opened.similarity(embeddings, embeddings).tolist()
    rows = [[number, *(f"{value:.4f}" for value in row)] for number, row in zip(numbers, similarities, strict=True)]
    show_table([["", *numbers], *rows])
