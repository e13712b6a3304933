"""Retries of requests: which failures are temporary, and how long to wait."""

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
    """Whether the failure may be temporary, so that the same request can succeed later."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return False
    kind, _ = STATUSES.get(status_of(error) or 0, (None, ""))
    return kind is ConnectionError or is_broken_connection(error)


def was_turned_away(error: BaseException) -> bool:
    """Whether the server rejected the request without processing it, so that a retry cannot apply it twice."""
    return status_of(error) in (429, 503)


def retry_after(error: BaseException) -> float:
    """Returns the seconds to wait from the `Retry-After` header, at most 60; 0 if it is missing or a date."""
    response = getattr(error, "response", None)
    value = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(value), 60.0) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0


def retrying(call: Callable[[], T], is_passing: Callable[[BaseException], bool] = may_pass) -> T:
    """Calls a function, with a few retries as long as failures are temporary."""
    for wait in RETRY_WAITS:
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(max(wait, retry_after(error)))
    return call()
