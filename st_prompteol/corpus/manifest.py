"""The manifest of a corpus' output: what made it, from what, and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.corpus.fragments import SourceFile
from st_prompteol.corpus.storage import Storage
from st_prompteol.identity import differences, digest, identify

NAME = "_manifest.json"  # readers of Parquet folders pass over names with an underscore

_PACKAGES = ("st-prompteol", "sentence-transformers", "transformers", "torch", "peft", "pyarrow", "ray")


@dataclass
class Manifest:
    """What `_manifest.json` holds.

    Args:
        identity: Everything that the embeddings depend on: two runs that differ in it never share a destination.
        about: What else there is to know of the model and the packages.
        files: The files of the input.
        ranges: Smallest and largest numbers that int8 and uint8 are scaled by. Defaults to None.
        complete: Whether every fragment has its part. Defaults to False.
        totals: Rows, rows without text, seconds of work and so on, when it is complete. Defaults to none.
        parts: Name, rows and bad rows of every part, in the order of the input. Defaults to none.
        failures: What could not be read of the input, by part. Defaults to none.
    """

    identity: dict[str, Any]
    about: dict[str, Any]
    files: list[dict[str, Any]]
    ranges: list[list[float]] | None = None
    complete: bool = False
    totals: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A short text that stands for the identity, and for the ranges that embeddings were scaled by."""
        return digest([self.identity, self.ranges])

    def claim(self, destination: Storage) -> None:
        """Puts it into a folder before the first part is there; of an earlier run it takes over the ranges.

        Raises:
            FileExistsError: If the folder is that of a run of another model or other data.
            OSError: If the folder cannot be written.
        """
        with _writing(destination):
            destination.make()
            if NAME not in destination.names() and destination.create(NAME, self._content()):
                return
        if (found := read_manifest(destination)) is not None:  # perhaps of a run that was faster
            self.ranges = self.ranges and found.ranges
            check_files(destination, found.files, [SourceFile(**file) for file in self.files], set())
        self.write(destination)

    def write(self, destination: Storage) -> None:
        """Puts it into its place; what was there stays until it is whole.

        Raises:
            FileExistsError: If the place has been taken by a run of another model or other data.
            OSError: If the folder cannot be written.
        """
        if (found := read_manifest(destination)) is not None:
            check_identity(destination, found.identity, self.identity)
            check_identity(destination, {"ranges": found.ranges}, {"ranges": self.ranges})
        with _writing(destination), destination.replacing(NAME) as staged:
            staged.write_bytes(self._content())

    def _content(self) -> bytes:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "backslashreplace")  # names of files that are not UTF-8, as JSON writes them


@contextmanager
def _writing(destination: Storage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"The destination {destination.address!r} cannot be written: {reason}.") from None


def read_manifest(destination: Storage) -> Manifest | None:
    """Returns the manifest of a folder, None where there is none yet.

    Raises:
        FileExistsError: If there are Parquet files of something else.
        ValueError: If the manifest is damaged.
    """
    names = destination.names()
    if NAME in names:
        try:
            return Manifest(**json.loads(destination.read(NAME)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The manifest {destination.join(NAME)!r} is damaged ({error}): choose another destination."
            ) from None
    if any(name.endswith(".parquet") for name in names):
        raise FileExistsError(
            f"{destination.address!r} holds Parquet files, but not of an encoded corpus: choose an empty folder."
        )
    return None


def describe(model: SentenceTransformer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns of a model what its embeddings depend on, and what else there is to know of it: where it is from."""
    config = getattr(model[0], "config", None)
    about = {"model": getattr(config, "name_or_path", None), "revision": getattr(config, "_commit_hash", None)}
    return identify(model), about


def packages() -> dict[str, str]:
    """Returns the versions of the packages that numbers may depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_identity(destination: Storage, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises FileExistsError, which names the differences, unless both are the same."""
    if told := differences(before, now, "{name} {before} there and {now} here"):
        raise FileExistsError(
            f"{destination.address!r} holds embeddings made otherwise ({told}): choose another destination."
        )


def check_files(
    destination: Storage, before: Sequence[Mapping[str, Any]], now: Sequence[SourceFile], used: set[int]
) -> None:
    """Raises FileExistsError if the input is another one; files without a part, by number in `used`, may be mended."""
    if [file["path"] for file in before] != [file.path for file in now]:
        raise FileExistsError(
            f"{destination.address!r} holds embeddings of other files ({len(before)} there, {len(now)} here): choose "
            "another destination."
        )
    for old, new in zip(before, now, strict=True):
        if new.number in used and (old["size"], old["modified"]) != (new.size, new.modified):
            raise FileExistsError(
                f"{new.path!r} has changed since it was encoded to {destination.address!r}: choose another "
                f"destination, or remove its parts there, part-{new.number:06d}-*, to encode it anew."
            )
