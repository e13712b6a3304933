"""Where corpora lie: folders and files of this machine, `s3://`, `gs://`, `hf://` and whatever else fsspec opens."""

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

from st_prompteol.files import create_file, remove_staged, replacing_file
from st_prompteol.tables import import_pyarrow

logger = logging.getLogger(__name__)

_NO_DATA = (".", "_")  # what writers put in front of names of files that hold no data
_NATIVE = ("file", "s3", "gs")  # what pyarrow opens by itself; all else goes through fsspec


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing shows it: path in its filesystem, size in bytes, seconds since 1970 of its last change."""

    path: str
    size: int
    modified: float | None


class Storage:
    """A file or folder by its path or address.

    Args:
        address: A path of this machine, or an address such as `s3://bucket/folder`.

    Raises:
        ValueError: If nothing that is installed opens such addresses.
        ImportError: If pyarrow, or the package that opens such addresses, is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        import_pyarrow()
        from pyarrow import fs

        self.address = os.fspath(address)
        self._client: Any = None  # fsspec's, where pyarrow has none of its own
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
        """Returns the files in the folder and below it by name, or the file itself.

        Names that begin with `.` or `_`, as files without data do, are left out.

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
        """Returns the names of the files in the folder itself; none if it does not exist."""
        from pyarrow import fs

        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def open(self, path: str | None = None) -> Any:
        """Opens a file for reading, by its path in the filesystem or the storage's own; it can seek."""
        path = self.path if path is None else path
        return open(path, "rb") if self.is_local else self.filesystem.open_input_file(path)

    def read(self, name: str) -> bytes:
        """Returns what a file in the folder holds."""
        with self.open(self.join(name)) as file:
            return bytes(file.read())

    def join(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return posixpath.join(self.path, name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yields a path to write to; it becomes that file of the folder when the block ends without an error.

        On this machine it is written beside and renamed; elsewhere it is written here, then put there whole, which
        object stores do at once or not at all.
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
        """Writes a file of the folder that is not there yet, at once or not at all.

        Of several that try at the same time one succeeds, where the storage can: on this machine by a link, elsewhere
        by the exclusive creation that fsspec's clients offer (`s3fs`, `gcsfs`). Pyarrow's own clients have none, so
        for `s3://` and `gs://` these packages are used where they are installed; without them it is looked whether
        the file is there, and then it is written.

        Returns:
            Whether it was written; False if there is one already.
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
        """Makes the folder where it does not exist; object stores have none."""
        self.filesystem.create_dir(self.path, recursive=True)

    def remove_staged(self, prefix: str) -> None:
        """Removes what a process that was killed has left of files whose names begin with `prefix`."""
        if self.is_local:
            remove_staged(Path(self.path), f".{prefix}")


def _walk(folder: str) -> Iterator[StoredFile]:
    """Yields the files below a folder of this machine; a folder that links lead to again is read once."""
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
