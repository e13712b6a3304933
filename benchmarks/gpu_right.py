"""Correctness on a GPU: the tests, a comparison with the reference implementation, and synchronizations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_setup import Options, Rows, open_ways
from reference import noting_shared_heads
from sentence_transformers.util import batch_to_device

from st_prompteol.fast import Reading

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "modules fast shared_head adapters model center cut linear quantization training_loss training corpus corpus_runs"
)
SHAPES = ("opt-125m", "smollm2-135m", "qwen3-0.6b", "opt-350m")
SECONDS = 200  # time limit of the tests
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rows(options: Options) -> Rows:
    """Yields the checks by name."""
    yield "tests", partial(run_tests, options)
    for shape in ("tiny", "stories260k") if options.trial else SHAPES:
        for name, dtype in DTYPES.items():
            for count in (0, 2) if options.trial else (0, 1, 16):
                yield f"{shape}, {name}, {count} demonstrations", partial(compare, options, shape, dtype, count)
        yield f"{shape}, waiting", partial(list_waits, options, shape)


def compare(options: Options, shape: str, dtype: torch.dtype, demonstrations: int) -> dict[str, Any]:
    """Returns differences to the reference implementation on the same device, relative to the largest value."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ways = open_ways(options, shape, dtype)
    ways.set_demonstrations(demonstrations)
    sentences = options.sentences(64)
    expected = ways.by_reference(sentences).float()
    with noting_shared_heads() as shared:
        ours = torch.as_tensor(ways.ours.encode(sentences)).float()
    plain = torch.as_tensor(ways.plain("sdpa").encode(sentences)).float()
    worst = expected.abs().max()
    return {
        "ours": float((ours - expected).abs().max() / worst),
        "plain": float((plain - expected).abs().max() / worst),
        "cosine": float(torch.cosine_similarity(ours, expected).min()),
        "is behind a shared head": all(shared),
    }


def list_waits(options: Options, shape: str) -> dict[str, Any]:
    """Lists the lines that synchronize with the device between `preprocess` and embedding, after the first batch."""
    ways = open_ways(options, shape)
    ways.set_demonstrations(1)
    sentences, reading = options.sentences(16), Reading(last_only=True)
    lines: Counter[str] = Counter()
    for batch in (sentences[:8], sentences[8:]):
        features = batch_to_device(ways.ours.preprocess(batch, reading=reading), ways.ours.device)
        with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            try:
                ways.ours(features, reading=reading)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("default")
        lines = Counter(f"{each.filename}:{each.lineno}" for each in caught if "synchron" in str(each.message))
    return {"waits": dict(lines)}


def run_tests(options: Options) -> dict[str, Any]:
    """Runs the tests of computations on the default device of sentence-transformers."""
    names = ("template",) if options.trial else TESTS.split()
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadfile", "--color", "no"]
    command += [f"tests/test_{name}.py" for name in names]
    with tempfile.TemporaryFile("w+") as printed:
        try:
            subprocess.run(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            print(f"not ended after {SECONDS} seconds", file=printed)
        printed.seek(0)
        lines = printed.read().splitlines()
    outcomes = [match.groups() for line in lines if (match := re.match(r"\[gw\d+\].* ([A-Z]+) (tests/\S+)", line))]
    reasons = dict(match.groups() for line in lines if (match := re.match(r"(?:FAILED|ERROR) (\S+) - (.*)", line)))
    failed = {test: reasons.get(test, "")[:200] for outcome, test in outcomes if outcome in ("FAILED", "ERROR")}
    counts = Counter(outcome.lower() for outcome, _ in outcomes)
    return {"outcome": f"{lines[-1].strip('= ')}; {dict(counts)}", "failed": failed}
