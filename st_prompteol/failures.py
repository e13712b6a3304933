"""Failures of opening a model: upstream's many exceptions, each as one sentence of a built-in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

# Upstream's exceptions, or the causes of those it wraps around them, and the one sentence that each becomes
_FAILURES: tuple[tuple[type[Exception], type[Exception], str], ...] = (
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
)


@contextmanager
def explained(model_name_or_path: str | None) -> Iterator[None]:
    """Turns the many exceptions of opening a model into one sentence of a built-in one."""
    name = repr(model_name_or_path)
    try:
        yield
    except Exception as error:
        for kind, builtin, sentence in _FAILURES:
            for cause in (error, error.__cause__):
                if isinstance(cause, kind):
                    raise builtin(sentence.format(name=name, error=cause)) from error
        if type(error) is OSError:  # transformers' own, of several lines
            raise FileNotFoundError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
            raise ValueError(
                f"The weights of {name} do not fit its config.json: they are of another model."
            ) from error
        raise
