"""A template inside a tokenizer against the base tokenizer's own plain call of the rendered text.

Special tokens in a sentence are text; the base's tokenizer is told so by its own option. What no normaliser puts text
around, the empty string and with the paper's preprocessing a blank one, has a test of its own.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from st_prompteol import TINY, Demonstration, PromptTemplate
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, read_task
from st_prompteol.prompt.tokenizer import TemplateTokenizer, read_template

from . import SHARED
from .helpers.sentences import JOCKEY, VENISON
from .helpers.tokenizers import build_tokenizer

SHOTS = (JOCKEY, VENISON, Demonstration('He said: "no"', "Refusal"), Demonstration("un café à 3,50 €", "Boisson")) * 4
FOLDERS = {
    "tiny": TINY,
    "stories260k": str(SHARED / "hub/models/tinyllamas/stories260k"),
    **{name: str(SHARED / "tokenizers" / name) for name in ("opt", "llama2", "llama3")},
}
TEXTS = [
    'This sentence : "{sentence}" means in one word:"',
    "{sentence}",
    "{sentence} means",
    "Sentence: {sentence}",
    '"{sentence}"',
    "  {sentence}  ",
    "这句话：“{sentence}”用一个词概括：“",
    "a{{sentence}}b (.*)+\\d$ ^[x]{2}|'y' {x}",
    "<a href='{sentence}'>é ñ 😀\n\n\tend",
    "Café « {sentence} » signifie : «",
]
SPECIAL = ["</s>", "<s>", "<unk>", "<pad>", "<|begin_of_text|>", "<|eot_id|>", "</s></s>", "x </s> y", "<s>x"]
ODD = [
    'He said "no"', "why?", "wow!", "end.", "it's'", " ", "  ", "\n", "\r\n", "a\n", "\na", "a\n\nb", "\t",
    "x " * 20, "😀", "a 😀 ", "🏳️‍🌈", "日本語。", "说话", "שלום", "مرحبا", "e\u0301", "\u0301", "\u200b", "\ufeff",
    "\xa0", "\u3000 x", "{sentence}", "{{ x }}", "%s", "\\", "\\n", "\\1", "$A", "$0", "▁", "▁▁x", "Ġ", "Ċ", "##x",
    "\x00", "\x1c", "\x85", "'", '"', '""', "?", "??", ".", "...", "…", "”", "'?", '"?', "?'", "¿", "؟", "？", "a?\n",
    'x"', "x”", "x'",
]  # fmt: skip


@cache
def base(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer without our template; the packaged model's own would put it around everything."""
    if name == "tiny":
        tokenizer = json.loads(Path(TINY, "tokenizer.json").read_text(encoding="utf-8"))
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        tokenizer["post_processor"]["single"] = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
        tokenizer["normalizer"] = None
        backend = Tokenizer.from_str(json.dumps(tokenizer))
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return AutoTokenizer.from_pretrained(FOLDERS[name])


@cache
def opened(name: str) -> TemplateTokenizer:
    return TemplateTokenizer.of(AutoTokenizer.from_pretrained(FOLDERS[name]))


def ours(name: str, template: PromptTemplate) -> TemplateTokenizer:
    tokenizer = opened(name)
    tokenizer.template = template
    return tokenizer


def oracle(name: str, template: PromptTemplate, sentences: list[str]) -> list[list[int]]:
    texts = [template.render(sentence) for sentence in sentences]
    ids: list[list[int]] = base(name)(texts, split_special_tokens=True)["input_ids"]
    return ids


def assert_same(name: str, template: PromptTemplate, sentences: list[str]) -> None:
    sentences = worded(template, sentences)
    assert ours(name, template)(sentences)["input_ids"] == oracle(name, template, sentences)


def worded(template: PromptTemplate, sentences: list[str]) -> list[str]:
    """The sentences of which something is left for a normaliser to put text around."""
    return [sentence for sentence in sentences if template.preprocessing == "none" or sentence.strip()]


