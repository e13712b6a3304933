"""A template as part of a tokenizer, and back.

`tokenizer.json` carries the whole template, so that every reader of that file applies it. The normaliser prepares the
sentence as the template says, puts the template's head in front of it and the first words of the tail behind it. The
post-processor adds the BOS in front, as the base's own does, and the rest of the tail behind: truncation never takes
what a post-processor adds. A readable copy of the template stands in `tokenizer_config.json`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from tokenizers import AddedToken, Tokenizer, models
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from st_prompteol.files import replacing_file
from st_prompteol.long_text import Shortener, is_long
from st_prompteol.template import HOLE, PromptTemplate

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "prompteol"  # of `tokenizer_config.json`: the template to read
# The start and the end of a text in every dialect of regular expressions (`\z` is a letter to JavaScript)
_START, _END = r"(?<![\s\S])", r"(?![\s\S])"
_CLOSE = _END + r"(?<=[\s\S])"  # JavaScript finds the end also inside an emoji, but there no character before it
_UNENDED = "(?<=[^.?\"'])"  # behind what the paper appends a full stop to
# What `str.strip` takes away
_BLANK = r"[\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_SENTENCE = {"Sequence": {"id": "A", "type_id": 0}}
# Sentences on which a tokenizer with a template must give the ids of the rendered text: they begin and end in whatever
# a tokenizer may join with the template's own characters
_PROBES = (
    "A jockey riding a horse.", "7", '"Quoted"', "  spaced ", "\n", "x\n\n", "😀", "x 😀", "it's", "'", "''", "?", "!",
    "a:", "a,", "(b)", "[c]", "{d}", "<e>", "/", "\\", "-", "--", "…", "’", "”", "。", "说话", "日本語",
    "é", "e\u0301", "\t", "\u00a0", "\u3000", "▁", "▁x▁", "Ġ", "Ġx", "##a", "$A", "10%", "x=1", "Ünïcödé", "मूल",
    "שלום", "\u200b",
)  # fmt: skip
# Around an added word where `tokenizer.json` lists it: readers put these through the normaliser too, which then leaves
# the template out. No text holds this character, which Unicode has reserved for such uses.
_MARK = "\ufdd0"
_FILLERS = ["0.", "1 2 3'"]  # sentences that begin and end differently, after preprocessing too
_BATCH = {"padding": True, "truncation": "longest_first", "return_tensors": "pt"}  # as sentence-transformers asks
_NO_LIMIT = 2**31  # tokens
_SEAMS = 6  # places at which the tail is tried to be cut


class TemplateTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that reads every sentence in a template. Made by `TemplateTokenizer.of`.

    Special tokens (`</s>`) are plain text in a sentence, so that no sentence breaks out of the template; in the text
    of a template such a token is the token. Words that were added to the vocabulary are words. An empty string (with
    the paper's preprocessing a blank one, too) is not touched by a normalizer: it becomes the BOS and the end of the
    tail, here and in every other client.

    Attributes:
        plain: The base's tokenizer: no template, no special tokens added.
        bos: Token ids in front of every text.
    """

    plain: Tokenizer
    bos: list[int]
    # Token ids of the demonstrations, with all in front of them, and a tokenizer of what stands behind
    _behind: tuple[list[int], Tokenizer] | None = None
    _shortener: Shortener | None = None

    @classmethod
    def of(cls, base: PreTrainedTokenizerBase) -> TemplateTokenizer:
        """Returns the tokenizer of a base LLM, still without a template, or of a saved model, with its own.

        Args:
            base: As `AutoTokenizer` gives it. It must not be used any more.

        Raises:
            ValueError: If `base` has no `tokenizer.json`, or holds another template than the one that it states.
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
        _read_special_tokens_as_text(plain)
        stated = base.init_kwargs.get(TEMPLATE_KEY)
        names = base.special_tokens_map.items()
        tokenizer = cls(
            tokenizer_object=plain,  # copied there
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
        if tokenizer.pad_token is None:  # the attention mask hides pads, so any token of the vocabulary serves
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        tokenizer.plain = plain
        tokenizer.bos = _ids_in_front(plain) if stated is None else tokenizer._take_out_template()
        tokenizer.plain.post_processor = None
        if stated is not None:
            template = PromptTemplate.from_dict(stated)
            probes = tokenizer._probe(template)
            near, _, far = tokenizer._divide(template, probes)
            tokenizer._set_demonstrations_apart(template, probes, near, far)
        return tokenizer

    @property
    def template(self) -> PromptTemplate | None:
        """The template that sentences are read in, None of a base LLM's tokenizer. Assign one to change it.

        Raises:
            ValueError: When assigned, if this tokenizer gives other token ids than for the rendered text.
        """
        stated = self.init_kwargs.get(TEMPLATE_KEY)
        return None if stated is None else PromptTemplate.from_dict(stated)

    @template.setter
    def template(self, template: PromptTemplate) -> None:
        probes = self._probe(template)
        near, front, far = self._divide(template, probes)
        processor = _template_processing(self.plain, [*self.bos, *front], far)
        backend = self.backend_tokenizer
        backend.normalizer = _normalizer([*self._steps(template, near), *_steps_of(self.plain)])
        backend.post_processor = _parts(post_processor=processor).post_processor
        if _words(self.plain):
            self._tokenizer = _with_words(backend, lambda word: f"{_MARK}{word.strip(_MARK)}{_MARK}")
            self._check_words(template)
        self.init_kwargs[TEMPLATE_KEY] = {**self.init_kwargs.get(TEMPLATE_KEY, {}), **template.to_dict()}
        self._set_demonstrations_apart(template, probes, near, far)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Tokenises texts as upstream does, but no more than is needed: not the same demonstrations in every row.

        Of a long text that is truncated, no more is read than is kept.
        """
        length = kwargs.get("max_length") or self.model_max_length
        if kwargs.get("truncation") and length and isinstance(text, str | list):
            whole = [text] if isinstance(text, str) else text
            if all(isinstance(one, str) for one in whole):
                cut = [self._shorten(one, length) for one in whole]
                text = cut[0] if isinstance(text, str) else cut
        if self._behind is not None and not args and kwargs == _BATCH and isinstance(text, list):
            if all(isinstance(one, str) and one.strip() for one in text):
                return self._tokenize_behind(*self._behind, text)
        return super().__call__(text, *args, **kwargs)

    def _shorten(self, text: str, length: int) -> str:
        """Returns so much of a text that its first `length` tokens in the template are the same."""
        if not is_long(text, length):
            return text
        if self._shortener is None:
            plain = Tokenizer.from_str(self.plain.to_str())
            plain.encode_special_tokens = True  # as in a sentence
            self._shortener = Shortener(plain)
        template = self.template
        lead = "" if template is None else self._lead(template)

        def prepare(beginning: str) -> str:
            if template is not None and template.preprocessing == "paper":  # what ends the sentence may become a stop
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
        return _MARK if _words(self.plain) else ""

    @property
    def _close(self) -> str:
        """The place behind a sentence, where the tail goes."""
        return f"{_END}(?<=[^{self._mark}])" if self._mark else _CLOSE

    def _check_words(self, template: PromptTemplate) -> None:
        """Raises ValueError if a word of the vocabulary is another token in a template than in the rendered text."""
        words = list(_words(self.plain).values())
        for word in {*words[:2], *words[-2:]}:
            for probe in (f"x {word} y", f"{word}", f"a{word}b.", f"{word}{word}'s", f"x {word}\n"):
                ids = [*self.bos, *self._plain_ids(template.render(probe))]
                if self.backend_tokenizer.encode(probe).ids != ids:
                    raise ValueError(
                        f"The word {word!r} that was added to the tokenizer of {self.name_or_path!r} cannot be kept "
                        "inside a template: train it as one of the model's own tokens, or add it as a special token, "
                        "which is text in sentences."
                    )

    def _probe(self, template: PromptTemplate) -> dict[str, tuple[str, list[int]]]:
        """Returns the rendered text of every probe and its token ids."""
        rendered = {probe: template.render(probe) for probe in _PROBES}
        return {probe: (text, self._plain_ids(text)) for probe, text in rendered.items()}

    def _set_demonstrations_apart(
        self, template: PromptTemplate, probes: dict[str, tuple[str, list[int]]], near: str, far: list[int]
    ) -> None:
        """Finds out whether the demonstrations' token ids are the same whatever the sentence, and keeps them."""
        self._behind = None
        before = template.text.partition(HOLE)[0] if template.demonstrations else ""
        if not before or len(before) > len(self._lead(template)):
            return
        head = [*self.bos, *self._plain_ids(template.head[: -len(before)])]
        behind = Tokenizer.from_str(self.plain.to_str())
        behind.normalizer = _normalizer([*self._steps(template, near, before), *_steps_of(self.plain)])
        behind.post_processor = _parts(post_processor=_template_processing(self.plain, [], far)).post_processor
        behind.encode_special_tokens = True
        if all(
            [*head, *behind.encode(probe).ids] == [*self.bos, *ids]
            for probe, (_, ids) in probes.items()
            if probe.strip()
        ):
            self._behind = head, behind

    def tokenize_template(self) -> tuple[list[int], list[int]]:
        """Returns the token ids in front of every sentence (BOS, demonstrations, template) and those behind it."""
        first, second = self(_FILLERS)["input_ids"]
        front, behind = (
            [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*rows, strict=False))]
            for rows in ((first, second), (first[::-1], second[::-1]))
        )
        return front, behind[::-1]

    def tokenize_plainly(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without a template, behind the BOS."""
        return [*self.bos, *self._plain_ids(text)]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:  # type: ignore[override]
        """Saves `tokenizer.json` and `tokenizer_config.json`, in the form that transformers 4 reads too."""
        self.backend_tokenizer.no_truncation()  # what the last call left there
        self.backend_tokenizer.no_padding()
        files: tuple[str, ...] = super().save_pretrained(save_directory, **kwargs)
        path = os.path.join(save_directory, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # 5's own name for it is unknown to transformers 4
        with replacing_file(path) as staged:
            staged.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return files

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.plain.encode(text, add_special_tokens=False).ids
        return ids

    def _lead(self, template: PromptTemplate) -> str:
        """What of the head a normaliser can put in front of a sentence: the text behind its last added token."""
        ends = (
            template.head.rfind(token.content) + len(token.content)
            for token in self.plain.get_added_tokens_decoder().values()
            if token.content in template.head
        )
        return template.head[max(ends, default=0) :]

    def _steps(self, template: PromptTemplate, near: str, lead: str | None = None) -> list[dict[str, Any]]:
        """The normalisers, as in `tokenizer.json`, that prepare a sentence and put text around it.

        Args:
            template: The template.
            near: What stands behind the sentence.
            lead: What stands in front of it. Defaults to None: all of the head that is text.
        """
        steps: list[dict[str, Any]] = []
        mark = self._mark
        if template.preprocessing == "paper":
            steps += [_replace(f"{_START}{_BLANK}+", ""), _replace(f"(?<!{_BLANK}){_BLANK}+{_END}", "")]
            steps += [
                _replace(_UNENDED.replace("^", f"^{mark}") + _END, "."),
                _replace_text('"', "'"),
                _replace(rf"\?{_END}", "."),
            ]
        if lead := self._lead(template) if lead is None else lead:
            steps.append({"type": "Prepend", "prepend": lead})
        if near:
            steps.append(_replace(self._close, near))
        if mark and lead:
            literal = re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", lead)
            steps.append(_replace(rf"{_START}{literal}(?={mark}[\s\S]*{mark}{_END})", ""))
        if mark:
            steps.append(_replace_text(mark, ""))
        return steps

    def _divide(
        self, template: PromptTemplate, probes: dict[str, tuple[str, list[int]]]
    ) -> tuple[str, list[int], list[int]]:
        """Finds the place at which the tail can be cut so that the token ids are those of the whole text.

        Returns:
            What of the tail stands behind the sentence as text; the token ids of the head's part that is not text; the
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
        """Takes the template of a saved model out of the plain tokenizer, and returns the BOS in front of it.

        Raises:
            ValueError: If the tokenizer does something else than the template that it states.
        """
        template = PromptTemplate.from_dict(self.init_kwargs[TEMPLATE_KEY])
        steps = _steps_of(self.plain)
        near = next((step["content"] for step in steps if step.get("pattern") == {"Regex": self._close}), "")
        own = self._steps(template, near)
        if steps[: len(own)] == own:
            rest = steps[len(own) :]
            self.plain.normalizer = _normalizer(rest)
            self.plain.post_processor = None
            self.plain = _with_words(self.plain, lambda word: word.strip(_MARK))
            probes = [probe for probe in _PROBES if probe.strip()]  # a blank one may become the empty string
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
    """Returns what any tokenizer states as its template, as `PromptTemplate.to_dict` does, None if it has none."""
    stated: dict[str, Any] | None = getattr(tokenizer, "init_kwargs", {}).get(TEMPLATE_KEY)
    return stated


def tokenizable(sentence: Any) -> str:
    """Returns the sentence with lone surrogates, which no tokenizer takes, as U+FFFD; TypeError if it is no string."""
    if not isinstance(sentence, str):
        raise TypeError(
            f"PromptEOL embeds strings, but got {sentence!r:.80} ({type(sentence).__name__}): convert or drop it."
        )
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return sentence.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return sentence


def _read_special_tokens_as_text(plain: Tokenizer) -> None:
    """Marks added tokens as special, except words: `split_special_tokens` makes those, and no others, text."""
    words = _words(plain)
    plain.add_special_tokens(
        [
            AddedToken(token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                       normalized=False, special=True)
            for number, token in sorted(plain.get_added_tokens_decoder().items())
            if number not in words and (not token.special or token.normalized)
        ]
    )  # fmt: skip


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    """Returns the words that were added behind a tokenizer's own vocabulary and are not special tokens, by their ids.

    Runs of spaces, which some families add, are not among them: a template's preprocessing takes these away.
    """
    own = tokenizer.get_vocab_size(with_added_tokens=False)
    return {
        number: token.content
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if number >= own and not token.special and token.content.strip()
    }


def _with_words(tokenizer: Tokenizer, spell: Callable[[str], str]) -> Tokenizer:
    """Returns a tokenizer whose added words are spelled otherwise, itself if it has none."""
    words = _words(tokenizer)
    if not words:
        return tokenizer
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        if token["id"] in words:
            token |= {"content": spell(token["content"]), "normalized": True}
    return Tokenizer.from_str(json.dumps(content))


def _ids_in_front(tokenizer: Tokenizer) -> list[int]:
    """Returns what the tokenizer's own post-processor puts in front of a text; what it puts behind is left out."""
    bare, whole = (tokenizer.encode("x", add_special_tokens=special).ids for special in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    ids: list[int] = whole[:start]
    return ids


def _seams(tail: str, added_tokens: Sequence[str]) -> Iterator[int]:
    """Yields places at which a tail may be cut, the first ones first, and its end.

    A word begins there, in front of its space if it has one, as tokenizers do not join words; and no added token
    stands before.
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


def _replace(pattern: str, content: str | None) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _replace_text(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _template_processing(tokenizer: Tokenizer, front: Sequence[int], far: Sequence[int]) -> dict[str, Any]:
    """A post-processor that puts tokens around a sentence, each by itself: JavaScript knows no other way."""

    def pieces(ids: Sequence[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokenizer.id_to_token(token), "type_id": 0}} for token in ids]

    names = {token: tokenizer.id_to_token(token) for token in [*front, *far]}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [*pieces(front), _SENTENCE, *pieces(far)],
        "pair": [*pieces(front), _SENTENCE, second, *pieces(far)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()},
    }


def _parts(**parts: Any) -> Tokenizer:
    """Makes parts of a tokenizer from what `tokenizer.json` holds of them."""
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps({**empty, **parts}))


def _normalizer(steps: list[dict[str, Any]]) -> Any:
    return _parts(normalizer={"type": "Sequence", "normalizers": steps}).normalizer if steps else None


def _steps_of(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the normalisers of a tokenizer as `tokenizer.json` holds them."""
    alone = Tokenizer(models.BPE())
    alone.normalizer = tokenizer.normalizer
    step = json.loads(alone.to_str())["normalizer"]
    if step is None:
        return []
    steps: list[dict[str, Any]] = step["normalizers"] if step["type"] == "Sequence" else [step]
    return steps
