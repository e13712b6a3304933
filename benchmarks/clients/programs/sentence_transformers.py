"""`SentenceTransformer(folder)`."""

from sentence_transformers import SentenceTransformer


def embed(folder, sentences):
    return SentenceTransformer(folder, device="cpu").encode(sentences)
