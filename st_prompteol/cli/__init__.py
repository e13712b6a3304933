"""The command line `st-prompteol`: each command parses its arguments, calls one function and prints the result."""

from __future__ import annotations

from typing import Annotated

import typer

from st_prompteol import __version__
from st_prompteol.cli.candidates import candidates
from st_prompteol.cli.corpus import corpus
from st_prompteol.cli.encode import encode
from st_prompteol.cli.evaluate import evaluate
from st_prompteol.cli.export import export
from st_prompteol.cli.info import info
from st_prompteol.cli.options import shows_mistakes
from st_prompteol.cli.push import push
from st_prompteol.cli.search import search
from st_prompteol.cli.serve import serve
from st_prompteol.cli.similarity import similarity
from st_prompteol.cli.terminal import Commands

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"st-prompteol {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Sentence embeddings from decoder LLMs by PromptEOL."""


for _command in (info, encode, corpus, similarity, search, candidates, evaluate, export, serve, push):
    app.command()(shows_mistakes(_command))
