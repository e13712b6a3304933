"""The parts of `tokenizer.json` that a template needs: normalizers, a post-processor, and added words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models


def copy_tokenizer(tokenizer: Tokenizer, words: Mapping[int, str] | None = None) -> Tokenizer:
    """Returns a copy that shares the vocabulary, whose copy may take seconds.

    Args:
        tokenizer: The tokenizer.
        words: New spellings of added words, by their ids. Defaults to None: the same words, as in
            `Tokenizer.from_str(tokenizer.to_str())`.
    """
    words = words or {}
    twin = Tokenizer(_renamed(tokenizer, words))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "encode_special_tokens"):
        setattr(twin, part, getattr(tokenizer, part))
    twin.add_tokens(
        [
            AddedToken(words.get(number, token.content), single_word=token.single_word, lstrip=token.lstrip,
                       rstrip=token.rstrip, normalized=token.normalized or number in words, special=token.special)
            for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        ]
    )  # fmt: skip
    return twin


def respelled(tokenizer: Tokenizer, spell: Callable[[str], str]) -> Tokenizer:
    """Returns a copy with the spelling of the added words changed; the tokenizer itself if it has none."""
    words = {number: spell(word) for number, word in words_of(tokenizer).items()}
    return copy_tokenizer(tokenizer, words) if words else tokenizer


def _renamed(tokenizer: Tokenizer, words: Mapping[int, str]) -> models.Model:
    """Returns the tokenizer's model with the entries of these words, if it has any, spelled as given.

    Merges into and of such an entry are dropped: the added word is matched before any merge.
    """
    model: models.Model = tokenizer.model
    own = {
        token.content: words[number]
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if number in words and model.token_to_id(token.content) is not None and token.content != words[number]
    }
    if not own:
        return model
    content = json.loads(tokenizer.to_str())["model"]
    if isinstance(content["vocab"], dict):
        content["vocab"] = {own.get(word, word): number for word, number in content["vocab"].items()}
    else:  # Unigram's pieces with their scores, in the order of their ids
        content["vocab"] = [[own.get(word, word), score] for word, score in content["vocab"]]
    if "merges" in content:
        content["merges"] = [pair for pair in content["merges"] if own.keys().isdisjoint([*pair, "".join(pair)])]
    model = _parts(model=content).model
    return model


def words_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Returns the added words of a tokenizer that are not special tokens, by their ids.

    Excludes runs of spaces, which some model families add: the template's preprocessing removes these.
    """
    return {
        number: token.content
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if not token.special and token.content.replace("▁", " ").strip()
    }


def read_special_tokens_as_text(plain: Tokenizer, is_base: bool) -> None:
    """Marks added tokens except words as special, because `split_special_tokens` only splits special tokens."""
    tokens, words = plain.get_added_tokens_decoder(), set(words_of(plain))
    if is_base:  # in a saved model they are special already
        own = plain.get_vocab_size(with_added_tokens=False)
        words = {number for number in words if number >= own or _can_be_renamed(tokens[number], plain.normalizer)}
    plain.add_special_tokens(
        [
            AddedToken(token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                       normalized=False, special=True)
            for number, token in sorted(tokens.items())
            if number not in words and (not token.special or token.normalized)
        ]
    )  # fmt: skip


def _can_be_renamed(token: AddedToken, normalizer: Any) -> bool:
    """Whether an added word inside the model's own vocabulary (Gemma's `<unused0>`) can be kept in a template.

    The base's tokenizer matches such words before its normalizer runs and the template's tokenizer afterwards, so
    both must find the same words (in upper case, too) and leave the same text around them. Other words are text.
    """
    if token.lstrip or token.rstrip or token.single_word or re.fullmatch("<0x[0-9A-F]{2}>", token.content):
        return False
    normalize = normalizer.normalize_str if normalizer else str
    other_case = token.content.swapcase()
    return normalize(other_case) == other_case and (
        normalize("x ") + token.content + normalize(" y") == normalize(f"x {token.content} y")
    )


def ids_in_front(tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids that the tokenizer's own post-processor prepends; the ones it appends are ignored."""
    bare, whole = (tokenizer.encode("x", add_special_tokens=special).ids for special in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    ids: list[int] = whole[:start]
    return ids


def replace_regex(pattern: str, content: str) -> dict[str, Any]:
    """Returns a step of a normalizer that replaces what a regular expression matches."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def replace_text(text: str, content: str) -> dict[str, Any]:
    """Returns a step of a normalizer that replaces a text."""
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def post_processor(tokenizer: Tokenizer, front: Sequence[int], far: Sequence[int]) -> Any:
    """Returns a post-processor that adds tokens around a sentence, one entry per token, as JavaScript requires."""

    def pieces(ids: Sequence[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokenizer.id_to_token(token), "type_id": 0}} for token in ids]

    names = {token: tokenizer.id_to_token(token) for token in [*front, *far]}
    sentence, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    processing = {
        "type": "TemplateProcessing",
        "single": [*pieces(front), sentence, *pieces(far)],
        "pair": [*pieces(front), sentence, second, *pieces(far)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()},
    }
    return _parts(post_processor=processing).post_processor


def _parts(**content: Any) -> Tokenizer:
    """Creates tokenizer components from their form in `tokenizer.json`."""
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps({**empty, **content}))


def normalizer_of(steps: list[dict[str, Any]]) -> Any:
    """Returns a normalizer that takes these steps, in their form in `tokenizer.json`; None without steps."""
    return _parts(normalizer={"type": "Sequence", "normalizers": steps}).normalizer if steps else None


def steps_of(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the normalizers of a tokenizer in their form in `tokenizer.json`."""
    alone = Tokenizer(models.BPE())
    alone.normalizer = tokenizer.normalizer
    step = json.loads(alone.to_str())["normalizer"]
    if step is None:
        return []
    steps: list[dict[str, Any]] = step["normalizers"] if step["type"] == "Sequence" else [step]
    return steps
