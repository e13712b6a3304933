"""Parts: the output Parquet files of a corpus, each with the rows of one fragment, and its outcome in the footer."""

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
_ROW_GROUP_BYTES = 32 * 2**20  # size of the embeddings in a row group, which a reader has to hold in memory
_THREADS = 16  # concurrent reads of footers, each of which waits for two requests


@dataclass(frozen=True)
class Outcome:
    """Result of encoding one fragment.

    `tokens` is the number of tokens without padding, `cells` with padding; both are 0 if other processes tokenized.
    `failure` is the reason why there is no part.
    """

    part: str
    rows: int = 0
    bad_rows: int = 0
    seconds: float = 0.0
    tokens: int = 0
    cells: int = 0
    failure: str = ""


class PartWriter:
    """Writes one part: kept columns and embeddings, which are null for rows without a sentence.

    Args:
        path: The output file.
        empty: An array `(0, dimension)` of the embeddings' dtype.
        keep: The columns before the embedding.
    """

    def __init__(self, path: Path, empty: Array, keep: Sequence[str]) -> None:
        self.path, self.empty, self.keep = path, empty, keep
        self.rows, self.bad_rows = 0, 0
        self._file: Any = None  # opened with the first rows, which have the types of the kept columns
        self._held: list[Any] = []
        self._held_bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and kind is not None:
            with suppress(OSError):  # of a full disk, which is already reported
                self._file.close()

    def write(self, batch: Batch, embeddings: Array) -> None:
        """Appends rows; `embeddings` `(sentences, dimension)` has a row for each sentence that is not None."""
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
            # embeddings look random: dictionaries, compression and statistics would only cost time
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
    """Returns the footers of parts by name; skips incomplete files and files that are not parts."""
    with ThreadPoolExecutor(_THREADS) as threads:
        footers = threads.map(lambda name: _read_footer(storage, name), names)
        return {name: footer for name, footer in zip(names, footers, strict=True) if footer is not None}


def _read_footer(storage: Storage, name: str) -> dict[str, Any] | None:
    import pyarrow.parquet as pq

    try:
        with storage.open(name) as file:
            footer: dict[str, Any] = json.loads(pq.read_metadata(file).metadata[_FOOTER.encode()])
            return footer
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _column(values: Any) -> Any:
    """Returns an Arrow column unchanged, a list of texts as one; invalid Unicode, which JSON allows, becomes `?`."""
    import pyarrow as pa

    if not isinstance(values, list):
        return values
    repaired = (None if text is None else text.encode("utf-8", "replace").decode() for text in values)
    return pa.array(repaired, pa.string())
