"""Evaluates other ways to sentence embeddings on the tasks of `benchmarks.recipes`, on the same data.

    pip install --no-deps local-llm-embed llemb
    python -m benchmarks.peers MODEL --data-dir SENTEVAL --statistics SENTENCES --encoder ENCODER

MODEL is embedded by local-llm-embed and llemb, in float32; `--encoder` is any model of sentence-transformers.
local-llm-embed whitens; its whitener is fitted to the sentences of the file, and also to those that it encodes first,
which is its default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.recipes import Embeddings, StsTask, to_cells
from st_prompteol.corpus.formats import read_all_sentences
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS
from st_prompteol.files.output import save_table, to_markdown

Encode = Callable[[Sequence[str]], Embeddings]
_BATCH = 32
_PEERS = ("encoder", "local-llm-embed", "llemb")


def local_llm_embed(model: str, statistics: Sequence[str]) -> Iterator[tuple[str, Encode]]:
    """Yields local-llm-embed's default and its recipe for STS, each with both ways to fit the whitener."""
    from local_llm_embed import LocalLLMEmbedder

    for options in ({}, {"variation": "echo+whiten", "layer": "final", "pooling": "weighted_mean"}):
        embedder = LocalLLMEmbedder(model, dtype="float32", batch_size=_BATCH, **options)
        yield from whiten(f"local-llm-embed, {embedder.variation_name}", embedder, statistics)


def whiten(name: str, embedder: Any, statistics: Sequence[str]) -> Iterator[tuple[str, Encode]]:
    """Yields an embedder of local-llm-embed, whitened by other sentences and by those that it encodes."""
    from local_llm_embed.whitener import Whitener

    raw = cache(lambda sentences: embedder._embed_raw(list(sentences), show_progress=False))  # once for both
    fitted = Whitener.fit(raw(tuple(statistics)))

    def by_own(sentences: Sequence[str]) -> Embeddings:
        embeddings = raw(tuple(sentences))
        return np.asarray(Whitener.fit(embeddings).transform(embeddings))

    yield f"{name}, whitened by other sentences", lambda sentences: np.asarray(fitted.transform(raw(tuple(sentences))))
    yield f"{name}, whitened by the task's own", by_own


def llemb(model: str) -> Iterator[tuple[str, Encode]]:
    """Yields llemb's default, the mean of the tokens, and its three prompts."""
    from llemb import Encoder

    encoder = Encoder(model, device="cpu", dtype="float32")
    for prompt in (None, "prompteol", "pcoteol", "ke"):

        def encode(sentences: Sequence[str], prompt: str | None = prompt) -> Embeddings:
            return encoder.encode(list(sentences), prompt_template=prompt, batch_size=_BATCH).float().numpy()

        yield f"llemb, {prompt or 'default'}", encode


def peers(arguments: argparse.Namespace) -> Iterator[tuple[str, Encode]]:
    """Yields the name and the encoding function of each peer that is asked for and installed."""
    if arguments.encoder and "encoder" in arguments.only:
        yield arguments.encoder, SentenceTransformer(arguments.encoder, device="cpu").encode
    if find_spec("local_llm_embed") and "local-llm-embed" in arguments.only:
        yield from local_llm_embed(arguments.model, read_all_sentences(arguments.statistics))
    if find_spec("llemb") and "llemb" in arguments.only:
        yield from llemb(arguments.model)


def main() -> None:
    """Evaluates and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a decoder LLM")
    parser.add_argument("--data-dir", required=True, help="folder in SentEval's layout")
    parser.add_argument("--statistics", required=True, metavar="FILE", help="sentences to whiten by")
    parser.add_argument("--encoder", help="a model of sentence-transformers")
    parser.add_argument("--only", nargs="+", choices=_PEERS, default=_PEERS, help="peers to evaluate")
    parser.add_argument("--tasks", nargs="*", choices=STS_TASKS, default=STS_TASKS, help="beside STS-B dev")
    parser.add_argument("--output", help="table to write: .md, .csv or .json")
    arguments = parser.parse_args()

    tasks = [StsTask(arguments.data_dir, name) for name in (STS_DEV_TASK, *arguments.tasks)]
    averages = ["STS avg"] if arguments.tasks else []
    lines = [["peer", *(task.name for task in tasks), *averages]]
    for name, encode in peers(arguments):
        lines.append([name, *to_cells([task.score(encode(task.sentences)) for task in tasks])])
        print(*lines[-1], flush=True)
    print(to_markdown(lines, text_columns=("peer",)), end="")
    if arguments.output:
        save_table(lines, arguments.output, text_columns=("peer",))


if __name__ == "__main__":
    main()
