"""PromptEOL behind an endpoint such as OpenAI's: what every sentence shares is computed once, for all requests.

    pip install fastapi uvicorn
    python examples/serve.py tiny --port 8000
    curl http://127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' -d '{"input": ["A jockey."]}'

Requests are answered one after the other, and there is neither login nor limit: put a proxy in front.
"""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from st_prompteol import PromptEOL


class EmbeddingRequest(BaseModel):
    """The part of OpenAI's request that a server of one model needs."""

    input: str | list[str]
    model: str = ""


def make_app(model: PromptEOL) -> FastAPI:
    """Returns an application that answers `POST /v1/embeddings` by `model.encode`."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> dict[str, Any]:
        rows = model.encode([request.input] if isinstance(request.input, str) else request.input)
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
        return {"object": "list", "model": request.model, "data": data}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a Hub id, or tiny")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(PromptEOL(options.model)), host=options.host, port=options.port)
