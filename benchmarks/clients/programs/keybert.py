"""`KeyBERT(model=folder)`, its backend."""

from keybert import KeyBERT


def embed(folder, sentences):
    return KeyBERT(model=folder).model.embed(sentences)
