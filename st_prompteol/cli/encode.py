"""`st-prompteol encode`: a file of sentences to a file of embeddings, or a corpus to a folder of them."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

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
    quiet,
    refuse_unused,
)


def encode(
    context: typer.Context,
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="File to write: .npy, .safetensors or .parquet; a folder with --engine."),
    ],
    model: Model = "tiny",
    source: Annotated[
        str,
        typer.Argument(
            metavar="[FILE|FOLDER|-]",
            help="Lines of text, .csv, .tsv, .jsonl or .parquet; - is stdin. With --engine also a folder, s3://, …",
        ),
    ] = "-",
    column: Annotated[str | None, typer.Option(help="The column that holds the sentences.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences per forward pass.")] = 32,
    precision: Annotated[
        Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"],
        typer.Option(help="Numbers of the embeddings; float16 with --engine only."),
    ] = "float32",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every embedding to length 1.")] = False,
    engine: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(help="Encode a corpus of any size, fragment by fragment: here, or on a Ray cluster."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="With --engine: columns for the output, by commas. Default: the sentences.")
    ] = None,
    fragment_rows: Annotated[
        int, typer.Option(min=1, help="With --engine: rows of a fragment, which is done again if it is stopped.")
    ] = 32_768,
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: the cluster. Default: RAY_ADDRESS, or a Ray of our own.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: most workers at a time. Default: one a GPU.")
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: cores of a worker without GPU. Default: 1.")
    ] = None,
    truncate_dim: TruncateDim = None,
    template: Template = None,
    layer: Layer = None,
    quantization: Quantization = None,
    max_seq_length: MaxSeqLength = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Encode a file of sentences, row i of the output being sentence i, or with --engine a corpus."""
    if engine is None:
        refuse_unused(context, "without --engine", "keep", "fragment_rows")
    if engine != "ray":
        refuse_unused(context, "without --engine ray", "address", "workers", "cpus_per_worker")
    options: dict[str, Any] = {
        "template": template,
        "layer": layer,
        "quantization": quantization,
        "max_seq_length": max_seq_length,
        "device": device,
        "revision": revision,
        "truncate_dim": truncate_dim,
    }
    if engine is None:
        if precision == "float16":
            raise ValueError("--precision float16 is for corpora: add --engine local, and a folder for --output.")
        opened = open_model(model, **options)
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
        return
    if source == "-":
        raise ValueError("--engine reads files that it can come back to: name a file, a folder or an address.")
    quiet()
    from st_prompteol.corpus import encode_corpus

    try:
        report = encode_corpus(
            model,
            source,
            output,
            column=column,
            keep=None if keep is None else [name for name in keep.split(",") if name],
            engine=engine,
            batch_size=batch_size,
            precision=precision,
            normalize_embeddings=normalize,
            fragment_rows=fragment_rows,
            model_options={name: value for name, value in options.items() if value is not None},
            address=address,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            show_progress_bar=sys.stderr.isatty(),
        )
    except KeyboardInterrupt as interrupt:
        typer.echo(f"st-prompteol: {str(interrupt) or 'Interrupted: the same command goes on.'}", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{report.rows} rows, {report.bad_rows} of them without text, in {report.parts} parts in {output}; "
        f"{report.encoded_rows} encoded now, {report.encoded_rows / report.seconds:.0f} a second"
        + (f", {report.padding:.0%} padding" if report.padding is not None else ""),
        err=True,
    )
    for failure in report.failures:
        typer.echo(f"st-prompteol: {failure}", err=True)
    if report.failures:
        raise typer.Exit(1)
