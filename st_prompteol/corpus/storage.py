"""Storage of corpora: local folders and files, `s3://`, `gs://`, `hf://` and other addresses that fsspec supports."""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_prompteol.files import import_pyarrow
from st_prompteol.files.atomic import create_file, remove_staged, replacing_file

logger = logging.getLogger(__name__)

_NO_DATA = (".", "_")  # prefixes of names of files without data
_NATIVE = ("file", "s3", "gs")  # supported by pyarrow; all others go through fsspec


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
        ImportError: If pyarrow, or the package for this kind of address, is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        import_pyarrow()
        from pyarrow import fs

        self.address = os.fspath(address)
        self._client: Any = None  # fsspec's client, if pyarrow has none
        scheme = self.address.partition("://")[0] if "://" in self.address else None
        if scheme is None:
            self.address = os.path.abspath(self.address)
            self.filesystem, self.path = fs.LocalFileSystem(), self.address
        elif scheme in _NATIVE:
            self.filesystem, self.path = fs.FileSystem.from_uri(self.address)
        else:
            import fsspec

            try:
                filesystem, self.path = fsspec.core.url_to_fs(self.address)
            except ValueError as error:
                raise ValueError(f"Nothing opens {self.address!r} ({error}): check how it begins.") from None
            self.filesystem, self._client = fs.PyFileSystem(fs.FSSpecHandler(filesystem)), filesystem
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def files(self) -> list[StoredFile]:
        """Returns the files in and below the folder, sorted by name, or the file itself.

        Skips names that begin with `.` or `_`, which mark files without data.

        Raises:
            FileNotFoundError: If there is neither a file nor a folder.
        """
        from pyarrow import fs

        if self.is_local and os.path.isdir(self.path):
            return sorted(_walk(self.path), key=lambda file: file.path)
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.address!r} is neither a file nor a folder: check the spelling.")
        selected = fs.FileSelector(self.path, recursive=True)
        infos = [info] if info.type == fs.FileType.File else self.filesystem.get_file_info(selected)
        below = len(self.path.rstrip("/")) + 1
        found = [
            StoredFile(info.path, info.size, None if info.mtime is None else info.mtime.timestamp())
            for info in infos
            if info.type == fs.FileType.File
            and not any(part.startswith(_NO_DATA) for part in info.path[below:].split("/"))
        ]
        return sorted(found, key=lambda file: file.path)

    def names(self) -> list[str]:
        """Returns the names of the files directly in the folder; empty if it does not exist."""
        from pyarrow import fs

        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def open(self, path: str | None = None) -> Any:
        """Opens a seekable file for reading, by its path in the filesystem. Defaults to the storage's own path."""
        path = self.path if path is None else path
        return open(path, "rb") if self.is_local else self.filesystem.open_input_file(path)

    def read(self, name: str) -> bytes:
        """Returns the content of a file in the folder."""
        with self.open(self.join(name)) as file:
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
        from pyarrow import fs

        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder) / name
            yield staged
            fs.copy_files(str(staged), self.join(name), fs.LocalFileSystem(), self.filesystem)

    def create(self, name: str, content: bytes) -> bool:
        """Creates a file in the folder atomically, unless it exists.

        If several processes try at the same time, only one succeeds, where the storage supports that: locally through
        a link, elsewhere through the exclusive creation of fsspec's clients (`s3fs`, `gcsfs`). Pyarrow's own clients
        do not support it: for `s3://` and `gs://` these packages are used if installed; without them, the check
        whether the file exists and the write are separate steps.

        Returns:
            Whether the file was created; False if it exists already.
        """
        if self.is_local:
            return create_file(self.join(name), content)
        client = self._client
        if client is None:
            import fsspec

            with suppress(ImportError):
                client = fsspec.core.url_to_fs(self.address)[0]
        if client is not None:
            try:
                client.pipe_file(self.join(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        if name in self.names():
            return False
        with self.replacing(name) as staged:
            staged.write_bytes(content)
        return True

    def make(self) -> None:
        """Creates the folder if it does not exist; object stores need none."""
        self.filesystem.create_dir(self.path, recursive=True)

    def remove_staged(self, prefix: str) -> None:
        """Removes temporary files of killed processes, for files whose names begin with `prefix`."""
        if self.is_local:
            remove_staged(Path(self.path), f".{prefix}")


def _walk(folder: str) -> Iterator[StoredFile]:
    """Yields the files below a local folder; a folder reached again through links is read only once."""
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
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
                found = os.stat(file)
                yield StoredFile(file, found.st_size, found.st_mtime)
