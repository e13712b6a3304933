"""`Embeddings(path=folder)`."""

from txtai import Embeddings


def embed(folder, sentences):
    return Embeddings(path=folder, gpu=False).batchtransform(sentences)
