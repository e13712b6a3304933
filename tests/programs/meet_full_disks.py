"""Encodes a corpus into a small disk twice, then into one that may not be written to; prints what happened."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

from st_prompteol.corpus import encode_corpus

model, source, small, fixed = sys.argv[1:]
for disk in (small, small, fixed):
    try:
        encode_corpus(model, source, f"{disk}/out", column="text", keep=[], fragment_rows=500)
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
out = Path(small, "out")
print(sorted(os.listdir(out)), sum(pq.read_table(path).num_rows for path in out.glob("part-*")), sep="\n")
