"""`st-prompteol evaluate`: evaluates on the paper's tasks and MTEB."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_prompteol.cli.options import BatchSize, quiet, refuse_unused, takes_model_options
from st_prompteol.cli.terminal import fits, show_table

if TYPE_CHECKING:
    from st_prompteol.evaluation.score_table import ScoreRow


@takes_model_options
def evaluate(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help="Models of any kind: decoder LLMs, saved models, encoders.")],
    model_options: dict[str, Any],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="sts, transfer, all, or a task (STS12, STSBenchmark-dev, MR, …); repeat for more."
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder in SentEval's layout; downloaded if not given.")] = None,
    mteb: Annotated[list[str] | None, typer.Option(help="MTEB task or benchmark to run; repeat for more.")] = None,
    methods: Annotated[bool, typer.Option("--methods", help="Compare the paper's ways of taking the vector.")] = False,
    layers: Annotated[list[int] | None, typer.Option("--at-layer", help="Layer for --methods; repeat.")] = None,
    ensembles: Annotated[
        list[str] | None,
        typer.Option("--ensemble", help="Templates whose mean --methods compares: knowledge,pretended-cot; repeat."),
    ] = None,
    results_dir: Annotated[
        str, typer.Option(help="Where results are kept; finished tasks are not run again.")
    ] = "results",
    rerun: Annotated[bool, typer.Option("--rerun", help="Run finished tasks again.")] = False,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Table to write: .md, .csv or .json.")] = None,
    plot: Annotated[str | None, typer.Option(help="Picture to write: score against size, .png and .svg.")] = None,
    batch_size: BatchSize = 32,
) -> None:
    """Evaluate models on the paper's 7 STS and 7 transfer tasks, and on MTEB."""
    if methods:
        refuse_unused(context, "beside --methods", "template", "demonstrations", "layer", "truncate_dim")
    else:
        refuse_unused(context, "without --methods", "layers", "ensembles")
    if mteb and not tasks:
        refuse_unused(context, "on MTEB's tasks", "data_dir")
    quiet()
    from st_prompteol.evaluation import Comparison, plot_scaling, published_rows, write_scores
    from st_prompteol.files.output import duration

    comparison = Comparison(
        tasks=tuple(tasks or (() if mteb else ("all",))),
        mteb=tuple(mteb or ()),
        data_dir=data_dir,
        results_dir=results_dir,
        methods=methods,
        layers=tuple(layers or (-1,)),
        ensembles=tuple(tuple(names.split(",")) for names in ensembles or ()),
        rerun=rerun,
        batch_size=batch_size,
    )
    comparison.check(output, plot)

    def show(line: str) -> None:
        typer.echo(line, err=True)

    rows, start = [], time.perf_counter()
    for name in models:
        for row in comparison.run(name, model_options, show=show, show_progress_bar=sys.stderr.isatty()):
            rows.append(row)
            if output:
                write_scores(rows, output)
    rows += published_rows(rows)
    if output:
        write_scores(rows, output)
    if plot:
        plot_scaling(rows, plot)
    show(f"evaluated in {duration(time.perf_counter() - start)}")
    _show_rows(rows)


def _show_rows(rows: list[ScoreRow]) -> None:
    from st_prompteol.evaluation.score_table import table

    header, *body = table(rows)
    if fits([header, *body], text_columns=2):
        show_table([header, *body], text_columns=2)
        return
    numbers = [str(number) for number in range(1, len(body) + 1)]
    show_table([["", *header[:2]], *([number, *line[:2]] for number, line in zip(numbers, body, strict=True))], 3)
    typer.echo()
    show_table([["", *header[2:]], *([number, *line[2:]] for number, line in zip(numbers, body, strict=True))])
