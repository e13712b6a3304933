"""`SentenceTransformerEmbeddingFunction(model_name=folder)`."""

from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction


def embed(folder, sentences):
    return SentenceTransformerEmbeddingFunction(model_name=folder, device="cpu")(sentences)
