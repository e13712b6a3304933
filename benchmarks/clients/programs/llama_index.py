"""`HuggingFaceEmbedding(folder)`."""

from llama_index.embeddings.huggingface import HuggingFaceEmbedding


def embed(folder, sentences):
    return HuggingFaceEmbedding(model_name=folder, device="cpu").get_text_embedding_batch(sentences)
