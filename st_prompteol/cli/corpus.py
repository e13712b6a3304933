"""`st-prompteol corpus`: encodes any number of files of any size to a folder of Parquet files."""

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
    quiet,
    read_statistics,
    refuse_unused,
    takes_model_options,
)


@takes_model_options
def corpus(
    context: typer.Context,
    model: Model,
    source: Annotated[str, typer.Argument(help="File or folder, here or at s3://, gs://, hf://: text or tables.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write, here or at such an address.")],
    model_options: dict[str, Any],
    column: Column = None,
    header: Header = None,
    keep: Annotated[
        str | None, typer.Option(help="Columns for the output, separated by commas. Default: the sentences.")
    ] = None,
    batch_size: BatchSize = 32,
    precision: Annotated[
        Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"],
        typer.Option(help="Numbers of the embeddings."),
    ] = "float32",
    normalize: Normalize = False,
    standardize: Standardize = None,
    standardization: Standardization = "scale",
    fragment_rows: Annotated[
        int, typer.Option(min=1, help="Rows of a fragment, the piece that is done again after a stop.")
    ] = 32_768,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Encode here, or on a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: the cluster. Default: RAY_ADDRESS, or a Ray of our own.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: most workers at a time. Default: one a GPU.")
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: cores of a worker without GPU. Default: 1.")
    ] = None,
) -> None:
    """Encode a corpus of any size; the same command goes on after a stop."""
    if engine != "ray":
        refuse_unused(context, "without --engine ray", "address", "workers", "cpus_per_worker")
    statistics = read_statistics(context, standardize, column, header)
    quiet()
    from st_prompteol.corpus import encode_corpus

    try:
        report = encode_corpus(
            model,
            source,
            output,
            column=column,
            header=header,
            keep=None if keep is None else [name for name in keep.split(",") if name],
            engine=engine,
            batch_size=batch_size,
            precision=precision,
            normalize_embeddings=normalize,
            standardize=statistics,
            standardization=standardization,
            fragment_rows=fragment_rows,
            model_options=model_options,
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
