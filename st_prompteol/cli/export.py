"""`st-prompteol export`: saves a model for plain SentenceTransformer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import (
    Column,
    Header,
    Model,
    Standardization,
    Standardize,
    open_model,
    read_statistics,
    refuse_unused,
    takes_model_options,
)


@takes_model_options
def export(
    context: typer.Context,
    model: Model,
    path: Annotated[str, typer.Argument(help="The folder to write.")],
    model_options: dict[str, Any],
    cut: Annotated[
        bool, typer.Option("--cut", help="Remove the blocks above the layer, for servers that read the last one only.")
    ] = False,
    standardize: Standardize = None,
    standardization: Standardization = "scale",
    column: Column = None,
    header: Header = None,
) -> None:
    """Save a model as a folder that plain SentenceTransformer opens, an adapter merged into its base."""
    if standardize is None:
        refuse_unused(context, "without --standardize", "column", "header")
    statistics = read_statistics(context, standardize, column, header, is_column_required=True)
    opened = open_model(model, model_options)
    if opened.adapters:
        opened.merge_adapter()
    if cut:
        typer.echo(str(opened.cut()), err=True)
    if statistics:
        opened.standardize(statistics, standardization)
    opened.save_pretrained(path)
    typer.echo(f"saved in {path}: open it with SentenceTransformer({path!r})", err=True)
    if opened.layer != -1:
        from st_prompteol.llm.cut import server_note

        typer.echo(server_note(opened.layer), err=True)
