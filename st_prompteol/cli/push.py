"""`st-prompteol push`: pushes a model with its card to the Hub."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st_prompteol.cli.options import open_model, takes_model_options


@takes_model_options
def push(
    path: Annotated[str, typer.Argument(help="A saved model or an adapter (or a decoder LLM): folder or Hub id.")],
    repo: Annotated[str, typer.Argument(help="The repository: user/name or organization/name.")],
    model_options: dict[str, Any],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to push to, made if it does not exist.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag to put on the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and list what would go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of another kind.")] = False,
    keep_card: Annotated[bool, typer.Option("--keep-card", help="Leave a README that is there as it is.")] = False,
    merge_to: Annotated[str | None, typer.Option(help="Repository for the merged model, as well.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repository of the base LLM, if PATH names a folder.")] = None,
    license: Annotated[str | None, typer.Option(help="License, e.g. apache-2.0; else that of the base.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Code of a language, e.g. en; repeat for more.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Repository of training data; repeat for more.")] = None,
    hardware: Annotated[str | None, typer.Option(help="What the model was trained on.")] = None,
    results_dir: Annotated[str | None, typer.Option(help="Results of evaluate, for the card.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Title of the commit.")] = None,
) -> None:
    """Publish a model with its card; its files are checked before and after."""
    opened = open_model(path, model_options)
    from st_prompteol.hub import CardOptions, PushOptions, push_to_hub

    card = CardOptions(base_model, license, language, dataset, hardware, results_dir=results_dir)
    options = PushOptions(
        private=private or None,
        revision=branch,
        tag=tag,
        create_pr=create_pr,
        dry_run=dry_run,
        force=force,
        replace_model_card=not keep_card,
        commit_message=message,
        merge_to=merge_to,
    )
    report = push_to_hub(opened, repo, card, options, source=path)
    for done in filter(None, (report, report.merged)):
        if dry_run:
            for name, size in done.files.items():
                typer.echo(f"{size:>14,}  {name}")
        typer.echo(done)
