"""`BERTopic(embedding_model=folder)`, its backend."""

from bertopic.backend._utils import select_backend


def embed(folder, sentences):
    return select_backend(folder).embed(sentences)
