"""What threads that share a model need: a lock that a copy of it gets anew, and each thread's own pass."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st_prompteol.fast.passes import Pass


class Lock:
    """A lock that the thread which holds it may take again.

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
    """The forward pass of this thread, for hooks and attention functions, which nothing can be handed to."""

    forward_pass: Pass | None = None


running = _Running()
