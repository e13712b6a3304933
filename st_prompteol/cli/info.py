"""`st-prompteol info`: what a model runs with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import Model, open_model, takes_model_options


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in opened.describe().items():
        table.add_row(Text(name, style="bold"), Text(str(value)))
    Console().print(table)
