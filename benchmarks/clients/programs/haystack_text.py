"""`SentenceTransformersTextEmbedder(folder)`."""

from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder


def embed(folder, sentences):
    device = ComponentDevice.from_str("cpu")
    embedder = SentenceTransformersTextEmbedder(model=folder, device=device, progress_bar=False)
    embedder.warm_up()
    return [embedder.run(sentence)["embedding"] for sentence in sentences]
