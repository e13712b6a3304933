"""Templates built into tokenizers.

`tokenizer.json` contains the whole template, so every program that loads the file applies it. The normalizer
preprocesses the sentence, prepends the template's head and appends the first words of its tail. The post-processor
prepends the BOS token, as in the base's tokenizer, and appends the rest of the tail, because truncation never removes
tokens of a post-processor. `tokenizer_config.json` contains a readable copy of the template.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice, takewhile
from typing import Any

from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from st_prompteol.files.atomic import replacing_file
from st_prompteol.llm.lock import Lock
from st_prompteol.prompt.long_text import Shortener, is_long
from st_prompteol.prompt.template import HOLE, PromptTemplate
from st_prompteol.prompt.tokenizer_json import (
    copy_tokenizer,
    ids_in_front,
    normalizer_of,
    post_processor,
    read_special_tokens_as_text,
    replace_regex,
    replace_text,
    respelled,
    steps_of,
    words_of,
)

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "prompteol"  # the template's key in `tokenizer_config.json`
# Start and end of a text in every dialect of regular expressions (JavaScript reads `\z` as a letter)
_START, _END = r"(?<![\s\S])", r"(?![\s\S])"
_CLOSE = _END + r"(?<=[\s\S])"  # JavaScript also finds an end inside an emoji, but no character before it
_UNENDED = "(?<=[^.?\"'])"  # after a character to which the paper appends a period
# The white space that `str.strip` removes
_BLANK = r"[\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# Test sentences on which a tokenizer with a template must return the ids of the rendered text: they begin and end with
# characters that a tokenizer may join with those of the template
_PROBES = (
    "A jockey riding a horse.", "7", '"Quoted"', "  spaced ", "\n", "x\n\n", "😀", "x 😀", "it's", "'", "''", "?", "!",
    "a:", "a,", "(b)", "[c]", "{d}", "<e>", "/", "\\", "-", "--", "…", "’", "”", "。", "说话", "日本語",
    "é", "e\u0301", "\t", "\u00a0", "\u3000", "▁", "▁x▁", "Ġ", "Ġx", "##a", "$A", "10%", "x=1", "Ünïcödé", "मूल",
    "שלום", "\u200b",
)  # fmt: skip
# Marks added words in `tokenizer.json`: tokenizers also apply the normalizer to these words, which then leaves out the
# template. Unicode reserves this character for internal use, so texts do not contain it.
_MARK = "\ufdd0"
_FILLERS = ["0.", "1 2 3'"]  # sentences that begin and end differently, also after preprocessing
_BATCH = {"padding": True, "truncation": "longest_first", "return_tensors": "pt"}  # sentence-transformers' arguments
_NO_LIMIT = 2**31  # tokens
_SEAMS = 6  # positions to try for splitting the tail


class TemplateTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that puts every sentence into a template. Created by `TemplateTokenizer.of`.

    Special tokens (`</s>`) in a sentence are tokenized as plain text, so that no sentence can break out of the
    template; in the template itself they are special tokens. Words that were added to the vocabulary stay single
    tokens. Normalizers cannot prepend to an empty string (with the paper's preprocessing also a blank one), so it is
    encoded as BOS plus the end of the template, here and in every other client.

    Attributes:
        plain: The base's tokenizer, without template or special tokens.
        bos: Token ids before every text.
    """

    plain: Tokenizer
    bos: list[int]
    # Token ids up to the end of the demonstrations, and a tokenizer for the rest of the text
    _behind: tuple[list[int], Tokenizer] | None = None
    _shortener: Shortener | None = None
    _lock: Lock  # a backend holds truncation and padding of the last call

    @classmethod
    def of(cls, base: PreTrainedTokenizerBase) -> TemplateTokenizer:
        """Creates the tokenizer of a base LLM (without a template yet) or of a saved model (with its template).

        Args:
            base: The tokenizer as returned by `AutoTokenizer`. It must not be used afterwards.

        Raises:
            ValueError: If `base` has no `tokenizer.json`, or its template differs from that in its configuration.
        """
        if not isinstance(base, PreTrainedTokenizerFast):
            raise ValueError(
                f"The tokenizer of {base.name_or_path!r} ({type(base).__name__}) has no tokenizer.json, of which a "
                "template could become part: take a model that has one, or convert its tokenizer to one."
            )
        plain = base.backend_tokenizer
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = False
        stated = read_template(base)
        read_special_tokens_as_text(plain, is_base=stated is None)
        names = base.special_tokens_map.items()
        tokenizer = cls(
            tokenizer_object=plain,  # makes a copy
            name_or_path=base.name_or_path,
            model_max_length=base.model_max_length,
            model_input_names=["input_ids", "attention_mask"],
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            padding_side="right",
            truncation_side="right",
            **{name: token for name, token in names if name in cls.SPECIAL_TOKENS_ATTRIBUTES},
            **({} if stated is None else {TEMPLATE_KEY: stated}),
        )
        if tokenizer.pad_token is None:  # the attention mask hides padding, so any token works
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        tokenizer.plain, tokenizer._lock = plain, Lock()
        tokenizer.bos = ids_in_front(plain) if stated is None else tokenizer._take_out_template()
        tokenizer.plain.post_processor = None
        if (template := tokenizer.template) is not None:
            probes = tokenizer._probe(template)
            near, _, far = tokenizer._divide(template, probes)
            tokenizer._set_demonstrations_apart(template, probes, near, far)
        return tokenizer

    @property
    def template(self) -> PromptTemplate | None:
        """The prompt template, None for the tokenizer of a base LLM. Assign a `PromptTemplate` to change it.

        Raises:
            ValueError: On assignment, if the token ids differ from those of the rendered text.
        """
        stated = read_template(self)
        return None if stated is None else PromptTemplate.from_dict(stated)

    @template.setter
    def template(self, template: PromptTemplate) -> None:
        probes = self._probe(template)
        near, front, far = self._divide(template, probes)
        backend = self.backend_tokenizer
        backend.normalizer = normalizer_of([*self._steps(template, near), *steps_of(self.plain)])
        backend.post_processor = post_processor(self.plain, [*self.bos, *front], far)
        if words_of(self.plain):
            self._tokenizer = respelled(backend, lambda word: f"{_MARK}{word.strip(_MARK)}{_MARK}")
            self._check_words(template)
        self.init_kwargs[TEMPLATE_KEY] = {**self.init_kwargs.get(TEMPLATE_KEY, {}), **template.to_dict()}
        self._set_demonstrations_apart(template, probes, near, far)
        self.__dict__.pop("head_ids", None)

    def copy(self) -> TemplateTokenizer:
        """Returns a tokenizer with settings of its own; the vocabulary is shared."""
        memo: dict[int, Any] = {id(part): part for part in (self.plain, self._shortener)}
        memo |= {id(part): copy_tokenizer(part) for part in (self.backend_tokenizer, *(self._behind or ())[1:])}
        return copy.deepcopy(self, memo)

    @cached_property
    def head_ids(self) -> tuple[int, ...]:
        """The token ids of BOS, demonstrations and template before every sentence."""
        return tuple(self.tokenize_template()[0])

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Tokenizes texts like upstream, but reuses the token ids of the demonstrations for every row.

        A long text that would be truncated is shortened before it is tokenized.
        """
        length = kwargs.get("max_length") or self.model_max_length
        is_batch = isinstance(text, list) and all(isinstance(one, str) for one in text)
        if kwargs.get("truncation") and length and (is_batch or isinstance(text, str)):
            text = [self._shorten(one, length) for one in text] if is_batch else self._shorten(text, length)
        with self._lock:
            if self._behind and is_batch and not args and kwargs == _BATCH and all(map(str.strip, text)):
                return self._tokenize_behind(*self._behind, text)
            return super().__call__(text, *args, **kwargs)

    def _shorten(self, text: str, length: int) -> str:
        """Shortens a text without a change of its first `length` tokens in the template."""
        if not is_long(text, length):
            return text
        if self._shortener is None:
            plain = copy_tokenizer(self.plain)
            plain.encode_special_tokens = True  # as in a sentence
            self._shortener = Shortener(plain)
        template = self.template
        lead = "" if template is None else self._lead(template)

        def prepare(beginning: str) -> str:
            if template is not None and template.preprocessing == "paper":  # may change the last character
                beginning = beginning.strip()[:-1].replace('"', "'")
            return lead + beginning

        return self._shortener.shorten(text, length, prepare)

    def _tokenize_behind(self, head: list[int], behind: Tokenizer, texts: list[str]) -> BatchEncoding:
        behind.enable_truncation(min(self.model_max_length, _NO_LIMIT) - len(head))
        behind.enable_padding(pad_id=self.pad_token_id, pad_token=str(self.pad_token))
        rows = behind.encode_batch_fast(texts)
        ids, mask = [[*head, *row.ids] for row in rows], [[*([1] * len(head)), *row.attention_mask] for row in rows]
        return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type="pt")

    @property
    def _mark(self) -> str:
        return _MARK if words_of(self.plain) else ""

    @property
    def _close(self) -> str:
        """The regular expression for the end of a sentence, where the tail is inserted."""
        return f"{_END}(?<=[^{self._mark}])" if self._mark else _CLOSE

    def _check_words(self, template: PromptTemplate) -> None:
        """Raises ValueError if added words are tokenized differently in the template than in the rendered text."""
        words = list(words_of(self.plain).values())
        for word in {*words[:2], *words[-2:]}:
            for probe in (f"x {word} y", word, f"a{word}b.", f"{word}{word}'s", f"x {word}\n"):
                if self.backend_tokenizer.encode(probe).ids != self.tokenize_plainly(template.render(probe)):
                    raise ValueError(
                        f"The word {word!r} that was added to the tokenizer of {self.name_or_path!r} cannot be kept "
                        "inside a template: train it as one of the model's own tokens, or add it as a special token, "
                        "which is text in sentences."
                    )

    def _probe(self, template: PromptTemplate) -> dict[str, tuple[str, list[int]]]:
        """Returns the rendered text and the token ids of every test sentence."""
        rendered = {probe: template.render(probe) for probe in _PROBES}
        return {probe: (text, self._plain_ids(text)) for probe, text in rendered.items()}

    def _set_demonstrations_apart(
        self, template: PromptTemplate, probes: dict[str, tuple[str, list[int]]], near: str, far: list[int]
    ) -> None:
        """Stores the token ids of the demonstrations if they do not depend on the sentence."""
        self._behind = None
        before = template.text.partition(HOLE)[0] if template.demonstrations else ""
        if not before or len(before) > len(self._lead(template)):
            return
        head = self.tokenize_plainly(template.head[: -len(before)])
        behind = copy_tokenizer(self.backend_tokenizer)
        behind.normalizer = normalizer_of([*self._steps(template, near, before), *steps_of(self.plain)])
        behind.post_processor = post_processor(self.plain, [], far)
        behind.encode_special_tokens = True
        if all(
            [*head, *behind.encode(probe).ids] == [*self.bos, *ids]
            for probe, (_, ids) in probes.items()
            if probe.strip()
        ):
            self._behind = head, behind

    def tokenize_template(self) -> tuple[list[int], list[int]]:
        """Returns the token ids before every sentence (BOS, demonstrations, template) and those after it."""
        first, second = self(_FILLERS)["input_ids"]
        front, behind = (
            [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*rows, strict=False))]
            for rows in ((first, second), (first[::-1], second[::-1]))
        )
        return front, behind[::-1]

    def tokenize_plainly(self, text: str) -> list[int]:
        """Returns the token ids of `text` without the template, with the BOS token."""
        return [*self.bos, *self._plain_ids(text)]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:  # type: ignore[override]
        """Saves `tokenizer.json` and `tokenizer_config.json` in a format that transformers 4 also reads."""
        with self._lock:
            self.backend_tokenizer.no_truncation()  # set by the last call
            self.backend_tokenizer.no_padding()
            files: tuple[str, ...] = super().save_pretrained(save_directory, **kwargs)
        path = os.path.join(save_directory, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 does not know the name in 5
        with replacing_file(path) as staged:
            staged.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return files

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.plain.encode(text, add_special_tokens=False).ids
        return ids

    def _lead(self, template: PromptTemplate) -> str:
        """The part of the head that a normalizer can prepend: the text after its last added token."""
        contents = (token.content.strip(_MARK) for token in self.plain.get_added_tokens_decoder().values())
        ends = (template.head.rfind(content) + len(content) for content in contents if content in template.head)
        return template.head[max(ends, default=0) :]

    def _steps(self, template: PromptTemplate, near: str, lead: str | None = None) -> list[dict[str, Any]]:
        """The normalizers, as in `tokenizer.json`, that preprocess a sentence and add text around it.

        Args:
            template: The template.
            near: The text to append to the sentence.
            lead: The text to prepend. Defaults to None: the part of the head after its last added token.
        """
        steps: list[dict[str, Any]] = []
        mark = self._mark
        if template.preprocessing == "paper":
            steps += [replace_regex(f"{_START}{_BLANK}+", ""), replace_regex(f"(?<!{_BLANK}){_BLANK}+{_END}", "")]
            steps += [
                replace_regex(_UNENDED.replace("^", f"^{mark}") + _END, "."),
                replace_text('"', "'"),
                replace_regex(rf"\?{_END}", "."),
            ]
        if lead := self._lead(template) if lead is None else lead:
            steps.append({"type": "Prepend", "prepend": lead})
        if near:
            steps.append(replace_regex(self._close, near))
        if mark and lead:
            literal = re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", lead)
            steps.append(replace_regex(rf"{_START}{literal}(?={mark}[\s\S]*{mark}{_END})", ""))
        if mark:
            steps.append(replace_text(mark, ""))
        return steps

    def _divide(
        self, template: PromptTemplate, probes: dict[str, tuple[str, list[int]]]
    ) -> tuple[str, list[int], list[int]]:
        """Finds the position at which the tail can be split without a change of the token ids.

        Returns:
            The part of the tail to append as text; the token ids of the part of the head to prepend as tokens; the
            token ids of the rest of the tail.
        """
        lead, head, tail = self._lead(template), template.head, template.tail
        front = self._plain_ids(head[: len(head) - len(lead)])
        whole = [ids for _, ids in probes.values()]
        sentences = [text[len(head) : len(text) - len(tail)] for text, _ in probes.values()]
        for seam in _seams(tail, [token.content for token in self.plain.get_added_tokens_decoder().values()]):
            near = tail[:seam]
            inner = [[*front, *self._plain_ids(f"{lead}{sentence}{near}")] for sentence in sentences]
            far = whole[0][len(inner[0]) :]
            if all(ids == [*own, *far] for ids, own in zip(whole, inner, strict=True)):
                if tail and not far:
                    logger.warning(
                        "With the tokenizer of %r a sentence that is too long loses the end of the template too: %r.",
                        self.name_or_path,
                        tail,
                    )
                return near, front, far
        raise ValueError(
            f"The tokenizer of {self.name_or_path!r} gives other token ids with the template {template.text!r} inside "
            "than for the rendered text, so a saved model would embed other text: use another tokenizer of this "
            "model, or another template."
        )

    def _take_out_template(self) -> list[int]:
        """Removes the template of a saved model from the plain tokenizer, and returns the BOS token ids.

        Raises:
            ValueError: If the tokenizer does not apply the template in its configuration.
        """
        template = PromptTemplate.from_dict(self.init_kwargs[TEMPLATE_KEY])
        steps = steps_of(self.plain)
        near = next((step["content"] for step in steps if step.get("pattern") == {"Regex": self._close}), "")
        own = self._steps(template, near)
        if steps[: len(own)] == own:
            rest = steps[len(own) :]
            self.plain.normalizer = normalizer_of(rest)
            self.plain.post_processor = None
            self.plain = respelled(self.plain, lambda word: word.strip(_MARK))
            probes = [probe for probe in _PROBES if probe.strip()]  # blank ones may become empty strings
            whole = [self._plain_ids(template.render(probe)) for probe in probes]
            made = [self.backend_tokenizer.encode(probe).ids for probe in probes]
            bos: list[int] = made[0][: max(0, len(made[0]) - len(whole[0]))]
            if all(ids == [*bos, *plain] for ids, plain in zip(made, whole, strict=True)):
                return bos
        raise ValueError(
            f"The tokenizer of {self.name_or_path!r} does something else than the template that its "
            f"tokenizer_config.json states, {template.text!r}: take both files from the same save of the model."
        )


def read_template(tokenizer: Any) -> dict[str, Any] | None:
    """Returns the template in a tokenizer's configuration, in the format of `PromptTemplate.to_dict`, or None."""
    stated: dict[str, Any] | None = getattr(tokenizer, "init_kwargs", {}).get(TEMPLATE_KEY)
    return stated


def tokenizable(sentence: Any) -> str:
    """Replaces lone surrogates, which tokenizers reject, with U+FFFD; raises TypeError unless given a string."""
    if not isinstance(sentence, str):
        raise TypeError(
            f"PromptEOL embeds strings, but got {sentence!r:.80} ({type(sentence).__name__}): convert or drop it."
        )
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return sentence.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return sentence


def _seams(tail: str, added_tokens: Sequence[str]) -> Iterator[int]:
    """Yields positions at which a tail may be split, from the start, and its end.

    These are starts of words, including the space before them, because tokenizers do not join words; and they come
    before the first added token.
    """
    end = min((tail.index(token) for token in added_tokens if token in tail), default=len(tail))
    starts = (
        place
        for place, (before, here) in enumerate(zip(f"x{tail}", tail, strict=False))
        if (here.isspace() and not before.isspace())
        or (here.isalnum() and not before.isalnum() and not before.isspace())
    )
    yield from islice((place for place in starts if place < end), _SEAMS)
    yield end
