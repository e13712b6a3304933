"""`HuggingFaceEmbeddings(model_name=folder)`."""

from langchain_huggingface import HuggingFaceEmbeddings


def embed(folder, sentences):
    return HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu"}).embed_documents(sentences)