def odd_strings(number: int, seed: int) -> list[str]:
    """Strings of whatever a sentence may hold, from a fixed seed."""
    rng = random.Random(seed)
    pieces = [*ODD, *SPECIAL, "A jockey", "riding", "a horse", ", ", ". ", "-", "--", "3.14", "10,000", "McDonald's"]
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x400, 0x530), (0x2000, 0x2070), (0x3000, 0x3100)]

    def piece() -> str:
        if rng.random() < 0.5:
            return rng.choice(pieces)
        start, end = rng.choice([*ranges, (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0xD7FF)])
        return "".join(chr(rng.randrange(start, end)) for _ in range(rng.randrange(1, 8)))

    return ["".join(piece() for _ in range(rng.randrange(1, 6))) for _ in range(number)]


@cache
def senteval_sentences() -> list[str]:
    found: dict[str, None] = {}
    for task in (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS):
        for examples in read_task(SHARED / "senteval", task).values():
            found |= dict.fromkeys(sentence for column in examples.columns for sentence in column)
    return [sentence for sentence in found if sentence]


BOTH = pytest.mark.parametrize("preprocessing", ["paper", "none"])
MARKS = {"stories260k": [pytest.mark.shared, pytest.mark.slow], "llama3": [pytest.mark.shared, pytest.mark.slow]}
NAMES = ["tiny", *(pytest.param(name, marks=MARKS.get(name, pytest.mark.shared)) for name in list(FOLDERS)[1:])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shots", [0, 16])
@BOTH
def test_odd_strings_have_the_ids_of_the_rendered_text(name: str, shots: int, preprocessing: Any) -> None:
    template = PromptTemplate(demonstrations=SHOTS[:shots], preprocessing=preprocessing)
    assert_same(name, template, [*ODD, *SPECIAL, *odd_strings(100 if shots < 16 else 30, seed=shots)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
@BOTH
def test_templates_of_one_s_own_too(name: str, text: str, preprocessing: Any) -> None:
    template = PromptTemplate(text, preprocessing=preprocessing)
    assert_same(name, template, [*ODD, *SPECIAL, *odd_strings(60, seed=len(text))])


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), st.sampled_from(TEXTS))
def test_whatever_text(sentence: str, text: str) -> None:
    assert_same("tiny", PromptTemplate(text), [sentence, f" {sentence}\t", f"x{sentence}"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", list(FOLDERS))
@BOTH
@pytest.mark.parametrize(
    ("every", "shots"),
    [
        pytest.param(40, 1, id="some"),
        *(pytest.param(1, n, id=f"all-{n}", marks=pytest.mark.long) for n in (0, 1, 16)),
    ],
)
def test_sentences_of_senteval_and_odd_ones(name: str, shots: int, preprocessing: Any, every: int) -> None:
    template = PromptTemplate(demonstrations=SHOTS[:shots], preprocessing=preprocessing)
    assert len(senteval_sentences()) > 100_000
    sentences = [*senteval_sentences()[::every], *odd_strings(10_000 // every, seed=7)]
    for start in range(0, len(sentences), 5000):
        assert_same(name, template, sentences[start : start + 5000])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shots", [0, 4])
def test_a_sentence_that_is_too_long_loses_its_own_end(name: str, shots: int) -> None:
    template = PromptTemplate(demonstrations=SHOTS[:shots])
    tokenizer = ours(name, template)
    long = "word and another " * 200
    (whole,) = oracle(name, template, [long])
    # the tail behind the quote, which is tokenised with the sentence's own end
    far = base(name)('x" means in one word:"')["input_ids"][len(base(name)('x"')["input_ids"]) :]
    limit = len(oracle(name, template, ["x"])[0]) + 20
    (row,) = tokenizer([long], truncation=True, max_length=limit)["input_ids"]
    assert row == [*whole[: limit - len(far)], *far]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "shots", "preprocessing"),
    [
        (TEXTS[0], 16, "paper"),
        (TEXTS[0], 16, "none"),
        (TEXTS[2], 1, "none"),
        (TEXTS[5], 1, "paper"),
        (TEXTS[8], 2, "none"),
    ],
)
def test_demonstrations_that_are_tokenised_once_give_the_same_ids(
    name: str, text: str, shots: int, preprocessing: Any
) -> None:
    tokenizer = ours(name, PromptTemplate(text, SHOTS[:shots], preprocessing))
    if name in ("tiny", "opt", "llama3") and text == TEXTS[0]:  # byte-level: a word begins alike wherever it stands
        assert tokenizer._behind is not None
    longest, sentences = tokenizer.model_max_length, [*ODD, *SPECIAL, "", "word " * 300, *odd_strings(30, seed=shots)]
    tokenizer.model_max_length = len(tokenizer("x")["input_ids"]) + 40
    try:
        for some in (worded(PromptTemplate(), sentences), sentences):  # in the second one some are blank
            expected = tokenizer(some, truncation=True)["input_ids"]
            batch = tokenizer(some, padding=True, truncation="longest_first", return_tensors="pt")
            rows = [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values(), strict=True)]
            assert rows == expected
            assert batch["input_ids"].shape[1] == max(map(len, expected))
    finally:
        tokenizer.model_max_length = longest


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_string_is_the_bos_and_the_end_of_the_tail(name: str) -> None:
    tokenizer = ours(name, PromptTemplate(demonstrations=SHOTS[:1]))
    far = base(name)('x" means in one word:"')["input_ids"][len(base(name)('x"')["input_ids"]) :]
    expected = [base(name)("")["input_ids"][0], *far]
    assert tokenizer(["", " ", "\n\t", "\u3000\x1c"])["input_ids"] == [expected] * 4


def test_a_saved_tokenizer_does_the_same_without_this_package(tmp_path: Path) -> None:
    tokenizer = ours("tiny", PromptTemplate(TEXTS[7], SHOTS[:2]))
    tokenizer("left over", truncation=True, padding="max_length", max_length=90)
    tokenizer.save_pretrained(tmp_path)
    sentences = [*ODD, *SPECIAL, "", *odd_strings(100, seed=1)]
    expected = tokenizer(sentences)["input_ids"]
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert type(stock).__module__.startswith("transformers.")
    assert stock(sentences)["input_ids"] == expected
    assert stock.chat_template is None
    # the tokenizer.json alone is enough, but for special tokens in a sentence
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for sentence, ids in zip(sentences, expected, strict=True):
        if not any(token.content in sentence for token in bare.get_added_tokens_decoder().values()):
            assert bare.encode(sentence).ids == ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_saved_form_is_one_that_older_readers_know(tmp_path: Path) -> None:
    tokenizer = ours("tiny", PromptTemplate(demonstrations=SHOTS[:1]))
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["split_special_tokens"] is True
    assert config["prompteol"] == {
        "text": 'This sentence : "{sentence}" means in one word:"',
        "demonstrations": [{"sentence": "A jockey riding a horse.", "word": "Equestrian"}],
        "preprocessing": "paper",
    }
    parts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    specials = parts["post_processor"]["special_tokens"]
    # readers that look a token up by its name find it in the vocabulary, and one id for it
    names = {**parts["model"]["vocab"], **{token["content"]: token["id"] for token in parts["added_tokens"]}}
    assert all(entry["ids"] == [names[name]] for name, entry in specials.items())


def test_what_is_saved_is_opened_changed_and_saved_again(tmp_path: Path) -> None:
    tokenizer = ours("tiny", PromptTemplate(demonstrations=SHOTS[:3]))
    tokenizer.init_kwargs["prompteol"]["note"] = "kept"
    tokenizer.save_pretrained(tmp_path / "one")
    again = TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path / "one"))
    assert again.template == tokenizer.template
    assert again.bos == tokenizer.bos == [1]
    again.template = PromptTemplate(TEXTS[6])
    sentences = worded(again.template, ODD)
    assert again(sentences)["input_ids"] == oracle("tiny", again.template, sentences)
    again.template = tokenizer.template
    again.save_pretrained(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    assert read_template(again)["note"] == "kept"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tokenizer_config.json", "means in one word", "means in two words"),
        ("tokenizer_config.json", '"preprocessing": "paper"', '"preprocessing": "none"'),
        ("tokenizer_config.json", '"word": "Equestrian"', '"word": "Horse"'),
        ("tokenizer.json", '"prepend": "This', '"prepend": "That'),
        ("tokenizer.json", '"content": "\'"', '"content": "`"'),
        ("tokenizer.json", '"id": "Ġmeans"', '"id": "Ġin"'),
    ],
)
def test_a_template_that_is_not_what_the_tokenizer_does_is_refused(
    tmp_path: Path, file: str, old: str, new: str
) -> None:
    tokenizer = ours("tiny", PromptTemplate(demonstrations=SHOTS[:1]))
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / file).read_text(encoding="utf-8")
    assert old in content
    (tmp_path / file).write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match="does something else than the template that its"):
        TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path))


