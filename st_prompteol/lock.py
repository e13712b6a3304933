"""A re-entrant lock that can be copied and pickled, for models that threads share."""

from __future__ import annotations

import threading
from types import TracebackType


class Lock:
    """A re-entrant lock; copies and pickles of it are new locks.

    Example:
        >>> import copy
        >>> lock = Lock()
        >>> with lock, lock, copy.deepcopy(lock):
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
