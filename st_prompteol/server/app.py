"""The routes of the server: embeddings, models, health."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sentence_transformers.sentence_transformer.modules import Normalize
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from st_prompteol.model import PromptEOL
from st_prompteol.server.batching import Batcher, Embedded
from st_prompteol.server.protocol import (
    error_body,
    read_input,
    read_request,
    refuse,
    shorten_embeddings,
    write_answer,
)

_MOST_BYTES = 32 << 20  # maximum size of a request body: 2,048 passages of 16,000 letters
_BODY_SECONDS = 60  # time limit for sending the body


def make_app(
    model: PromptEOL, name: str, *, batch_size: int, normalize: bool, max_inputs: int, api_key: str | None
) -> FastAPI:
    """Returns an application that implements OpenAI's embeddings API.

    Args:
        model: The model; it must not be used elsewhere at the same time.
        name: The name of the model in requests.
        batch_size: The number of sentences per forward pass.
        normalize: Whether to normalize embeddings to length 1.
        max_inputs: The maximum number of sentences per request.
        api_key: The bearer token that requests must send; None for no authentication.
    """
    batcher = Batcher(_embedder(model, batch_size, normalize=normalize), batch_size)
    dimension = model.get_embedding_dimension()
    unit_length = normalize or (model.truncate_dim is None and isinstance(model[-1], Normalize))
    secret = (api_key or "").encode()
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "st_prompteol"}

    def check_model(asked: str) -> None:
        if asked != name:
            message = f"The model {asked!r:.200} does not exist: this server has {name!r}."
            raise refuse(404, message, param="model", code="model_not_found")

    async def check_key(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and secrets.compare_digest(key.encode("latin-1"), secret)
        if api_key is not None and not is_right:
            message = "Incorrect API key: send the key that the server was started with, as a bearer token."
            raise refuse(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    v1 = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    @v1.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        asked = read_request(await _read_body(request))
        check_model(asked.model)
        sentences = read_input(asked.input, max_inputs)
        if asked.dimensions is not None and not 1 <= asked.dimensions <= dimension:
            message = f"dimensions={asked.dimensions} is out of range: this model allows 1 to {dimension}."
            raise refuse(400, message, param="dimensions")
        try:
            embedded = await _unless_gone(request, batcher.encode(sentences))
        except ValueError as error:
            raise refuse(400, str(error), param="input") from error
        if asked.dimensions is not None:
            shortened = shorten_embeddings(embedded.embeddings, asked.dimensions, unit_length=unit_length)
            embedded = embedded._replace(embeddings=shortened)
        if len(sentences) == 1:  # too little work for a thread
            body = write_answer(embedded, name, asked.encoding_format)
        else:
            body = await run_in_threadpool(write_answer, embedded, name, asked.encoding_format)
        return Response(body, media_type="application/json")

    @v1.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @v1.get("/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        check_model(asked)
        return card

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.include_router(v1)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.exception_handler(HTTPException)(_answer_refusal)
    app.exception_handler(ClientDisconnect)(_answer_nobody)
    app.exception_handler(Exception)(_answer_failure)
    return app


def _embedder(model: PromptEOL, batch_size: int, *, normalize: bool) -> Callable[[list[str]], Embedded]:
    """Returns a function that embeds sentences; it raises ValueError for invalid sentences, otherwise RuntimeError."""
    prompt = model.prompts.get(model.default_prompt_name or "")

    def embed(sentences: list[str]) -> Embedded:
        tokens = model.preprocess(sentences, prompt)["attention_mask"].sum(dim=1).numpy()
        try:
            embeddings = model.encode(
                sentences, batch_size=batch_size, normalize_embeddings=normalize, show_progress_bar=False
            )
        except Exception as error:
            raise RuntimeError("The model failed to embed sentences.") from error
        return Embedded(embeddings, tokens)

    return embed


async def _read_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"The content type is {kind!r:.80}: send JSON with the header Content-Type: application/json."
        raise refuse(415, message)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise refuse(
                        413, f"The body is larger than {_MOST_BYTES >> 20} MiB: send fewer sentences at once."
                    )
    except TimeoutError:
        raise refuse(408, f"The body did not arrive within {_BODY_SECONDS} seconds: send it again.") from None
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[Embedded]) -> Embedded:
    """Awaits the result, and cancels the work when the client disconnects."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_refusal(request: Request, error: Any) -> Response:
    detail = error.detail
    if not isinstance(detail, dict):  # unknown route or method
        detail = {"message": f"{detail}: {request.method} {request.url.path:.200}"}
    return JSONResponse(error_body(error.status_code, **detail), error.status_code, error.headers)


async def _answer_failure(request: Request, error: Exception) -> Response:
    message = "The server failed to answer; its log says why."  # uvicorn writes the log
    return JSONResponse(error_body(500, message), 500)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's code for a closed connection
