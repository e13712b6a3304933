"""Ending in order when the process is told to: a scheduler, `docker stop` and `kill` send SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # as a shell reports it


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit(143) within, so that temporary files are removed on the way out.

    For the entry of a program; outside the main thread, which alone may handle signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that was forked: what is to be removed is its parent's
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
