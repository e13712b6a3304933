"""Maps upstream's exceptions on loading and pushing a model to built-in ones with a one-sentence message.

Also checks numbers that a user passes, before anything is computed.
"""

from __future__ import annotations

import errno
import json
import numbers
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

# Upstream's exceptions (raised directly or as a cause), the built-in exception for each, and its message
_FAILURES: tuple[tuple[type[Exception], type[Exception], str], ...] = (
    (
        UnpicklingError,
        ValueError,
        "A weights file of {name} holds something else than numbers, which could run code, so it is not opened: take "
        "a safetensors file of it, from whoever made it.",
    ),
    (EOFError, ValueError, "A weights file of {name} is empty or cut short: download or save it again."),
    (SafetensorError, ValueError, "A weights file of {name} is damaged ({error}): download or save it again."),
    (GatedRepoError, PermissionError, "{name} is gated: ask for access on its page, then pass token=… or log in."),
    (RevisionNotFoundError, FileNotFoundError, "{name} has no such revision: pass a branch, tag or commit of it."),
    (
        RepositoryNotFoundError,
        FileNotFoundError,
        "{name} is neither a folder nor a repository that you can see: check the spelling, or, if it is private, pass "
        "token=… or log in with `hf auth login`.",
    ),
    (HFValidationError, FileNotFoundError, "{name} is neither a folder nor the name of a repository: {error}"),
    (
        LocalEntryNotFoundError,
        ConnectionError,
        "{name} is no folder, is not in the cache and could not be downloaded: check the spelling and the connection.",
    ),
    (OfflineModeIsEnabled, ConnectionError, "{name} is asked for on the Hub, but HF_HUB_OFFLINE is set: unset it."),
)
# The exception and message for each HTTP status, in loading and pushing; a ConnectionError may be temporary
STATUSES: dict[int, tuple[type[Exception], str]] = {
    401: (PermissionError, "the Hub does not know the token (401): log in anew with `hf auth login`."),
    403: (PermissionError, "the Hub forbids it (403): use a token of someone who may."),
    429: (ConnectionError, "the Hub asks for fewer requests (429): wait a few minutes, then do it again."),
    **{
        status: (ConnectionError, f"the Hub is in trouble ({status}): do it again later.")
        for status in (408, 500, 502, 503, 504)
    },
}
_PUSH_STATUSES: dict[int, tuple[type[Exception], str]] = {
    **STATUSES,
    400: (ValueError, "the Hub calls the metadata or a file invalid (400): {error}"),
    403: (
        PermissionError,
        "the token may not write there (403): use one with the role write, of a member of that namespace, or open a "
        "pull request.",
    ),
    404: (FileNotFoundError, "the Hub has no such repository, branch or tag (404): check the spelling."),
    409: (FileExistsError, "the Hub sees a conflict (409), something of that name is there: choose another name."),
    412: (FileExistsError, "someone else has pushed meanwhile (412): look at it, then push again."),
}
# The exceptions of upstream's code for files with unexpected content
_UNEXPECTED = (
    ArithmeticError, AttributeError, LookupError, NameError, StopIteration, TypeError, struct.error,
)  # fmt: skip
# The JSON files that are read when a model is loaded
_JSON_FILES = re.compile(
    r"(modules|config(_sentence_transformers)?|sentence_\w+_config|adapter_config|tokenizer(_config)?"
    r"|special_tokens_map|added_tokens|(pytorch_)?model\.(safetensors|bin)\.index|\d+_\w+/config)\.json"
)
_GGUF_HEADER = 24  # bytes
# Messages of native libraries for a full disk
_DISK_FULL = ("No space left on device", "os error 28", "PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def explain_opening(model_name_or_path: str | None) -> Iterator[None]:
    """Converts the exceptions on loading a model to built-in ones with a one-sentence message."""
    name = repr(model_name_or_path)
    try:
        yield
    except Exception as error:
        if any(map(is_disk_full, causes(error))):
            raise OSError(
                f"{name} could not be opened, because the disk is full: free space, or set HF_HOME to a folder on "
                "another disk, then do it again."
            ) from error
        # already explained: the base of an adapter, which is loaded in between
        if type(error) is FileNotFoundError and error.errno is None and error.__cause__ is not None:
            raise
        if damage := find_damage(model_name_or_path):
            raise ValueError(damage) from error
        if isinstance(error, HFValidationError) and os.path.isdir(str(model_name_or_path)):
            raise FileNotFoundError(
                f"The adapter {name} has no adapter_model.safetensors: download or save it again."
            ) from error
        for kind, builtin, sentence in _FAILURES:
            for cause in (error, error.__cause__):
                if isinstance(cause, kind):
                    raise builtin(sentence.format(name=name, error=_line(cause))) from error
        if (status := status_of(error)) is not None and status in STATUSES:
            builtin, sentence = STATUSES[status]
            raise builtin(f"{name} could not be read: {sentence}") from error
        if is_broken_connection(error) and not _is_ours(error):
            raise ConnectionError(
                f"{name} could not be looked up on the Hub: check the connection, then do it again."
            ) from error
        if isinstance(error, ModuleNotFoundError) and not _is_ours(error):
            raise ImportError(
                f"{name} needs the Python package {error.name!r}, which is not installed: install it, then open "
                f"{name} again."
            ) from error
        if type(error) is OSError:  # raised by transformers, with several lines
            raise FileNotFoundError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error
        if explained := _explain_unexpected(error, name):
            raise ValueError(explained) from error
        raise


def _explain_unexpected(error: Exception, name: str) -> str | None:
    """Returns a one-sentence message for a technical or multi-line error of upstream; None if it already is one."""
    text = str(error)
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in text:
        return f"The weights of {name} do not fit its config.json: they are of another model."
    if isinstance(error, RuntimeError) and "PytorchStreamReader" in text:
        return f"A weights file of {name} is damaged ({_line(error)}): download or save it again."
    if module := re.search(r"references the module class (.+?), which is not part of Sentence Transformers", text):
        return (
            f"The modules.json of {name} names {module[1]}, which is not a module of sentence-transformers: mend the "
            "file, or pass trust_remote_code=True if it is code of an author whom you trust."
        )
    # an unknown argument of the caller keeps Python's own error
    if re.match(r"(SentenceTransformer|PromptEOL)\.__init__\(\) got an unexpected", text):
        return None
    lines = "\n" in text and not isinstance(error, (ImportError, OSError, RuntimeError)) and not _is_ours(error)
    if lines or isinstance(error, _UNEXPECTED):
        return (
            f"{name} cannot be opened, because a file of it lacks a value, or holds one that does not belong there "
            f"({type(error).__name__}: {_line(error)}): download or save it again."
        )
    return None


def find_damage(folder: str | None) -> str | None:
    """Returns a message about the first JSON file in a folder that is truncated or has unexpected content, or None."""
    if folder is None or not os.path.isdir(folder):
        return None
    for path in sorted([*Path(folder).glob("*.json"), *Path(folder).glob("*/config.json")]):
        file = path.relative_to(folder).as_posix()
        if not _JSON_FILES.fullmatch(file) or not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            return f"{file!r} in {folder!r} cannot be read: {error.strerror}."
        except ValueError as error:
            problem = f"is not JSON ({error})" if path.stat().st_size else "is empty"
            return f"{file!r} in {folder!r} {problem}: download or save it again."
        is_list = file == "modules.json"
        expected = "a list of modules, each with its type and path" if is_list else "a JSON object"
        if not (_lists_modules(content) if is_list else isinstance(content, dict)):
            return f"{file!r} in {folder!r} is not {expected}: download or save it again."
    return None


def _lists_modules(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("name", "path", "type"))
            for module in content
        )
    )


