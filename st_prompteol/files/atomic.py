"""Atomic writes (a staged file that is renamed over the target), and crash-tolerant JSONL logs."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # missing on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
# The target is a mount point, or its folder may not be changed: it can only be overwritten
_IN_PLACE = (errno.EBUSY, errno.EPERM, errno.EACCES, errno.EROFS)


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file atomically: yields a staged path that replaces `path` at the end, or is removed on failure.

    The new file keeps the mode, owner and group of the one that it replaces. Staged files of killed processes for the
    same path are removed. A device or a pipe is written to directly.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    staged = _beside(target)
    try:
        file = open(staged, "xb")
    except OSError:
        if not is_allowed(target, os.W_OK):
            raise
        with tempfile.TemporaryDirectory() as folder:  # the file is writable, its folder is not
            yield Path(folder, "staged")
            shutil.copyfile(Path(folder, "staged"), target)
        return
    with file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        try:
            if not _lock(file.fileno(), wait=True):
                file.close()  # Windows cannot rename an open file
            # before content is written that others may not read; writable, also in place of a read-only file
            _take_owner_and_mode(staged, target, mode, and_also=stat.S_IWUSR)
            yield staged
            put_in_place(staged, target, mode)
        finally:
            staged.unlink(missing_ok=True)
    remove_staged(target.parent, staged.name[:-12])


def _beside(target: Path) -> Path:
    """Returns the path of a new staged file: `.<name>.<8 hexadecimal digits>.tmp`, with a hash of a long name."""
    is_long = len(os.fsencode(target.name)) > 240  # of at most 255 bytes
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest() if is_long else target.name
    return target.with_name(f".{name}.{secrets.token_hex(4)}.tmp")


def put_in_place(staged: Path, target: Path, mode: int) -> None:
    """Renames a file over another one and keeps its mode, owner and group; `mode` is for a new file."""
    _take_owner_and_mode(staged, target, mode)
    try:
        os.replace(staged, target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # the target's folder is another file system
            with replacing_file(target) as beside:
                shutil.copyfile(staged, beside)
        elif error.errno in _IN_PLACE and _can_overwrite(target):
            shutil.copyfile(staged, target)
        else:
            raise
        staged.unlink()


def can_put(target: Path) -> bool:
    """Whether `put_in_place` may write a file: a new one, or one that can be replaced or overwritten."""
    if os.path.lexists(target):
        return can_remove(target) or _can_overwrite(target)
    return is_allowed(target.parent, os.W_OK | os.X_OK)


def can_remove(path: Path) -> bool:
    """Whether a file may be removed, which depends on its folder: modes, a sticky bit, an immutable file."""
    try:
        # Never removes a file: Linux first checks the permissions, as for `unlink`, and then that it is a folder.
        os.rmdir(path)
    except OSError as error:
        return error.errno not in _IN_PLACE
    return True


def _can_overwrite(target: Path) -> bool:
    return is_allowed(target, os.W_OK) and not target.is_symlink()  # the target of a link may be anywhere


def is_allowed(path: Path, mode: int) -> bool:
    """Whether this user may access a path, with `mode` as in `os.access`."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def remove_staged(folder: Path, prefix: str) -> None:
    """Removes the staged files of killed processes in a folder, by the prefix of their names, if permitted."""
    names: list[str] = []
    with suppress(PermissionError):  # a folder that can be written to, but not listed
        names = os.listdir(folder)
    for name in names:
        is_staged = name.startswith(prefix) and re.fullmatch(r"\.[0-9a-f]{8}\.tmp", name[-13:])
        if is_staged and os.path.isfile(folder / name):  # opening a pipe would wait
            with suppress(OSError), open(folder / name, "rb") as file:  # gone, or another user's
                if _lock(file.fileno(), wait=False):  # a running writer holds the lock
                    os.unlink(folder / name)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Waits for the lock of a folder and holds it; no effect without locks of the file system or platform."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also if a process forked in between has a copy
        os.close(descriptor)


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a process holds the lock of a folder; True if that is unknown."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # another user's
        return True
    try:
        return not _lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Locks an open file or folder until it is closed; returns whether this succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another process, or a network file system without locks
        return False
    return True


def _take_owner_and_mode(staged: Path, target: Path, mode: int, *, and_also: int = 0) -> None:
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        old = None
    with suppress(OSError):  # only root may give a file away, and some file systems have no modes
        if old is not None and stat.S_ISREG(old.st_mode):
            mode = stat.S_IMODE(old.st_mode)
            if hasattr(os, "chown"):
                os.chown(staged, -1, old.st_gid)
                os.chown(staged, old.st_uid, -1)
    with suppress(OSError):
        os.chmod(staged, mode | and_also)


def create_file(path: str | os.PathLike[str], content: bytes) -> bool:
    """Creates a file atomically; returns False if it already exists, so only one of several processes succeeds."""
    target = Path(path)
    staged = _beside(target)
    try:
        staged.write_bytes(content)
        os.link(staged, target)
    except FileExistsError:
        return False
    except OSError:
        if not staged.exists():  # the folder is not writable
            raise
        try:  # a file system without hard links
            with open(target, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        staged.unlink(missing_ok=True)
    return True


def digest_of_files(paths: Iterable[Path], named_in: str | os.PathLike[str] | None = None) -> str:
    """Returns the SHA-256 of the bytes of files as 64 hexadecimal digits.

    Args:
        paths: The files, in this order.
        named_in: The folder to which hashed file names are relative. Defaults to None: names are not hashed.
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
    """Appends lines to a file in one write; terminates a truncated last line first."""
    with open(path, "ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(("\n" * torn + "".join(f"{line}\n" for line in lines)).encode())


def read_json_lines(path: str | os.PathLike[str], check: Callable[[Any], object]) -> Iterator[Any]:
    """Yields the JSON rows written by `append_lines`; skips truncated lines, even if cut within a character.

    Args:
        path: The file. If it does not exist, nothing is yielded.
        check: Raises ValueError, KeyError or TypeError for an incomplete row.
    """
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                check(row)
            except (ValueError, KeyError, TypeError, RecursionError):
                if line.strip():
                    logger.warning("%s, line %d, was cut short and is left out.", os.fspath(path), number)
                continue
            yield row
