"""`st-prompteol export`: saves a model for plain SentenceTransformer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import Column, Header, Model, open_model, refuse_unused, takes_model_options


@takes_model_options
def export(
    context: typer.Context,
    model: Model,
    path: Annotated[str, typer.Argument(help="The folder to write.")],
    model_options: dict[str, Any],
    cut: Annotated[
        bool, typer.Option("--cut", help="Remove the blocks above the layer, for servers that read the last one only.")
    ] = False,
    center: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Subtract the mean embedding of the sentences of this file."),
    ] = None,
    column: Column = None,
    header: Header = None,
) -> None:
    """Save a model as a folder that plain SentenceTransformer opens, an adapter merged into its base."""
    if center is None:
        refuse_unused(context, "without --center", "column", "header")
    opened = open_model(model, model_options)
    if opened.adapters:
        opened.merge_adapter()
    if cut:
        typer.echo(str(opened.cut()), err=True)
    if center is not None:
        from st_prompteol.corpus.formats import read_all_sentences

        opened.center(read_all_sentences(center, column, header))
    opened.save_pretrained(path)
    typer.echo(f"saved in {path}: open it with SentenceTransformer({path!r})", err=True)
    if opened.layer != -1:
        from st_prompteol.llm.cut import server_note

        typer.echo(server_note(opened.layer), err=True)
