"""Thread safety of shared models: a copyable re-entrant lock, and the thread-local current pass."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st_prompteol.fast.passes import Pass


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


class _Running(threading.local):
    """The thread's current forward pass, for hooks and attention functions, which cannot take it as an argument."""

    forward_pass: Pass | None = None


running = _Running()
