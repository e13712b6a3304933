"""Parts: the Parquet files of a corpus' output, each with the rows of one fragment, and its outcome in the footer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from st_prompteol.corpus.formats import Batch
from st_prompteol.corpus.storage import Storage

Array = np.ndarray[Any, Any]

PREFIX = "part-"
EMBEDDING = "embedding"

_FOOTER = "st_prompteol"
_ROW_GROUP_BYTES = 32 * 2**20  # of embeddings: what a reader of one row group has to hold
_THREADS = 16  # that read footers at once: each waits for two requests


@dataclass(frozen=True)
class Outcome:
    """What came of a fragment.

    `tokens` are those of its sentences, `cells` those of the batches with their padding; both 0 where other processes
    tokenised. `failure` says why there is no part.
    """

    part: str
    rows: int = 0
    bad_rows: int = 0
    seconds: float = 0.0
    tokens: int = 0
    cells: int = 0
    failure: str = ""


class PartWriter:
    """Writes one part: kept columns and embeddings, null where there was no sentence.

    Args:
        path: The file to write.
        empty: An array `(0, numbers)` of the type that embeddings have.
        keep: The columns in front of the embedding.
    """

    def __init__(self, path: Path, empty: Array, keep: Sequence[str]) -> None:
        self.path, self.empty, self.keep = path, empty, keep
        self.rows, self.bad_rows = 0, 0
        self._file: Any = None  # opened with the first rows, which tell the types of the kept columns
        self._held: list[Any] = []
        self._held_bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and kind is not None:
            with suppress(OSError):  # of a full disk, which has been said
                self._file.close()

    def write(self, batch: Batch, embeddings: Array) -> None:
        """Appends rows; `embeddings` are those of the sentences that are not None, `(sentences, numbers)`."""
        import pyarrow as pa

        missing = np.array([sentence is None for sentence in batch.sentences], dtype=bool)
        rows = embeddings
        if missing.any():
            rows = np.zeros((len(missing), self.empty.shape[1]), dtype=self.empty.dtype)
            rows[~missing] = embeddings
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(rows.reshape(-1)), rows.shape[1], mask=pa.array(missing) if missing.any() else None
        )
        self._held.append(pa.table({**{name: _column(batch.kept[name]) for name in self.keep}, EMBEDDING: column}))
        self._held_bytes += rows.nbytes
        self.rows, self.bad_rows = self.rows + len(missing), self.bad_rows + int(missing.sum())
        if self._held_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self, footer: Mapping[str, Any] | None = None) -> None:
        """Completes the file, with `footer` in its metadata."""
        if self._file is None and not self._held:
            self.write(Batch([], {name: [] for name in self.keep}), self.empty)
        if self._held:
            self._flush()
        if footer is not None:
            self._file.add_key_value_metadata({_FOOTER: json.dumps(footer)})
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables(self._held).combine_chunks()
        self._held, self._held_bytes = [], 0
        if self._file is None:
            # numbers that look random: a dictionary, a compression or statistics would only take time
            compression = {name: "zstd" for name in self.keep} | {f"{EMBEDDING}.list.element": "none"}
            self._file = pq.ParquetWriter(
                self.path,
                table.schema,
                use_dictionary=list(self.keep),
                compression=compression,
                write_statistics=list(self.keep),
            )
        self._file.write_table(table, row_group_size=max(1, table.num_rows))


def read_footers(storage: Storage, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the footers of parts by name; files that are not whole or not parts are left out."""
    with ThreadPoolExecutor(_THREADS) as threads:
        footers = threads.map(lambda name: _read_footer(storage, name), names)
        return {name: footer for name, footer in zip(names, footers, strict=True) if footer is not None}


def _read_footer(storage: Storage, name: str) -> dict[str, Any] | None:
    import pyarrow.parquet as pq

    try:
        with storage.open(storage.join(name)) as file:
            footer: dict[str, Any] = json.loads(pq.read_metadata(file).metadata[_FOOTER.encode()])
            return footer
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _column(values: Any) -> Any:
    """Returns Arrow's column as it is, and texts as one; what is not UTF-8 (JSON can hold it) becomes `?`."""
    import pyarrow as pa

    if not isinstance(values, list):
        return values
    repaired = (None if text is None else text.encode("utf-8", "replace").decode() for text in values)
    return pa.array(repaired, pa.string())
