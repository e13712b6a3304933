"""Where corpora lie: folders and files of this machine, `s3://`, `gs://`, `hf://` and whatever else fsspec opens."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_prompteol.corpus.formats import import_pyarrow
from st_prompteol.files import replacing_file

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
            self.filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)

    def files(self) -> list[StoredFile]:
        """Returns the files in the folder and below it by name, or the file itself.

        Names that begin with `.` or `_`, by which writers mark what is no data, are left out.

        Raises:
            FileNotFoundError: If there is neither a file nor a folder.
        """
        from pyarrow import fs

        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.address!r} is neither a file nor a folder: check the spelling.")
        if info.type == fs.FileType.File:
            return [_stored(info)]
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        below = len(self.path.rstrip("/")) + 1
        return sorted(
            (
                _stored(info)
                for info in infos
                if info.type == fs.FileType.File
                and not any(part.startswith((".", "_")) for part in info.path[below:].split("/"))
            ),
            key=lambda file: file.path,
        )

    def names(self) -> list[str]:
        """Returns the names of the files in the folder itself; none if it does not exist."""
        from pyarrow import fs

        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def open(self, path: str | None = None) -> Any:
        """Opens a file for reading, by its path in the filesystem or the storage's own; it can seek."""
        return self.filesystem.open_input_file(self.path if path is None else path)

    def read(self, name: str) -> bytes:
        """Returns what a file in the folder holds."""
        with self.open(self.join(name)) as file:
            return bytes(file.read())

    def join(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return posixpath.join(self.path, name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yields a path to write a file of the folder to, which has its place there when the block ends without error.

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

    def make(self) -> None:
        """Makes the folder where it does not exist; object stores have none."""
        self.filesystem.create_dir(self.path, recursive=True)

    def remove_staged(self, prefix: str) -> None:
        """Removes what a process that was killed has left of files whose names begin with `prefix`."""
        if self.is_local:
            for path in Path(self.path).glob(f".{prefix}*.tmp"):
                path.unlink(missing_ok=True)


def _stored(info: Any) -> StoredFile:
    return StoredFile(info.path, info.size, None if info.mtime is None else info.mtime.timestamp())
