"""Requests that are made again: which failures may pass, and how long to wait."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

from st_prompteol.failures import STATUSES, causes, is_broken_connection, status_of

T = TypeVar("T")

RETRY_WAITS = (1.0, 4.0, 16.0)  # seconds


def may_pass(error: BaseException) -> bool:
    """Whether the same request can succeed a little later."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return False
    kind, _ = STATUSES.get(status_of(error) or 0, (None, ""))
    return kind is ConnectionError or is_broken_connection(error)


def was_turned_away(error: BaseException) -> bool:
    """Whether the server said that it has done nothing, so that a request cannot have its effect twice."""
    return status_of(error) in (429, 503)


def retry_after(error: BaseException) -> float:
    """Returns the seconds that the server asks to wait, at most a minute, and 0 if it names none (or a date)."""
    response = getattr(error, "response", None)
    value = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(value), 60.0) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0


def retrying(call: Callable[[], T], is_passing: Callable[[BaseException], bool] = may_pass) -> T:
    """Calls until it succeeds, a few times, as long as the failures may pass."""
    for wait in RETRY_WAITS:
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(max(wait, retry_after(error)))
    return call()
