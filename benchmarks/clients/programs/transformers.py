"""`AutoTokenizer` and `AutoModel`, the last token by the attention mask."""

import torch
from transformers import AutoModel, AutoTokenizer


def embed(folder, sentences):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return hidden[range(len(sentences)), inputs["attention_mask"].sum(dim=1) - 1]
