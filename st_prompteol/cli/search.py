"""`st-prompteol search`: finds the best template, layer, standardization and demonstration for a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from st_prompteol.cli.candidates import DataDir, Seed
from st_prompteol.cli.options import (
    BatchSize,
    Column,
    Header,
    Model,
    open_model,
    quiet,
    refuse_unused,
    takes_model_options,
)


@takes_model_options
def search(
    context: typer.Context,
    model: Model,
    model_options: dict[str, Any],
    candidates: Annotated[
        str | None,
        typer.Argument(
            help="Demonstrations to try: .jsonl, .tsv, or lines in the paper's spelling; none if left out."
        ),
    ] = None,
    output_dir: Annotated[
        str, typer.Option("--output-dir", "-o", help="Where log, table and plot go; a search goes on from its log.")
    ] = "search",
    save: Annotated[str | None, typer.Option(help="Folder to save the model with the best recipe in.")] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="File with sentence1, sentence2, score: .jsonl, .csv, .tsv or .parquet; else STS-B dev."),
    ] = None,
    header: Header = None,
    data_dir: DataDir = None,
    holdout: Annotated[
        float, typer.Option(min=0, help="Share of the pairs on which only the winner is measured, e.g. 0.3.")
    ] = 0.0,
    templates: Annotated[
        str | None, typer.Option(help="Names of templates to try, e.g. own,knowledge; all but none if not given.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to try, e.g. -1,-2,-5; all if not given.")] = None,
    standardize: Annotated[bool, typer.Option(help="Try centered, scaled and whitened embeddings as well.")] = True,
    sentences: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Unlabeled sentences whose statistics standardize embeddings; those of the pairs if not given.",
        ),
    ] = None,
    column: Column = None,
    shots: Annotated[int, typer.Option(min=1, help="At most this many demonstrations.")] = 1,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Try every candidate on all pairs.")] = False,
    devices: Annotated[str | None, typer.Option(help="Devices to spread over, e.g. cuda:0,cuda:1.")] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Find the best training-free recipe for a model: template, layer, standardization and demonstration."""
    refuse_unused(context, "where they are searched for", "demonstrations")
    if pairs is not None:
        refuse_unused(context, "beside --pairs", "data_dir")
    elif sentences is None:
        refuse_unused(context, "without --pairs or --sentences", "header")
    if sentences is None:
        refuse_unused(context, "without --sentences", "column")
    if not standardize:
        refuse_unused(context, "beside --no-standardize", "sentences")
    if candidates is None:
        refuse_unused(context, "without candidates", "shots", "exhaustive")
    read_layers = None if layers is None else _numbers(layers)
    quiet()
    from st_prompteol import recipes
    from st_prompteol.corpus.formats import read_all_sentences
    from st_prompteol.files.output import import_figure
    from st_prompteol.standardization import METHODS

    import_figure()  # fail before hours of work, not after them
    tried = [] if candidates is None else recipes.read_candidates(candidates)
    scored = recipes.sts_b_dev(data_dir) if pairs is None else recipes.read_pairs(pairs, header)
    unlabeled = None if sentences is None else read_all_sentences(sentences, column, header)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_model(model, model_options)
    names = None if templates is None else templates.split(",")
    result = recipes.search(
        opened,
        scored,
        tried,
        templates=names and [opened.template if name == "own" else name for name in names],
        layers=read_layers,
        standardize=METHODS if standardize else (),
        sentences=unlabeled,
        holdout=holdout,
        shots=shots,
        exhaustive=exhaustive,
        log=folder / "search.jsonl",
        batch_size=batch_size,
        devices=devices.split(",") if devices else None,
        seed=seed,
        show=lambda line: typer.echo(line, err=True),
        show_progress_bar=sys.stderr.isatty(),
    )
    if save is not None:  # before anything is shown, to a reader that may be gone
        opened.save_pretrained(save)
    recipes.write_table(result, folder / "table.md")
    recipes.plot(result, folder / "recipes.png")
    typer.echo(f"log, table and plot in {folder}", err=True)
    if save is not None:
        typer.echo(f"saved in {save}: open it with SentenceTransformer({save!r})", err=True)
    for line in recipes.summarize(result, model):
        typer.echo(line)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--layers {text!r} is not a list of layers: write numbers and commas, e.g. -1,-2,-5."
        ) from None
