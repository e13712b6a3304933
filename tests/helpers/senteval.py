"""A tiny SentEval, and models to evaluate on it."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from .sentences import WORDS


def build_senteval(folder: Path) -> Path:
    """A tiny folder in SentEval's layout: STS-B and MR, made of a few words."""
    rng = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS.split(), size=rng.integers(3, 8)))

    sts_b = folder / "STS" / "STSBenchmark"
    sts_b.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        rows = (f"g\tf\t2012\t{n}\t{rng.uniform(0, 5):.3f}\t{sentence()}\t{sentence()}\n" for n in range(40))
        (sts_b / f"sts-{split}.csv").write_text("".join(rows), encoding="utf-8")
    (folder / "MR").mkdir()
    for name in ("neg", "pos"):
        lines = "".join(f"{name} {sentence()}\n" for _ in range(40))
        (folder / "MR" / f"rt-polarity.{name}").write_text(lines, encoding="latin-1")
    return folder


def archive(path: Path, **members: str | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name.replace("__", "/"))
            data = b"" if isinstance(content, tarfile.TarInfo) else content.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class WordVectors:
    """A model whose embedding is the sum of one fixed random vector per word."""

    device = torch.device("cpu")

    def __init__(self, dim=10, dtype=np.float32):
        self.dim, self.dtype, self.calls = dim, dtype, []

    def encode(self, sentences, *, batch_size=32, show_progress_bar=False):
        self.calls.append(list(sentences))
        return np.stack([self.vector(sentence) for sentence in sentences]).astype(self.dtype)

    def vector(self, sentence):
        words = [np.random.default_rng(zlib.crc32(w.encode())).standard_normal(self.dim) for w in sentence.split()]
        return np.sum(words, axis=0) if words else np.zeros(self.dim)


def mean_pooled(stories: str) -> SentenceTransformer:
    transformer = Transformer(stories)
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    return SentenceTransformer(modules=[transformer, Pooling(64, pooling_mode="mean")], device="cpu")
