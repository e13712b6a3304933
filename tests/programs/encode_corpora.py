"""Encodes corpora by a model that computes nothing, and prints the peak of memory after each."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from st_prompteol import PromptEOL
from st_prompteol.corpus import encode_corpus


class Quick(PromptEOL):
    def encode(self, sentences: list[str], **options: Any) -> np.ndarray:
        return np.ones((len(sentences), 256), dtype=np.float32)

    def get_embedding_dimension(self) -> int:
        return 256


model = Quick("tiny")
for path in sys.argv[1:]:
    encode_corpus(model, path, f"{path}-out", column="text")
    print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
