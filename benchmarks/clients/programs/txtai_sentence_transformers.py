"""`Embeddings(path=folder, method="sentence-transformers")`."""

from txtai import Embeddings


def embed(folder, sentences):
    return Embeddings(path=folder, gpu=False, method="sentence-transformers").batchtransform(sentences)
