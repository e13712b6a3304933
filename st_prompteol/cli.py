"""The command `st-prompteol`: parses, calls one library function, shows the result."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from st_prompteol.evaluation.report import Row
    from st_prompteol.model import PromptEOL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sentence embeddings from decoder LLMs by PromptEOL.",
)

Model = Annotated[str, typer.Argument(help="A decoder LLM, a saved model or an adapter: Hub id or folder.")]
Template = Annotated[
    str | None, typer.Option(help="Name of a template (prompteol, prompt, none) or a text with one {sentence}.")
]
Layer = Annotated[int | None, typer.Option(help="Hidden state to read: -1 is the last, -2 the one before, …")]
Quantization = Annotated[Literal["nf4", "int8"] | None, typer.Option(help="Quantise the weights by bitsandbytes.")]
Device = Annotated[str | None, typer.Option(help="Device to compute on, e.g. cpu or cuda.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
MaxSeqLength = Annotated[int | None, typer.Option(help="Most tokens of a rendered sentence; its own end is cut.")]
TruncateDim = Annotated[int | None, typer.Option(help="Keep this many numbers of every embedding.", min=1)]


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Shows a user's mistake as one sentence on stderr with exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            typer.echo(f"st-prompteol: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None

    return wrapper


def _quiet() -> None:
    """Turns upstream's notices and weight-loading bars off: what a user should know is printed here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _open(model: str, **options: Any) -> PromptEOL:
    _quiet()
    from st_prompteol.model import PromptEOL

    return PromptEOL(model, **options)


@app.command()
@_plain_errors
def info(
    model: Model,
    template: Template = None,
    layer: Layer = None,
    quantization: Quantization = None,
    max_seq_length: MaxSeqLength = None,
    device: Device = None,
    revision: Revision = None,
    adapters: Annotated[
        list[str] | None, typer.Option("--adapter", help="Adapter to put on, NAME=FOLDER_OR_REPO; repeat for more.")
    ] = None,
) -> None:
    """Show what a model runs with: its template, layer, dimension, parameters, adapters."""
    opened = _open(
        model,
        template=template,
        layer=layer,
        quantization=quantization,
        max_seq_length=max_seq_length,
        device=device,
        revision=revision,
    )
    for adapter in adapters or ():
        name, separator, repository = adapter.partition("=")
        if not separator:
            raise ValueError(f"{adapter!r} is no NAME=FOLDER_OR_REPO: write --adapter legal=user/legal-adapter.")
        opened.load_adapter(repository, name)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in opened.describe().items():
        table.add_row(Text(name, style="bold"), Text(str(value)))
    Console().print(table)


