"""`st-prompteol encode`: encodes a file of sentences to a file of embeddings."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from st_prompteol.cli.options import (
    BatchSize,
    Column,
    Header,
    Model,
    Normalize,
    Standardization,
    Standardize,
    open_standardized,
    read_statistics,
    takes_model_options,
)


@takes_model_options
def encode(
    context: typer.Context,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write: .npy, .safetensors or .parquet.")],
    model_options: dict[str, Any],
    model: Model = "tiny",
    source: Annotated[
        str,
        typer.Argument(metavar="[FILE|-]", help="Lines of text, .csv, .tsv, .jsonl, .json or .parquet; - is stdin."),
    ] = "-",
    column: Column = None,
    header: Header = None,
    batch_size: BatchSize = 32,
    precision: Annotated[
        Literal["float32", "int8", "uint8", "binary", "ubinary"], typer.Option(help="Numbers of the embeddings.")
    ] = "float32",
    normalize: Normalize = False,
    standardize: Standardize = None,
    standardization: Standardization = "scale",
) -> None:
    """Encode a file of sentences: row i of the output is the embedding of sentence i."""
    statistics = read_statistics(context, standardize, column, header)
    opened = open_standardized(model, model_options, statistics, standardization)
    from st_prompteol.corpus import encode_file

    rows, dimension = encode_file(
        opened,
        source,
        output,
        column=column,
        header=header,
        batch_size=batch_size,
        precision=precision,
        normalize_embeddings=normalize,
        show_progress_bar=sys.stderr.isatty(),
    )
    typer.echo(f"{rows} embeddings of {dimension} numbers ({precision}) in {output}", err=True)
