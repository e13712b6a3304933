"""Tables on a terminal of any width, in a pipe or in a log; handling of broken and closed output streams."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from st_prompteol.cli.signals import ending_on_sigterm

BROKEN_PIPE = 141  # exit status in a shell after SIGPIPE


class Commands(TyperGroup):
    """The command group, with a clean exit on broken output streams and signals."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command."""
        _hold_standard_streams()
        if sys.stdin is None:
            sys.stdin = open(0, encoding="utf-8", closefd=False)
        if sys.stdout is not None:
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        with ending_on_sigterm(), _reporting_lost_output():
            return super().main(*args, **kwargs)


def show_table(lines: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """Prints a table to stdout in the layout of `files.output.to_text`, in blocks that fit the terminal."""
    from st_prompteol.files.output import to_text

    for line in to_text(lines, text_columns, _terminal_width()):
        typer.echo(line)


def fits(lines: Sequence[Sequence[str]], text_columns: int) -> bool:
    """Whether a table fits the terminal in one block."""
    from st_prompteol.files.output import to_text

    width = _terminal_width()
    return width is None or to_text(lines, text_columns) == to_text(lines, text_columns, width)


def end_by_broken_pipe() -> None:
    """Exits silently when the reader of stdout has closed the pipe, e.g. `| head`."""
    _discard_output()
    raise SystemExit(BROKEN_PIPE)


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


@contextmanager
def _reporting_lost_output() -> Iterator[None]:
    """Flushes buffered output before Python does, which would print its own error."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        end_by_broken_pipe()
    except OSError as error:
        _discard_output()
        typer.echo(f"st-prompteol: the output could not be written: {error.strerror or error}", err=True)
        raise SystemExit(2) from None


def _discard_output() -> None:
    """Discards the buffered output of stdout and stderr."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def _hold_standard_streams() -> None:
    """Reopens standard streams that the caller has closed, so that other files do not get their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
