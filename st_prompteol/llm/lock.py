"""A re-entrant lock that can be copied and pickled, for models that threads share."""

from __future__ import annotations

import threading


class Lock:
    """A re-entrant lock; copies and pickles of it are new locks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
