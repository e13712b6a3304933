"""What the commands share: their options, how they open a model, how a mistake is shown."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from st_prompteol.model import PromptEOL

Model = Annotated[str, typer.Argument(help="A decoder LLM, a saved model or an adapter: Hub id or folder; or tiny.")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Name of a template (prompteol, pretended-cot, knowledge, summarize, prompt, none) or a text with one "
        "{sentence}."
    ),
]
Layer = Annotated[int | None, typer.Option(help="Hidden state to read: -1 is the last, -2 the one before, …")]
Quantization = Annotated[Literal["nf4", "int8"] | None, typer.Option(help="Quantise the weights by bitsandbytes.")]
Device = Annotated[str | None, typer.Option(help="Device to compute on, e.g. cpu or cuda.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
MaxSeqLength = Annotated[int | None, typer.Option(help="Most tokens of a rendered sentence; its own end is cut.")]
TruncateDim = Annotated[int | None, typer.Option(help="Keep this many numbers of every embedding.", min=1)]


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Shows a user's mistake as one sentence on stderr with exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            typer.echo(f"st-prompteol: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None

    return wrapper


def refuse_unused(context: typer.Context, reason: str, *names: str) -> None:
    """Raises ValueError for options that were given although they have no effect.

    Args:
        context: The command's.
        reason: When they have none.
        *names: The options, as the parameters are called.
    """
    given = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = {name: next(iter(one.opts)) for one in context.command.params if (name := one.name)}
        told = " and ".join(options[name] for name in given)
        raise ValueError(f"{told} {'has' if len(given) == 1 else 'have'} no effect {reason}: leave it out.")


def quiet() -> None:
    """Turns upstream's notices and weight-loading bars off: what a user should know is printed here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def open_model(model: str, **options: Any) -> PromptEOL:
    """Opens a model as `PromptEOL` does, quietly."""
    quiet()
    from st_prompteol.model import PromptEOL

    return PromptEOL(model, **options)
