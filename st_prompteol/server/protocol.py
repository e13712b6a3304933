"""OpenAI's embeddings API: the format of requests, responses and errors."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError
from pydantic_core import to_json

from st_prompteol.server.batching import Embedded


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`; `user` has no effect, because the server does not record users."""

    model_config = ConfigDict(extra="forbid")

    input: Any
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = None
    user: str | None = None


def refuse(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> HTTPException:
    """Returns the exception for an error response."""
    return HTTPException(status, {"message": message, "param": param, "code": code}, headers)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns the body of an error response in OpenAI's format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def read_request(body: bytes) -> EmbeddingRequest:
    """Parses the body of a request.

    Raises:
        HTTPException: With status 400, if the body is not JSON or not a valid request.
    """
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    kind, place = first["type"], ".".join(map(str, first["loc"]))
    if kind == "json_invalid":
        raise refuse(400, f"The body is not valid JSON in UTF-8: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if kind == "extra_forbidden":
        known = ", ".join(EmbeddingRequest.model_fields)
        raise refuse(400, f"Unrecognized request argument {place!r:.80}: this server knows {known}.", param=place[:80])
    if kind == "missing":
        raise refuse(400, f"The request has no {place!r}: add it.", param=place)
    raise refuse(400, f"Invalid {place or 'body'}: {first['msg']}.", param=place or None)


def read_input(value: Any, most: int) -> list[str]:
    """Returns the sentences of a request's `input`.

    Args:
        value: A string, or a list of strings.
        most: The maximum number of sentences.

    Raises:
        HTTPException: With status 400, for any other input.
    """
    sentences = [value] if isinstance(value, str) else value
    if not isinstance(sentences, list):
        raise _bad_input(f"input is {_json_type(value)}: send a string or a list of strings.")
    if not sentences:
        raise _bad_input("input is an empty list: send at least one string.")
    if len(sentences) > most:
        raise _bad_input(f"input holds {len(sentences)} strings, and one request may hold {most}: send several.")
    for index, sentence in enumerate(sentences):
        if _is_tokens(sentence):
            raise _bad_input(
                "input holds token ids, but the template around a sentence needs its text: send strings (with "
                "LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False)."
            )
        if not isinstance(sentence, str):
            raise _bad_input(f"input[{index}] is {_json_type(sentence)}: send a string or a list of strings.")
        if not sentence:
            place = "input" if isinstance(value, str) else f"input[{index}]"
            raise _bad_input(f"{place} is an empty string: leave empty strings out.")
    return sentences


def _bad_input(message: str) -> HTTPException:
    return refuse(400, message, param="input")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, (int, list)) and not isinstance(value, bool)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]


def shorten_embeddings(embeddings: np.ndarray, dimensions: int, *, unit_length: bool) -> np.ndarray:
    """Truncates embeddings to their first dimensions, like `truncate_dim` of sentence-transformers.

    Args:
        embeddings: The embeddings `(count, embedding_dimension)`.
        dimensions: The number of dimensions to keep.
        unit_length: Whether to normalize the truncated embeddings to length 1, like OpenAI.

    Returns:
        The truncated embeddings `(count, dimensions)`.
    """
    kept = embeddings[:, :dimensions]
    if unit_length:
        kept = kept / np.linalg.norm(kept, axis=1, keepdims=True).clip(1e-12)
    return kept


def write_answer(embedded: Embedded, model: str, encoding_format: str | None) -> bytes:
    """Returns the body of the response; `base64` encodes little-endian float32 values."""
    rows = np.ascontiguousarray(embedded.embeddings, dtype="<f4")
    encode = (lambda row: base64.b64encode(row).decode()) if encoding_format == "base64" else np.ndarray.tolist
    data = (
        to_json({"object": "embedding", "index": index, "embedding": encode(row)}) for index, row in enumerate(rows)
    )
    tokens = int(embedded.tokens.sum())
    rest = to_json({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return b'{"object":"list","data":[' + b",".join(data) + b"]," + rest[1:]
