"""Embeds with vLLM, run by `encode.py` with the Python of another environment: a list of sentences a line, as JSON.

The first embedding of each list is written to the file descriptor in the last argument.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
from vllm import LLM

if __name__ == "__main__":
    folder, dtype, answers = sys.argv[1:]
    model = LLM(folder, runner="pooling", dtype=dtype, enable_prefix_caching=True)
    with open(int(answers), "w", encoding="utf-8") as file:
        for line in sys.stdin:
            outputs = model.embed(json.loads(line), use_tqdm=False)
            print(json.dumps(outputs[0].outputs.embedding), file=file, flush=True)
