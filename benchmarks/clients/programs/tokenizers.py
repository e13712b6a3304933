"""`Tokenizer.from_file(folder/tokenizer.json)`."""

import json

from tokenizers import Tokenizer


def embed(folder, sentences):
    tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
    with open(folder + "/tokenizer_config.json", encoding="utf-8") as file:
        tokenizer.enable_truncation(json.load(file)["model_max_length"])
    return [tokenizer.encode(sentence).ids for sentence in sentences]
