"""A clean exit on SIGTERM, which schedulers, `docker stop` and `kill` send."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # exit status in a shell


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit(143) inside the block, so that temporary files are removed.

    For the entry point of a program. It has no effect outside the main thread, because only that can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker: its parent removes the files
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ignore further signals
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
