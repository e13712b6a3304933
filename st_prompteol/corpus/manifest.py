"""The manifest of a corpus' output: the model, settings and input files, and whether the output is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from sentence_transformers import SentenceTransformer

from st_prompteol.corpus.fragments import SourceFile
from st_prompteol.corpus.storage import Storage
from st_prompteol.llm.loaded import commit_of
from st_prompteol.saved.identity import differences, digest, identify

NAME = "_manifest.json"  # readers of Parquet folders skip names with a leading underscore

# The packages that may affect embeddings
PACKAGES = ("st-prompteol", "sentence-transformers", "transformers", "torch", "peft", "pyarrow", "ray")


@dataclass
class Manifest:
    """The contents of `_manifest.json`.

    Args:
        identity: Everything that the embeddings depend on; runs that differ in it cannot share a destination.
        about: Further information on model, source and packages.
        files: The input files.
        ranges: Minima and maxima per dimension that scale int8 and uint8. Defaults to None.
        complete: Whether every fragment has its part. Defaults to False.
        totals: Numbers of rows, rows without text and tokens, and seconds of work, at the end of a run. Defaults to
            none.
        parts: Name, rows and bad rows of every part, in the order of the input. Defaults to none.
        failures: Error messages for unreadable input, by part. Defaults to none.
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
        """A digest of the identity and the ranges."""
        return digest([self.identity, self.ranges])

    def claim(self, destination: Storage) -> None:
        """Writes the manifest before the first part; adopts the ranges of an earlier run.

        Raises:
            FileExistsError: If the folder belongs to a run of another model or other data.
            OSError: If the folder cannot be written.
        """
        with _writing(destination):
            destination.make()
            if NAME not in destination.names() and destination.create(NAME, self._content()):
                return
        if (found := read_manifest(destination)) is not None:  # possibly of a concurrent run
            self.ranges = self.ranges and found.ranges
            check_files(destination, found.files, [SourceFile(**file) for file in self.files], set())
        self.write(destination)

    def write(self, destination: Storage) -> None:
        """Replaces the manifest atomically.

        Raises:
            FileExistsError: If the folder now belongs to a run of another model or other data.
            OSError: If the folder cannot be written.
        """
        if (found := read_manifest(destination)) is not None:
            check_identity(destination, found.identity, self.identity)
            check_identity(destination, {"ranges": found.ranges}, {"ranges": self.ranges})
        with _writing(destination), destination.replacing(NAME) as staged:
            staged.write_bytes(self._content())

    def _content(self) -> bytes:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "backslashreplace")  # escapes file names that are not UTF-8


@contextmanager
def _writing(destination: Storage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"The destination {destination.address!r} cannot be written: {reason}.") from None


def read_manifest(destination: Storage) -> Manifest | None:
    """Returns the manifest of a folder; None if there is none yet.

    Raises:
        FileExistsError: If the folder holds Parquet files but no manifest.
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
    """Returns the identity of a model, on which its embeddings depend, and its name and commit."""
    config = getattr(model[0], "config", None)
    about = {"model": getattr(config, "name_or_path", None), "revision": commit_of(model[0])}
    return identify(model), about


def check_identity(destination: Storage, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises FileExistsError, which names the differences, if the identities differ."""
    if changes := differences(before, now, "{name} {before} there and {now} here"):
        raise FileExistsError(
            f"{destination.address!r} holds embeddings made otherwise ({changes}): choose another destination."
        )


def check_files(
    destination: Storage, before: Sequence[Mapping[str, Any]], now: Sequence[SourceFile], used: set[int]
) -> None:
    """Raises FileExistsError if the list of files, or a file with a part (numbers in `used`), has changed."""
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
