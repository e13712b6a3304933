"""One-sentence messages for failures of a run: user errors, out of memory, a full disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from st_prompteol.failures import is_disk_full

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def explained(script: str = "train.py") -> Iterator[None]:
    """Ends the process with status 1 and a one-sentence message for known failures, or with 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.exit(f"{script}: {' '.join(sentence.split())}")


def explain(error: BaseException) -> str | None:
    """Returns a one-sentence message for a failure that a user can fix, None for any other."""
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)
    ):
        return (
            "Out of memory: pass a small --mini_batch_size (the same negatives, in the memory of so many sentences), "
            "then --gradient_checkpointing, then --quantization nf4; checkpoints up to here are complete, and "
            "--resume_from_checkpoint auto goes on from the last one."
        )
    if is_disk_full(error):
        return (
            "The disk is full, so the last checkpoint was not written: free space or lower --save_total_limit, then "
            "go on with --resume_from_checkpoint auto."
        )
    if isinstance(error, (EOFError, UnpicklingError)) or "PytorchStreamReader" in text:
        return (
            f"A file of the checkpoint is damaged ({text.splitlines()[0] if text else 'it is empty'}): remove its "
            "folder, then go on from the one before with --resume_from_checkpoint auto."
        )
    return text if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)) else None
