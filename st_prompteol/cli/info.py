"""`st-prompteol info`: prints the properties of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import Model, open_model, takes_model_options
from st_prompteol.cli.terminal import show_table

_UNLIMITED = 10**30  # max_seq_length of a tokenizer without a limit


@takes_model_options
def info(
    model: Model,
    model_options: dict[str, Any],
    adapters: Annotated[
        list[str] | None, typer.Option("--adapter", help="Adapter to put on, NAME=FOLDER_OR_REPO; repeat for more.")
    ] = None,
) -> None:
    """Show what a model runs with: its template, layer, dimension, parameters, adapters."""
    opened = open_model(model, model_options)
    for adapter in adapters or ():
        name, separator, repository = adapter.partition("=")
        if not separator:
            raise ValueError(f"{adapter!r} is not NAME=FOLDER_OR_REPO: write --adapter legal=user/legal-adapter.")
        opened.load_adapter(repository, name)
    show_table([[name, _shown(value)] for name, value in opened.describe().items()], text_columns=2)


def _shown(value: str | int | None) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else "unlimited" if value >= _UNLIMITED else f"{value:,}"
