"""Writing without halves, beside the place and then in one step; reading past what a crash cut short in a log."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it becomes `path` when the block ends, and is removed if it fails."""
    target = Path(os.path.realpath(path))
    staged = _beside(target)
    try:
        yield staged
        os.replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)


def create_file(path: str | os.PathLike[str], content: bytes) -> bool:
    """Writes a file that is not there yet, whole and at once; of several that try, one gets True, the others False."""
    target = Path(path)
    staged = _beside(target)
    try:
        staged.write_bytes(content)
        os.link(staged, target)
    except FileExistsError:
        return False
    except OSError:
        if not staged.exists():  # nothing can be written here
            raise
        try:  # a file system without links
            with open(target, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        staged.unlink(missing_ok=True)
    return True


def digest_of_files(paths: Iterable[Path], named_in: str | os.PathLike[str] | None = None) -> str:
    """Returns a SHA-256 over files' bytes, 64 hexadecimal digits.

    Args:
        paths: The files, in their order.
        named_in: The folder whose files' names count, too. Defaults to None: names do not count.
    """
    digest = hashlib.sha256()
    for path in paths:
        if named_in is not None:
            digest.update(f"{path.relative_to(named_in)}:".encode())
        with open(path, "rb") as file:
            while chunk := file.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()


def append_lines(path: str | os.PathLike[str], lines: Sequence[str]) -> None:
    """Appends lines to a file in one write; what a crash cut short before them stays a line of its own."""
    with open(path, "ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(("\n" * torn + "".join(f"{line}\n" for line in lines)).encode())


def read_json_lines(path: str | os.PathLike[str], check: Callable[[Any], object]) -> Iterator[Any]:
    """Yields what `append_lines` wrote as JSON; a line that a crash cut short, even within a character, is left out.

    Args:
        path: The file. If there is none, nothing is yielded.
        check: Raises ValueError, KeyError or TypeError of a row that is not whole.
    """
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                check(row)
            except (ValueError, KeyError, TypeError):
                if line.strip():
                    logger.warning("%s, line %d, was cut short and is left out.", os.fspath(path), number)
                continue
            yield row


@contextmanager
def replacing_folder(path: str | os.PathLike[str], keep: Callable[[str], bool]) -> Iterator[Path]:
    """Yields an empty folder beside `path`; it takes the place of `path` when the block ends, or goes if it fails.

    Args:
        path: The folder to write or to replace.
        keep: Says of the name of an entry in the old folder that the new one does not have whether it stays (such
            entries are hard links to the old files where the file system has links, copies elsewhere).
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(target)
    staged.mkdir()
    try:
        yield staged
        if target.exists():
            for entry in target.iterdir():
                if not (staged / entry.name).exists() and keep(entry.name):
                    _link(entry, staged / entry.name)
            _exchange(staged, target)
        else:
            os.rename(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)
    elif source.is_symlink():
        target.symlink_to(os.readlink(source))
    else:
        link_or_copy(str(source), str(target))


def _exchange(one: Path, other: Path) -> None:
    """Swaps two folders: at once where Linux's renameat2 is there, by renaming twice elsewhere."""
    if sys.platform == "linux":
        at_fdcwd, rename_exchange = -100, 2
        renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
        if renameat2 and not renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
            return
    aside = _beside(other)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
