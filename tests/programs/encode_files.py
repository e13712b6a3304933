"""Encodes a small file and a large one in two precisions, and prints the peak of memory after each."""

import resource
import sys
from typing import Any

import numpy as np

from st_prompteol.corpus import encode_file


class Fake:
    def encode(self, sentences: list[str], **options: Any) -> np.ndarray:
        return np.ones((len(sentences), 512), dtype=np.float32)


*paths, out = sys.argv[1:]
for path in paths:
    for precision in ("float32", "int8"):
        encode_file(Fake(), path, out, precision=precision)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
