"""Text that others chose, made harmless for Markdown: names, templates, metrics, whole sections of other cards."""

from __future__ import annotations

import re
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# Tags without attributes, of which sentence-transformers' cards are made
_KEPT_TAGS = re.compile(r"</?(details|summary|code|ul|li|br|b|i|table|thead|tbody|tr|th|td) ?/?>", re.IGNORECASE)


def one_line(text: object) -> str:
    """Returns the text without line breaks and control characters."""
    return " ".join(_CONTROLS.sub(" ", str(text)).split())


def one_line_each(value: Any) -> Any:
    """Returns metadata with every text in it on one line."""
    if isinstance(value, dict):
        return {key: one_line_each(item) for key, item in value.items()}
    if isinstance(value, list):
        return [one_line_each(item) for item in value]
    return one_line(value) if isinstance(value, str) else value


def escape(text: object) -> str:
    """Returns text that Markdown shows as it is, in a paragraph, a heading, a table or the text of a link."""
    plain = re.sub(r"([\\`*_\[\]|~])", r"\\\1", one_line(text))
    plain = re.sub(r"^(\d*)([#+=.)-])(?=[\s#=-]|$)", r"\1\\\2", plain)  # no heading, list or rule
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"://|\bwww\.", lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), plain)


def code(text: object) -> str:
    """Returns text as inline code, also inside a table."""
    plain = one_line(text).replace("|", "\\|")
    ticks = "`" * (_longest_run(plain) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{ticks}{pad}{plain}{pad}{ticks}"


def fence(text: str) -> str:
    """Returns text as a block of code, whatever backticks it holds."""
    plain = _CONTROLS.sub(" ", text.replace("\r\n", "\n"))
    ticks = "`" * max(_longest_run(plain) + 1, 3)
    return f"{ticks}text\n{plain}\n{ticks}"


def section(card: str, heading: str) -> str | None:
    """Returns what stands under a heading of a card, up to the next one of its level, without active HTML.

    Args:
        card: The card's text.
        heading: The heading with its number signs, e.g. `"## Training Details"`.
    """
    level = len(heading) - len(heading.lstrip("#"))
    lines: list[str] | None = None
    fenced = ""
    for line in card.splitlines():
        marker = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if marker and (not fenced or (marker[1].startswith(fenced) and not line.strip(" `~"))):
            fenced = "" if fenced else marker[1]
        title = re.match(r"(#{1,6}) ", line)
        if not fenced and title and len(title[1]) <= level:
            if lines is not None:
                break
            lines = [] if line.strip() == heading else None
        elif lines is not None:
            lines.append(line)
    text = _without_active_html("\n".join(lines or ())).strip()
    return re.sub(r"\n{3,}", "\n\n", text) or None


def _without_active_html(text: str) -> str:
    """Drops comments, and shows tags that could act as text; code stays as it is."""
    parts = re.split(r"(^ {0,3}(`{3,}).*?^ {0,3}\2`* *$|(?<!`)`[^`\n]+`(?!`))", text, flags=re.MULTILINE | re.DOTALL)
    # re.split yields text, code, the ticks' group, text, code, …
    for index in range(0, len(parts), 3):
        plain = re.sub(r"<!--.*?(-->|\Z)", "", parts[index], flags=re.DOTALL)
        plain = re.sub(r"<[^>]*>?", _tag_as_text, plain)
        parts[index] = re.sub(r"\]\(\s*(javascript|data|vbscript):", "](#", plain, flags=re.IGNORECASE)
    return "".join(part or "" for index, part in enumerate(parts) if index % 3 != 2)


def _tag_as_text(tag: re.Match[str]) -> str:
    return tag[0] if _KEPT_TAGS.fullmatch(tag[0]) else tag[0].replace("<", "&lt;").replace(">", "&gt;")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
