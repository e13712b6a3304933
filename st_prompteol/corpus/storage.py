"""Storage of corpora: local folders and files, `s3://`, `gs://`, `hf://` and other addresses that fsspec supports."""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from st_prompteol.files.atomic import create_file, remove_staged, replacing_file

logger = logging.getLogger(__name__)

_NO_DATA = (".", "_")  # prefixes of names of files without data


@dataclass(frozen=True)
class StoredFile:
    """A listed file: path in its filesystem, size in bytes, time of its last change in seconds since 1970."""

    path: str
    size: int
    modified: float | None


class Storage:
    """A file or folder, given by its path or address.

    Args:
        address: A local path, or an address such as `s3://bucket/folder`.

    Raises:
        ValueError: If the kind of address is not supported.
        ImportError: If the package for this kind of address is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.address = os.fspath(address)
        if "://" not in self.address:  # fsspec would split a path with "::"
            self.address = self.path = os.path.abspath(self.address)
            self.filesystem: Any = LocalFileSystem()
        else:
            try:
                self.filesystem, self.path = fsspec.url_to_fs(self.address)
            except ValueError as error:
                raise ValueError(f"Nothing opens {self.address!r} ({error}): check how it begins.") from None
            except ImportError as error:
                raise ImportError(f"{self.address!r} needs a package: {error}.") from error
        self.is_local = isinstance(self.filesystem, LocalFileSystem)

    def files(self) -> list[StoredFile]:
        """Returns the files in and below the folder, sorted by name, or the file itself.

        Skips names that begin with `.` or `_`, which mark files without data.

        Raises:
            FileNotFoundError: If there is neither a file nor a folder.
        """
        self.filesystem.invalidate_cache()
        if not self.filesystem.exists(self.path):
            raise FileNotFoundError(f"{self.address!r} is neither a file nor a folder: check the spelling.")
        return sorted(_walk(self.path) if self.is_local else self._find(), key=lambda file: file.path)

    def _find(self) -> Iterator[StoredFile]:
        below = len(self.path.rstrip("/")) + 1
        for path, found in self.filesystem.find(self.path, detail=True).items():
            if any(part.startswith(_NO_DATA) for part in path[below:].split("/")):
                continue
            info = found or self.filesystem.info(path)  # some clients find a single file without its facts
            modified = info.get("mtime") or info.get("LastModified")  # s3fs has a name of its own
            seconds = modified.timestamp() if isinstance(modified, datetime) else modified
            yield StoredFile(path, info["size"], seconds)

    def names(self) -> list[str]:
        """Returns the names of the files directly in the folder; empty if it does not exist."""
        self.filesystem.invalidate_cache()  # other processes write to the folder, too
        try:
            infos = self.filesystem.ls(self.path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(info["name"]) for info in infos if info["type"] != "directory")

    def open(self, name: str) -> Any:
        """Opens a file in the folder for reading."""
        self.filesystem.invalidate_cache()
        return self.filesystem.open(self.join(name), "rb")

    def read(self, name: str) -> bytes:
        """Returns the content of a file in the folder."""
        with self.open(name) as file:
            return bytes(file.read())

    def join(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return posixpath.join(self.path, name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yields a path to write to, which atomically replaces a file in the folder unless there is an error.

        A local file is written beside its place and renamed; for other storage, a local file is uploaded, which is
        atomic in object stores.
        """
        if self.is_local:
            with replacing_file(self.join(name)) as staged:
                yield staged
            return
        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder) / name
            yield staged
            self.filesystem.put_file(str(staged), self.join(name))

    def create(self, name: str, content: bytes) -> bool:
        """Creates a file in the folder atomically, unless it exists.

        If several processes try at the same time, only one succeeds, where the storage supports that: locally through
        a link, elsewhere through the exclusive creation of its client (`s3fs`, `gcsfs`).

        Returns:
            Whether the file was created; False if it exists already.
        """
        if self.is_local:
            return create_file(self.join(name), content)
        try:
            self.filesystem.pipe_file(self.join(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def make(self) -> None:
        """Creates the folder if it does not exist; object stores need none."""
        self.filesystem.makedirs(self.path, exist_ok=True)

    def remove_staged(self, prefix: str) -> None:
        """Removes temporary files of killed processes, for files whose names begin with `prefix`."""
        if self.is_local:
            remove_staged(Path(self.path), f".{prefix}")


def _walk(start: str) -> Iterator[StoredFile]:
    """Yields a local file, or the files below a folder; a folder reached again through links is read only once."""
    if os.path.isfile(start):
        yield _stored(start)
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(start, followlinks=True):
        at = os.stat(path)
        if (at.st_dev, at.st_ino) in seen:
            logger.warning("%r is a link to a folder that is read already, so it is left out.", path)
            folders.clear()
            continue
        seen.add((at.st_dev, at.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(_NO_DATA))
        for name in names:
            file = os.path.join(path, name)
            if not name.startswith(_NO_DATA) and os.path.isfile(file):
                yield _stored(file)


def _stored(file: str) -> StoredFile:
    found = os.stat(file)
    return StoredFile(file, found.st_size, found.st_mtime)
