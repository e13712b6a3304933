"""Escaping of untrusted text for Markdown: names, templates, sentences, numbers."""

from __future__ import annotations

import re
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def one_line(text: object) -> str:
    """Returns the text without line breaks and control characters."""
    return " ".join(_CONTROLS.sub(" ", str(text)).split())


def one_line_each(value: Any) -> Any:
    """Returns metadata with line breaks removed from every text."""
    if isinstance(value, dict):
        return {one_line_each(key): one_line_each(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [one_line_each(item) for item in value]
    return one_line(value) if isinstance(value, str) else value


def escape(text: object) -> str:
    """Escapes text so that Markdown shows it literally, in a paragraph, a heading, a table or a link text."""
    plain = re.sub(r"([\\`*_\[\]|~])", r"\\\1", one_line(text))
    plain = re.sub(r"^(\d*)([#+=.)-])(?=[\s#=-]|$)", r"\1\\\2", plain)  # no heading, list or rule
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"://|\bwww\.", lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), plain)


def code(text: object) -> str:
    """Formats text as inline code, also inside a table."""
    plain = one_line(text).replace("|", "\\|")
    ticks = "`" * (_longest_run(plain) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{ticks}{pad}{plain}{pad}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """Formats text as a code block, also if it contains backticks."""
    plain = _CONTROLS.sub(" ", text.replace("\r\n", "\n"))
    ticks = "`" * max(_longest_run(plain) + 1, 3)
    return f"{ticks}{language}\n{plain}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
