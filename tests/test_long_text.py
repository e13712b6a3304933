"""Texts of any length: the same token ids as without the cut, in little time and memory."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from st_prompteol.prompt.template import TEMPLATES, PromptTemplate
from st_prompteol.prompt.tokenizer import TemplateTokenizer

from . import SHARED
from .helpers.processes import run_program

TOKENIZERS = {
    "stories260k": str(SHARED / "hub/models/tinyllamas/stories260k"),
    **{name: str(SHARED / "tokenizers" / name) for name in ("opt", "llama2", "llama3")},
}


def texts(chooser: random.Random) -> list[str]:
    """Long runs of anything, which a tokenizer may read in one piece."""
    alphabets = [
        "ab ",
        "word other, end. ",
        "-",
        "=*",
        " ",
        "\n",
        "日本語の文",
        "é😀",
        "1234567890",
        "\u0301x",
        "\u200b\t",
    ]
    made = ["".join(chooser.choices(one, k=chooser.randrange(900, 5000))) for one in alphabets for _ in range(3)]
    made += ["".join(chooser.choice(made)[: chooser.randrange(400)] for _ in range(20)) for _ in range(20)]
    # what preparing a sentence changes, so that another number of tokens is read
    made += ['"' * 3000 + " end", '" ' * 2000, 'He said "no". ' * 400, "?" * 3000, "a" * 1500 + "?" + " " * 4000]
    made += ["</s> a " * 600, "1" * 3000, "e\u0301" * 1500, "x\u0301\u0323" * 1200, "word " * 100 + " " * 5000 + "?"]
    return [*made, " " * 3000 + "x" * 3000, "x" * 3001, "ab" * 2000 + "?", *('"' * (2000 + n) for n in range(3))]


@pytest.mark.shared
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", ["prompteol", "summarize"])
@pytest.mark.slow
def test_a_text_that_is_cut_before_has_the_same_tokens(name: str, template: str) -> None:
    tokenizer = TemplateTokenizer.of(AutoTokenizer.from_pretrained(TOKENIZERS[name]))
    tokenizer.template = TEMPLATES[template]
    for text in texts(random.Random(0)):
        for length in (24, 60):
            options = {"truncation": True, "max_length": length}
            whole = PreTrainedTokenizerFast.__call__(tokenizer, text, **options)["input_ids"]
            assert tokenizer(text, **options)["input_ids"] == whole
            assert tokenizer([text, "short"], **options)["input_ids"][0] == whole


def test_it_is_the_prepared_text_that_is_cut() -> None:
    """Quotation marks of a text are more tokens than the ones that the template makes of them."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", *map(chr, range(32, 127))])}
    merges = [("'" * size, "'" * size) for size in (1, 2, 4, 8)]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer = TemplateTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    tokenizer.template = PromptTemplate("{sentence}")
    text = '"' * 5000 + "s"
    options = {"truncation": True, "max_length": 200}
    whole = PreTrainedTokenizerFast.__call__(tokenizer, text, **options)["input_ids"]
    assert len(whole) == 200
    assert tokenizer(text, **options)["input_ids"] == whole


@pytest.mark.slow
def test_megabytes_take_neither_time_nor_memory() -> None:
    done = run_program("encode_megabytes")
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 100_000  # 5 MB of text took 1.4 GB
    assert seconds < 2
