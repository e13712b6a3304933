"""`SetFitModel.from_pretrained(folder)`, its body."""

from setfit import SetFitModel


def embed(folder, sentences):
    return SetFitModel.from_pretrained(folder, device="cpu").encode(sentences)
