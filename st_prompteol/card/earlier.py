"""The card of a loaded model: its results, its training section, and whether it was edited.

Cards of this package end with a signature: the cosine similarities of the model and a hash of the text. Parts that
exist only in the card are enclosed in marks and copied to the next card. Signature and marks are unused link
definitions, which Markdown renderers do not show.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from st_prompteol.card.markdown import one_line_each

Cosines = tuple[float, ...]
_MARK = r"\n\[//\]: # \(st_prompteol((?: -?[\d.]+)*) sha256:([0-9a-f]{16})\)"
_SIGNATURE = re.compile(rf"{_MARK}\s*\Z")
_PART = re.compile(
    r"^\[//\]: # \(part (\w+)((?: -?[\d.]+)*)\)\n\n(.*?)\n\n\[//\]: # \(end \1\)$", re.MULTILINE | re.DOTALL
)
_METADATA = re.compile(r"\A\s*---\r?\n(.*?\n)---\s*$", re.MULTILINE | re.DOTALL)
# With the lines that belong to it; comments and empty lines only in front of such a line
_RESULTS = re.compile(r"^([\"']?)model-index\1[ \t]*:.*\n(?:(?:#.*\n|\r?\n)*[ \t\-\]}].*\n)*", re.MULTILINE)
_REPOSITORY = re.compile(r'SentenceTransformer\("[^"\n]*"')  # filled in by sentence-transformers' own push


@dataclass(frozen=True)
class Part:
    """A part of a card to copy to the next one.

    Args:
        text: The part, in Markdown.
        cosines: The cosine similarities of the measured model, see `PromptEOLModelCardData.cosines`. Empty if unknown.
    """

    text: str
    cosines: Cosines = ()


@dataclass(frozen=True)
class EarlierCard:
    """The information in a card that its model does not contain.

    Args:
        metadata: The metadata, without results.
        results: The results in the metadata.
        cosines: The cosine similarities of the card's model. Empty if unknown.
        parts: The parts to copy to the next card, by name.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    results: tuple[EvalResult, ...] = ()
    cosines: Cosines = ()
    parts: dict[str, Part] = field(default_factory=dict)


def sign(text: str, cosines: Cosines) -> str:
    """Returns a card with its signature at the end."""
    return f"{text.rstrip()}\n\n[//]: # (st_prompteol{write_cosines(cosines)} sha256:{_digest(text)})\n"


def write_cosines(cosines: Cosines) -> str:
    """Formats cosine similarities for a signature or the mark of a part."""
    return "".join(f" {cosine:.4f}" for cosine in cosines)


def is_ours(text: str) -> bool:
    """Whether a card was written by this package and not edited since."""
    signature = _SIGNATURE.search(_plain(text))
    return signature is not None and signature[2] == _digest(text)


def read_card(text: str) -> EarlierCard:
    """Reads a card for which `is_ours` holds."""
    data: Any = ModelCard(text, ignore_metadata_errors=True).data
    results = tuple(data.eval_results or ())
    metadata = {key: value for key, value in data.to_dict().items() if key != "model-index"}
    parts = {name: Part(body, _read_cosines(cosines)) for name, cosines, body in _PART.findall(_plain(text))}
    return EarlierCard(one_line_each(metadata), results, cosines_of(text), parts)


def cosines_of(text: str) -> Cosines:
    """Returns the cosine similarities of a card's model, also if the card was edited since; empty if unknown."""
    signatures = re.findall(_MARK, _plain(text))
    return _read_cosines(signatures[-1][0]) if signatures else ()


def is_same_card(one: str, other: str) -> bool:
    """Whether two cards differ at most in their repository and their signature."""
    return _digest(one) == _digest(other)


def without_results(text: str) -> str:
    """Returns a card without the `model-index` in its metadata; everything else stays as it is."""
    metadata = _METADATA.match(text)
    if metadata is None:
        return text
    return text[: metadata.start(1)] + _RESULTS.sub("", metadata[1]) + text[metadata.end(1) :]


def _read_cosines(text: str) -> Cosines:
    return tuple(map(float, text.split()))


def _digest(text: str) -> str:
    body = _SIGNATURE.sub("", _plain(text)).rstrip()
    return hashlib.sha256(_REPOSITORY.sub("", body).encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")
