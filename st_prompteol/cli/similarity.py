"""`st-prompteol similarity`: sentences compared with each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import Model, open_model, takes_model_options


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    embeddings = opened.encode(sentences)
    table = Table("", "sentence", *(str(number) for number in range(1, len(sentences) + 1)))
    for number, (sentence, row) in enumerate(
        zip(sentences, opened.similarity(embeddings, embeddings), strict=True), 1
    ):
        table.add_row(str(number), Text(sentence), *(f"{value:.4f}" for value in row.tolist()))
    Console().print(table)