@app.command()
@_plain_errors
def encode(
    model: Model,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write: .npy, .safetensors or .parquet.")],
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
    opened = _open(
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


@app.command()
@_plain_errors
def similarity(
    model: Model,
    sentences: Annotated[list[str], typer.Argument(help="Two or more sentences.")],
    template: Template = None,
    layer: Layer = None,
    quantization: Quantization = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Show how similar sentences are to each other."""
    if len(sentences) < 2:
        raise ValueError(f"One sentence ({sentences[0]!r}) has nothing to be similar to: give two or more.")
    opened = _open(model, template=template, layer=layer, quantization=quantization, device=device, revision=revision)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    embeddings = opened.encode(sentences)
    table = Table("", "sentence", *(str(number) for number in range(1, len(sentences) + 1)))
    for number, (sentence, row) in enumerate(
        zip(sentences, opened.similarity(embeddings, embeddings), strict=True), 1
    ):
        table.add_row(str(number), Text(sentence), *(f"{value:.4f}" for value in row.tolist()))
    Console().print(table)


@app.command()
@_plain_errors
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models of any kind: decoder LLMs, saved models, encoders.")],
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
    fast: Annotated[bool, typer.Option("--fast", help="scikit-learn's classifier for the transfer tasks.")] = False,
    results_dir: Annotated[
        str, typer.Option(help="Where results are kept; finished tasks are not run again.")
    ] = "results",
    rerun: Annotated[bool, typer.Option("--rerun", help="Run finished tasks again.")] = False,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Table to write: .md, .csv or .json.")] = None,
    plot: Annotated[str | None, typer.Option(help="Picture to write: score against size, .png and .svg.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences per forward pass.")] = 32,
    template: Template = None,
    layer: Layer = None,
    quantization: Quantization = None,
    device: Device = None,
    device_map: Annotated[str | None, typer.Option(help="How to spread a model over devices, e.g. auto.")] = None,
    revision: Revision = None,
) -> None:
    """Evaluate models on the paper's 7 STS and 7 transfer tasks, and on MTEB."""
    _quiet()
    from st_prompteol.evaluation.comparison import Comparison
    from st_prompteol.evaluation.report import published_rows, write_table

    comparison = Comparison(
        tasks=tuple(tasks or (() if mteb else ("all",))),
        mteb=tuple(mteb or ()),
        data_dir=data_dir,
        results_dir=results_dir,
        methods=methods,
        layers=tuple(layers or (-1,)),
        fast=fast,
        rerun=rerun,
        batch_size=batch_size,
    )
    comparison.check(output, plot)
    options = {"template": template, "layer": layer, "quantization": quantization}
    places = {"device": device, "device_map": device_map, "revision": revision}

    def show(line: str) -> None:
        typer.echo(line, err=True)

    rows = []
    for name in models:
        for row in comparison.run(name, {**options, **places}, show=show, show_progress_bar=sys.stderr.isatty()):
            rows.append(row)
            if output:
                write_table(rows, output)
    rows += published_rows(rows)
    _print_rows(rows)
    if output:
        write_table(rows, output)
    if plot:
        from st_prompteol.evaluation.report import plot_scaling

        plot_scaling(rows, plot)


def _print_rows(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from st_prompteol.evaluation.report import table

    header, *body = table(rows)
    one_model = len({line[0] for line in body}) == 1
    shown = Table(title=body[0][0] if one_model else None)
    for index, name in enumerate(header):
        if index or not one_model:
            shown.add_column(name, justify="left" if index < 2 else "right", no_wrap=index >= 2)
    for line in body:
        shown.add_row(*map(Text, line[1:] if one_model else line))
    # in a pipe there is no width to keep to
    Console(width=None if sys.stdout.isatty() else max(sum(map(len, header)) + 3 * len(header) + 60, 80)).print(shown)


@app.command()
@_plain_errors
def export(
    model: Model,
    path: Annotated[str, typer.Argument(help="The folder to write.")],
    template: Template = None,
    layer: Layer = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Save a model as a folder that plain SentenceTransformer opens, an adapter merged into its base."""
    opened = _open(model, template=template, layer=layer, device=device, revision=revision)
    if opened.adapters:
        opened.merge_adapter()
    opened.save_pretrained(path)
    typer.echo(f"saved in {path}: open it with SentenceTransformer({path!r})", err=True)


@app.command()
@_plain_errors
def push(
    path: Annotated[str, typer.Argument(help="A saved model or an adapter (or a decoder LLM): folder or Hub id.")],
    repo: Annotated[str, typer.Argument(help="The repository: user/name or organisation/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to push to, made if it does not exist.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag to put on the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and list what would go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of another kind.")] = False,
    keep_card: Annotated[bool, typer.Option("--keep-card", help="Leave a README that is there as it is.")] = False,
    merge_to: Annotated[str | None, typer.Option(help="Repository for the merged model, as well.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repository of the base LLM, if PATH names a folder.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence, e.g. apache-2.0; else that of the base.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Code of a language, e.g. en; repeat for more.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Repository of training data; repeat for more.")] = None,
    hardware: Annotated[str | None, typer.Option(help="What the model was trained on.")] = None,
    results_dir: Annotated[str | None, typer.Option(help="Results of evaluate, for the card.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Title of the commit.")] = None,
) -> None:
    """Publish a model with its card; its files are checked before and after."""
    _quiet()
    from st_prompteol.hub import push_to_hub

    report = push_to_hub(
        path,
        repo,
        private=private or None,
        branch=branch,
        tag=tag,
        create_pr=create_pr,
        dry_run=dry_run,
        force=force,
        replace_model_card=not keep_card,
        merge_to=merge_to,
        base_model=base_model,
        license=license,
        language=language,
        datasets=dataset,
        hardware=hardware,
        results_dir=results_dir,
        commit_message=message,
    )
    for done in (report, report.merged):
        if done is None:
            continue
        if dry_run:
            for name, size in done.files.items():
                typer.echo(f"{size:>14,}  {name}")
        typer.echo(done.url or f"{len(done.files)} files, {done.size:,} bytes would go to {done.repo_id}")
