"""`st-prompteol similarity`: compares sentences with each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import (
    Model,
    Standardization,
    Standardize,
    open_standardized,
    read_statistics,
    takes_model_options,
)
from st_prompteol.cli.terminal import show_table

_ALIKE = 0.6  # cosine similarity; sentences above it are rarely all related


@takes_model_options
def similarity(
    context: typer.Context,
    model: Model,
    sentences: Annotated[list[str], typer.Argument(help="Two or more sentences.")],
    model_options: dict[str, Any],
    standardize: Standardize = None,
    standardization: Standardization = "scale",
) -> None:
    """Show how similar sentences are to each other."""
    if len(sentences) < 2:
        raise ValueError(f"One sentence ({sentences[0]!r}) has nothing to be similar to: give two or more.")
    statistics = read_statistics(context, standardize)
    opened = open_standardized(model, model_options, statistics, standardization)
    embeddings = opened.encode(sentences)
    numbers = [str(number) for number in range(1, len(sentences) + 1)]
    show_table([["", "sentence"], *map(list, zip(numbers, sentences, strict=True))], text_columns=2)
    typer.echo()
    similarities = opened.similarity(embeddings, embeddings).tolist()
    lowest = min(map(min, similarities))
    rows = [[number, *(f"{value:.4f}" for value in row)] for number, row in zip(numbers, similarities, strict=True)]
    show_table([["", *numbers], *rows])
    if lowest > _ALIKE and opened.similarity_fn_name == "cosine" and not opened.is_standardized:
        typer.echo(
            f"All similarities are {lowest:.2f} or more: if some of these sentences are unrelated, standardize "
            "embeddings by the statistics of some hundred sentences, --standardize FILE.",
            err=True,
        )