@contextmanager
def explain_gguf(path: str) -> Iterator[None]:
    """Converts any exception on reading a GGUF file to a ValueError; has no effect for other files."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, *_UNEXPECTED) as error:
        if not path.endswith(".gguf") or not os.path.isfile(path) or _is_ours(error) or is_disk_full(error):
            raise
        size = os.path.getsize(path)
        # the words of Python's own exceptions are about buffers and keys, and tell users nothing
        reason = f"{size:,} bytes" if size < _GGUF_HEADER or isinstance(error, _UNEXPECTED) else _line(error)
        raise ValueError(
            f"The GGUF file {path!r} is damaged, cut short or not one that transformers reads ({reason}): download it "
            "again, or take the safetensors of the same model."
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by this package's own code, and therefore has a message for users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("st_prompteol.")


def _line(error: BaseException) -> str:
    """Returns the message of an exception in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) < 300 else str(error).strip().splitlines()[0]).rstrip(".")


def check_whole(minimum: int = 1, **given: Any) -> None:
    """Raises ValueError for a number that is not an integer or is below the minimum; None is allowed.

    Args:
        minimum: The smallest allowed value. Defaults to 1.
        **given: The numbers by argument name.
    """
    for name, value in given.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (whole and value >= minimum):
            raise ValueError(f"{name}={value!r} must be at least {minimum}, a whole number.")


@contextmanager
def explain_push(repo_id: str) -> Iterator[None]:
    """Converts the exceptions of a push to built-in ones with a one-sentence message, without headers or tokens."""
    try:
        yield
    except Exception as error:
        status = status_of(error)
        if any(map(is_disk_full, causes(error))):
            raise OSError(
                f"{repo_id!r} was not pushed to, because the disk is full: free space, or set TMPDIR to a folder on "
                "another disk, then push again."
            ) from error
        if isinstance(error, HFValidationError):
            raise ValueError(f"{repo_id!r} cannot be the name of a repository: {error}") from None
        if status in _PUSH_STATUSES:
            builtin, sentence = _PUSH_STATUSES[status]
            detail = getattr(error, "server_message", None) or HTTPStatus(status).phrase
            raise builtin(f"{repo_id!r} was not pushed to: {sentence.format(error=detail)}") from error
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
            raise ConnectionError(f"{repo_id!r} was not asked for on the Hub, as HF_HUB_OFFLINE is set.") from error
        if is_broken_connection(error):
            raise ConnectionError(
                f"{repo_id!r} was not pushed to: the connection broke. Nothing is half there; push again."
            ) from error
        raise


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of the response in an exception or its causes, None if there is none."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return int(cause.response.status_code)
    return None


def is_broken_connection(error: BaseException) -> bool:
    """Whether there was no response at all; classes are matched by name, because upstream's HTTP library changed."""
    names = {kind.__name__ for cause in causes(error) for kind in type(cause).__mro__}
    return status_of(error) is None and bool({"TransportError", "ConnectionError", "TimeoutError"} & names)


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception is about a full disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, (SafetensorError, RuntimeError)) and any(sign in str(error) for sign in _DISK_FULL)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and its causes, the latest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


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
