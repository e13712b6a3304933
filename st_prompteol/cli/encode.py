"""`st-prompteol encode`: a file of sentences to a file of embeddings."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from st_prompteol.cli.options import (
    Device,
    Layer,
    MaxSeqLength,
    Model,
    Quantization,
    Revision,
    Template,
    TruncateDim,
    open_model,
)


def encode(
    output: Annotated[str, typer.Option("--output", "-o", help="File to write: .npy, .safetensors or .parquet.")],
    model: Model = "tiny",
    source: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="Lines of text, .csv, .tsv, .jsonl or .parquet; - is stdin.")
    ] = "-",
    column: Annotated[str | None, typer.Option(help="The column that holds the sentences.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences per forward pass.")] = 32,
    precision: Annotated[
        Literal["float32", "int8", "uint8", "binary", "ubinary"], typer.Option(help="Numbers of the embeddings.")
    ] = "float32",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every embedding to length 1.")] = False,
    truncate_dim: TruncateDim = None,
    template: Template = None,
    layer: Layer = None,
    quantization: Quantization = None,
    max_seq_length: MaxSeqLength = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Encode a file of sentences; row i of the output is sentence i."""
    opened = open_model(
        model,
        template=template,
        layer=layer,
        quantization=quantization,
        max_seq_length=max_seq_length,
        device=device,
        revision=revision,
        truncate_dim=truncate_dim,
    )
    from st_prompteol.corpus import encode_file

    rows, dimension = encode_file(
        opened,
        source,
        output,
        column=column,
        batch_size=batch_size,
        precision=precision,
        normalize_embeddings=normalize,
        show_progress_bar=sys.stderr.isatty(),
    )
    typer.echo(f"{rows} embeddings of {dimension} numbers ({precision}) in {output}", err=True)
