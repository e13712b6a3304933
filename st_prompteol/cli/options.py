"""Shared by the commands: model options, loading, and the display of errors."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from st_prompteol.cli.terminal import end_by_broken_pipe

if TYPE_CHECKING:
    from st_prompteol.model import PromptEOL
    from st_prompteol.standardization import Method

Model = Annotated[str, typer.Argument(help="A decoder LLM, a saved model or an adapter: Hub id or folder; or tiny.")]
Device = Annotated[str | None, typer.Option(help="Device to compute on, e.g. cpu or cuda.")]
Column = Annotated[
    str | None, typer.Option(help="The column that holds the sentences; 1, 2, … where there is no header.")
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether CSV and TSV have a header. Default: found out by the content."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Sentences per forward pass.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Scale every embedding to length 1.")]
Standardize = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Standardize embeddings by the statistics of this file's sentences, so that unrelated ones are near 0.",
    ),
]
Standardization = Annotated[
    Literal["center", "scale", "whiten"],
    typer.Option(
        help="With --standardize: subtract the mean, also divide by the deviation, or also decorrelate dimensions."
    ),
]


def read_model_options(
    template: Annotated[
        str | None,
        typer.Option(
            help="Name of a template (prompteol, pretended-cot, knowledge, summarize, prompt, none) or a text with "
            "one {sentence}."
        ),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Demonstrations to put in front of every sentence: .jsonl, .tsv."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Hidden state to read: -1 is the last, -2 the one before, …")
    ] = None,
    quantization: Annotated[
        Literal["nf4", "int8"] | None, typer.Option(help="Quantize the weights by bitsandbytes.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Numbers of the weights.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Most tokens of a rendered sentence; its own end is cut.")
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep this many numbers of every embedding.", min=1)] = None,
    device: Device = None,
    device_map: Annotated[str | None, typer.Option(help="How to spread the model over devices, e.g. auto.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> dict[str, Any]:
    """Returns the arguments of `PromptEOL` for the given options."""
    options: dict[str, Any] = {
        "template": template,
        "layer": layer,
        "quantization": quantization,
        "max_seq_length": max_seq_length,
        "truncate_dim": truncate_dim,
        "device": device,
        "device_map": device_map,
        "revision": revision,
    }
    if dtype is not None:
        options["model_kwargs"] = {"dtype": dtype}
    if demonstrations is not None:
        from st_prompteol.recipes import read_candidates

        options["demonstrations"] = [candidate.demonstration for candidate in read_candidates(demonstrations)]
    return {name: value for name, value in options.items() if value is not None}


def takes_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `read_model_options` to a command and passes their result as `model_options`."""
    added = inspect.signature(read_model_options, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in added}
        command(**arguments, model_options=read_model_options(**given))

    own = [parameter for parameter in signature.parameters.values() if parameter.name != "model_options"]
    shown = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*own, *added.values())]
    wrapper.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return wrapper


def shows_mistakes(command: Callable[..., None]) -> Callable[..., None]:
    """Prints a user error as one sentence on stderr with exit code 2; exits with 130 on an interruption."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with shown_files():
                command(*args, **kwargs)
        except BrokenPipeError:
            end_by_broken_pipe()
        except KeyboardInterrupt:
            typer.echo("st-prompteol: interrupted", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, ImportError) as error:
            sentence = str(error)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
                sentence = f"the output could not be written: {error.strerror}"
            typer.echo(f"st-prompteol: {' '.join(sentence.split())}", err=True)
            raise typer.Exit(2) from None

    return wrapper


@contextmanager
def shown_files() -> Iterator[None]:
    """Prints the library's log messages about input files on stderr: at the end, and not after a user error."""

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno > logging.INFO:
                typer.echo(record.getMessage(), err=True)
            else:
                lines.append(record.getMessage())

    lines: list[str] = []
    echo, logger = Echo(), logging.getLogger("st_prompteol.files")
    level = logger.level
    logger.addHandler(echo)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(echo)
        logger.setLevel(level)
        if not isinstance(sys.exception(), ValueError | OSError | ImportError):
            for line in dict.fromkeys(lines):  # a file may give sentences and statistics
                typer.echo(line, err=True)


def refuse_unused(context: typer.Context, reason: str, *names: str) -> None:
    """Raises ValueError for given options that have no effect.

    Args:
        context: The context of the command.
        reason: The condition under which they have no effect.
        *names: The parameter names of the options.
    """
    given = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = {name: next(iter(one.opts)) for one in context.command.params if (name := one.name)}
        listed = " and ".join(options[name] for name in given)
        raise ValueError(f"{listed} {'has' if len(given) == 1 else 'have'} no effect {reason}: leave it out.")


def quiet() -> None:
    """Disables upstream's log messages and loading bars; the commands print all relevant information themselves."""
    # messages on import, and about names for which we print our own message
    for name in ("bitsandbytes", "sentence_transformers.util.file_io", "torchao", "torch.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity(logging.ERROR)  # logs a line per attempt without a connection
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def open_model(model: str, model_options: dict[str, Any]) -> PromptEOL:
    """Loads a `PromptEOL` without upstream's messages."""
    quiet()
    from st_prompteol.model import PromptEOL

    return PromptEOL(model, **model_options)


def read_statistics(
    context: typer.Context,
    path: str | None,
    column: str | None = None,
    header: bool | None = None,
    *,
    is_column_required: bool = False,
) -> list[str]:
    """Returns the sentences of `--standardize`, none without it.

    Args:
        context: The context of the command, in which `--standardization` needs `--standardize`.
        path: The file.
        column: The column of the sentences, if the file has it. Defaults to None: `sentence`, else the only column.
        header: Whether a CSV or TSV file has a header. Defaults to None: detected from its content.
        is_column_required: Whether a file without `column` is an error. Defaults to False, for the commands whose
            `--column` is that of another file.
    """
    if path is None:
        refuse_unused(context, "without --standardize", "standardization")
        return []
    from st_prompteol.corpus.formats import read_all_sentences

    return read_all_sentences(path, column, header, is_column_required=is_column_required)


def open_standardized(
    model: str, model_options: dict[str, Any], sentences: list[str], standardization: Method
) -> PromptEOL:
    """Loads a `PromptEOL` and standardizes it by the statistics of sentences, if there are any."""
    opened = open_model(model, model_options)
    if sentences:
        opened.standardize(sentences, standardization)
    return opened
