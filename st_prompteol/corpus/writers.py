"""Writing embeddings of one file: `.npy`, `.safetensors` and Parquet, which grow row by row."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from st_prompteol.tables import import_pyarrow

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Array = np.ndarray[Any, Any]


def text_column(texts: Sequence[str | None]) -> Any:
    """Returns texts as an Arrow array of strings; what is no UTF-8, which only an encoder may repair, as `?`."""
    import pyarrow as pa

    repaired = (None if text is None else text.encode("utf-8", "replace").decode("utf-8") for text in texts)
    return pa.array(repaired, pa.string())


class _ArrayWriter:
    """Rows appended behind a header that is written again when the number of rows is known."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = open(path, "wb")
        self.rows, self.dimension = 0, 0
        self.dtype = np.dtype(np.float32)

    def __enter__(self) -> _ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.rows:
            self.file.seek(0)
            self.header()
        self.file.close()

    def write(self, sentences: list[str], embeddings: Array) -> None:
        if not self.rows:
            self.dtype, self.dimension = embeddings.dtype, embeddings.shape[1]
            self.header()
        self.file.write(np.ascontiguousarray(embeddings).tobytes())
        self.rows += len(embeddings)

    def header(self) -> None:
        raise NotImplementedError


class _NpyWriter(_ArrayWriter):
    def header(self) -> None:
        # NumPy pads its header so that the first axis can grow.
        shape = (self.rows, self.dimension)
        array = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, array)


class _SafetensorsWriter(_ArrayWriter):
    def header(self) -> None:
        names = {"float32": "F32", "int8": "I8", "uint8": "U8"}
        size = self.rows * self.dimension * self.dtype.itemsize
        tensor = {"dtype": names[self.dtype.name], "shape": [self.rows, self.dimension], "data_offsets": [0, size]}
        header = json.dumps({"embeddings": tensor}).encode().ljust(248)  # the format allows trailing spaces
        self.file.write(struct.pack("<Q", len(header)) + header)


class _ParquetWriter:
    """One row group per chunk, the sentence beside its embedding."""

    def __init__(self, path: Path) -> None:
        import_pyarrow()
        self.path, self.rows, self.dimension = path, 0, 0
        self.file: Any = None  # opened with the first rows, which tell the schema

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, sentences: list[str], embeddings: Array) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows, self.dimension = self.rows + len(embeddings), embeddings.shape[1]
        rows = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dimension)
        table = pa.table({"sentence": text_column(sentences), "embedding": rows})
        self.file = self.file or pq.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _NpyWriter,
    ".safetensors": _SafetensorsWriter,
    ".parquet": _ParquetWriter,
}
