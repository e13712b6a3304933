"""From sentences to tokens: what a tokenizer can take, and a template written as its chat template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from st_prompteol.template import PromptTemplate

# Sentences whose token ids decide how the BOS is written into a chat template: a plain word, a digit, a quote, what
# a tokenizer may normalise at the start of a text, and nothing at all
_PROBES = ("A jockey riding a horse.", "7", '"Quoted"', "  spaced", "\n", "😀 x", "")


def tokenizable(sentence: Any) -> str:
    """Returns the sentence, lone surrogates, which no tokenizer takes, as U+FFFD; TypeError for what is no string."""
    if not isinstance(sentence, str):
        raise TypeError(
            f"PromptEOL embeds strings, but got {sentence!r:.80} ({type(sentence).__name__}): convert or drop it."
        )
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return sentence.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return sentence


def tokenize_plainly(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the token ids of `text` with the tokenizer's BOS, if it puts one in front, and never an EOS."""
    ids: list[int] = tokenizer(text)["input_ids"]
    appends_eos = tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id
    return ids[:-1] if appends_eos else ids


def write_chat_template(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> str:
    """Writes `template` for this tokenizer, with the BOS spelled so that the ids are those of the plain call."""
    bos = tokenizer.bos_token or ""
    expected = [tokenize_plainly(tokenizer, template.render(probe)) for probe in _PROBES]
    for prefix in dict.fromkeys((bos, f"{bos} ", "")):
        chat_template = template.to_chat_template(prefix)
        conversations = [[{"role": "user", "content": probe}] for probe in _PROBES]
        rendered = tokenizer.apply_chat_template(conversations, chat_template=chat_template, return_dict=True)
        if rendered["input_ids"] == expected:
            return chat_template
    raise ValueError(
        f"The tokenizer of {tokenizer.name_or_path!r} gives other token ids for a chat template than for plain text "
        f"(BOS {bos!r}), so a saved model would embed other text: use another tokenizer of this model."
    )
