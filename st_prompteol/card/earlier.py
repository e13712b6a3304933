"""The card of a loaded model: its results, its training section, and whether it was edited.

Cards of this package end with a signature, which is a hash of the text. Parts that exist only in the card are enclosed
in marks and copied to the next card. Signature and marks are unused link definitions, which Markdown renderers do not
show.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from st_prompteol.card.markdown import one_line_each

Cosines = tuple[float, ...]
_SIGNATURE = re.compile(r"\n\[//\]: # \(st_prompteol((?: -?[\d.]+)*) sha256:([0-9a-f]{16})\)\s*\Z")
_PART = re.compile(
    r"^\[//\]: # \(part (\w+)((?: -?[\d.]+)*)\)\n\n(.*?)\n\n\[//\]: # \(end \1\)$", re.MULTILINE | re.DOTALL
)
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
    signature = _SIGNATURE.search(_plain(text))
    parts = {name: Part(body, _read_cosines(cosines)) for name, cosines, body in _PART.findall(_plain(text))}
    return EarlierCard(one_line_each(metadata), results, _read_cosines(signature[1] if signature else ""), parts)


def _read_cosines(text: str) -> Cosines:
    return tuple(map(float, text.split()))


def _digest(text: str) -> str:
    body = _SIGNATURE.sub("", _plain(text)).rstrip()
    return hashlib.sha256(_REPOSITORY.sub("", body).encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")
