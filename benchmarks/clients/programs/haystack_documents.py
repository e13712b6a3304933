"""`SentenceTransformersDocumentEmbedder(folder)`."""

from haystack import Document
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder


def embed(folder, sentences):
    device = ComponentDevice.from_str("cpu")
    embedder = SentenceTransformersDocumentEmbedder(model=folder, device=device, progress_bar=False)
    embedder.warm_up()
    documents = embedder.run([Document(content=sentence) for sentence in sentences])["documents"]
    return [document.embedding for document in documents]
