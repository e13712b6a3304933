"""`infinity_emb v2 --model-id folder`, here its engine from Python."""

import asyncio

from infinity_emb import AsyncEmbeddingEngine, EngineArgs


async def run(folder, sentences):
    options = {"engine": "torch", "device": "cpu", "bettertransformer": False, "compile": False}
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=folder, **options))
    async with engine:
        return (await engine.embed(sentences=sentences))[0]


def embed(folder, sentences):
    return asyncio.run(run(folder, sentences))