def test_a_tokenizer_without_a_tokenizer_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")

    class Slow:
        name_or_path = "slow"

    with pytest.raises(ValueError, match=r"has no tokenizer\.json, of which a template could become part"):
        TemplateTokenizer.of(Slow())  # type: ignore[arg-type]


def test_special_tokens_in_a_template_are_the_tokens(tmp_path: Path) -> None:
    plain = build_tokenizer(tmp_path)
    tokenizer = TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path))
    template = PromptTemplate("<unk>user\n{sentence}</s>It is:", preprocessing="none")
    tokenizer.template = template
    for sentence in ("a man", " x ", "\n", "日本"):
        assert tokenizer(sentence)["input_ids"] == plain(template.render(sentence))["input_ids"]
    assert tokenizer("</s>")["input_ids"].count(2) == 1  # the template's own
    tokenizer.save_pretrained(tmp_path / "saved")
    assert TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path / "saved")).template == template


@pytest.mark.parametrize("normalized", [True, False])
def test_runs_of_spaces_that_were_added_are_text_in_a_sentence(tmp_path: Path, normalized: bool) -> None:
    plain = build_tokenizer(tmp_path)
    plain.add_tokens([AddedToken("<think>", normalized=normalized), AddedToken("  ", normalized=normalized)])
    plain.save_pretrained(tmp_path)
    tokenizer = TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path))
    tokenizer.template = PromptTemplate()
    expected = TemplateTokenizer.of(build_tokenizer(tmp_path / "without"))
    expected.template = PromptTemplate()
    tokenizer.save_pretrained(tmp_path / "saved")
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for sentence in ("two  spaces", "  ", "a  </s>"):
        assert tokenizer(sentence)["input_ids"] == expected(sentence)["input_ids"]
        assert stock(sentence)["input_ids"] == expected(sentence)["input_ids"]


def test_an_eos_that_the_base_appends_is_left_out(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    backend = tokenizer.backend_tokenizer
    parts = json.loads(backend.to_str())
    parts["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    parts["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    with_eos = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token="</s>")
    assert with_eos("x")["input_ids"][-1] == 2
    ids = tokenizer(PromptTemplate().render("x"))["input_ids"]
    made = TemplateTokenizer.of(with_eos)
    made.template = PromptTemplate()
    assert made("x")["input_ids"] == ids


@pytest.mark.parametrize("name", NAMES)
def test_decoding_shows_what_the_model_reads(name: str) -> None:
    tokenizer = ours(name, PromptTemplate(demonstrations=SHOTS[:1]))
    ids = tokenizer("A man plays")["input_ids"][len(tokenizer.bos) :]
    assert tokenizer.decode(ids).strip() == PromptTemplate(demonstrations=SHOTS[:1]).render("A man plays")
