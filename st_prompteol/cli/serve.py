"""`st-prompteol serve`: serves embeddings to OpenAI's clients."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import (
    BatchSize,
    Model,
    Normalize,
    Standardization,
    Standardize,
    open_standardized,
    quiet,
    read_statistics,
    takes_model_options,
)


@takes_model_options
def serve(
    context: typer.Context,
    model: Model,
    model_options: dict[str, Any],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="What requests call the model. Default: MODEL as it is given here.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="ST_PROMPTEOL_API_KEY", help="Key that requests must have, as a bearer token. Default: none."
        ),
    ] = None,
    max_inputs: Annotated[int, typer.Option(min=1, help="Most sentences of one request.")] = 2048,
    batch_size: BatchSize = 32,
    normalize: Normalize = False,
    standardize: Standardize = None,
    standardization: Standardization = "scale",
) -> None:
    """Serve embeddings to OpenAI's clients; requests that wait are computed together."""
    statistics = read_statistics(context, standardize)
    quiet()
    from st_prompteol.server.run import serve as run_server

    run_server(
        lambda: open_standardized(model, model_options, statistics, standardization),
        model if served_model_name is None else served_model_name,
        host=host,
        port=port,
        batch_size=batch_size,
        normalize=normalize,
        max_inputs=max_inputs,
        api_key=api_key,
        show=lambda line: typer.echo(line, err=True),
    )
