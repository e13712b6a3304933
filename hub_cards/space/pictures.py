"""The page's views as HTML and SVG: a heat map, a list of neighbors, a map, and a tokenized text.

All texts of visitors are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from reading import Token

# ColorBrewer's YlGnBu, low to high: suitable for printing and color-blind readers
_SCALE = np.array([(255, 255, 217), (199, 233, 180), (65, 182, 196), (34, 94, 168), (8, 29, 88)], dtype=float)
_WIDTH, _HEIGHT = 520, 380  # of the map, in SVG units
_RADIUS, _LETTER, _LINE = 9, 6.4, 13  # of the map's points and labels
_NEIGHBOURS = 10
_PARTS = {
    "head": "shared head, computed once for all sentences",
    "sentence": "the sentence",
    "tail": "the template's end",
    "cut": "too long, left out",
}


def span_of(similarities: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Returns the lowest and the highest similarity of two different sentences."""
    others = similarities[~np.eye(len(similarities), dtype=bool)]
    return float(others.min()), float(others.max())


def heat_map(
    similarities: np.ndarray[Any, Any], sentences: Sequence[str], picked: int, low: float, high: float
) -> str:
    """Returns a table with cells colored from `low` (light) to `high` (dark), with numbers if they fit."""
    count = len(sentences)
    rows = []
    for row, sentence in enumerate(sentences):
        cells = []
        for column in range(count):
            value = float(similarities[row, column])
            title = escape(f"{value:.3f}: {row + 1} {sentence} / {column + 1} {sentences[column]}")
            if row == column:
                cells.append(f'<td class="same" title="{title}"></td>')
                continue
            place = (value - low) / (high - low) if high > low else 0.5
            ink = "#fff" if place > 0.55 else "#222"
            number = f"{value:.2f}" if count <= 12 else ""
            cells.append(f'<td style="background:{_color(place)};color:{ink}" title="{title}">{number}</td>')
        mark = ' class="picked"' if row == picked else ""
        label = f'<th scope="row" title="{escape(sentence)}"><b>{row + 1}</b> {escape(sentence)}</th>'
        rows.append(f"<tr{mark}>{label}{''.join(cells)}</tr>")
    head = "".join(
        f"<th{' class=picked' if column == picked else ''}>{column + 1 if _has_room(column, count) else ''}</th>"
        for column in range(count)
    )
    stops = ", ".join(_color(step / 4) for step in range(5))
    size = "dense" if count > 12 else "wide" if count > 9 else ""
    return (
        f'<table class="heat {size}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<div class="scale"><span>{low:.2f}</span><i style="background:linear-gradient(90deg, {stops})"></i>'
        f"<span>{high:.2f}</span></div>"
    )


def _has_room(column: int, count: int) -> bool:
    """Whether to show a column's number; in a wide table only every fifth."""
    return count <= 16 or column == 0 or (column + 1) % 5 == 0


def _color(place: float) -> str:
    at = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(at), len(_SCALE) - 2)
    red, green, blue = _SCALE[low] + (at - low) * (_SCALE[low + 1] - _SCALE[low])
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"


def rank_neighbours(similarities: np.ndarray[Any, Any], picked: int) -> list[int]:
    """Returns the indices of the other sentences, the nearest first."""
    order = np.argsort(-similarities[picked], kind="stable")
    return [int(other) for other in order if other != picked]


def neighbour_list(
    similarities: np.ndarray[Any, Any], sentences: Sequence[str], picked: int, compared: Sequence[int] | None = None
) -> str:
    """Returns the nearest neighbors of a sentence; `compared` is their order under the other recipe."""
    low, high = span_of(similarities)
    low = min(low, 0.0)
    items = []
    for rank, other in enumerate(rank_neighbours(similarities, picked)[:_NEIGHBOURS]):
        value = float(similarities[picked, other])
        width = 100 * (value - low) / (high - low) if high > low else 100
        moved = 0 if compared is None else compared.index(other) - rank
        arrow = f'<em title="places moved against recipe A">{"▲" if moved > 0 else "▼"}{abs(moved)}</em>'
        items.append(
            f'<li><div class="bar" style="width:{width:.1f}%"></div><b>{value:.2f}</b>'
            f"<span>{escape(sentences[other])}</span>{arrow if moved else ''}</li>"
        )
    return f'<ol class="neighbours">{"".join(items)}</ol>'


def flatten(embeddings: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """Projects normalized embeddings to their first two principal components.

    Returns:
        Points `(sentences, 2)`, and the explained share of the variance.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    left, sizes, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    total = float((sizes**2).sum())
    if total < 1e-12:
        return np.zeros((len(unit), 2)), 1.0
    points = np.zeros((len(unit), 2))
    points[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    return points, float((sizes[:2] ** 2).sum() / total)


def turn_like(points: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rotates and mirrors a map so that its points are as close as possible to those of another map."""
    left, _, right = np.linalg.svd(points.T @ others)
    turned: np.ndarray[Any, Any] = points @ (left @ right)
    return turned


def scatter(points: np.ndarray[Any, Any], sentences: Sequence[str], picked: int, share: float) -> str:
    """Returns a map with numbered points, with labels where they fit, and a list for small screens."""
    margin = 3 * _RADIUS
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.maximum(high - low, 1e-9)
    scale = float(min((_WIDTH - 2 * margin) / size[0], (_HEIGHT - 2 * margin) / size[1]))
    if float((high - low).max()) < 1e-6:  # all points coincide
        scale = 0.0
    places = (points - (low + high) / 2) * scale * (1, -1) + (_WIDTH / 2, _HEIGHT / 2)
    boxes = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in places]
    marks, labels = [], []
    order = [picked, *(index for index in range(len(sentences)) if index != picked)]
    for index in order:
        x, y = places[index]
        text = sentences[index] if len(sentences[index]) <= 26 else sentences[index][:25].rstrip() + "…"
        for left, middle in _label_places(x, y, len(text) * _LETTER):
            box = (left, middle - _LINE / 2, left + len(text) * _LETTER, middle + _LINE / 2)
            inside = 0 <= box[0] and box[2] <= _WIDTH and 0 <= box[1] and box[3] <= _HEIGHT
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                labels.append(f'<text x="{left:.1f}" y="{middle + 4:.1f}">{escape(text)}</text>')
                break
    for index in reversed(order):  # the selected one on top
        x, y = places[index]
        mark = ' class="picked"' if index == picked else ""
        marks.append(
            f'<g{mark}><title>{index + 1} {escape(sentences[index])}</title><circle cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{_RADIUS}"/><text x="{x:.1f}" y="{y:.1f}" dy=".35em">{index + 1}</text></g>'
        )
    numbered = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Map of the sentences">'
        f'<g class="labels">{"".join(labels)}</g><g class="points">{"".join(marks)}</g></svg>'
        f'<p class="note">{100 * share:.0f} % of the variance is on this map.</p>'
        f'<ol class="numbered">{numbered}</ol>'
    )


def _label_places(x: float, y: float, width: float) -> Iterator[tuple[float, float]]:
    gap = _RADIUS + 3
    yield x + gap, y
    yield x - gap - width, y
    yield x - width / 2, y + gap + 5
    yield x - width / 2, y - gap - 5


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def token_view(tokens: Sequence[Token]) -> str:
    """Returns the model's input text, split into tokens, with colored parts and their token counts."""
    groups, counts = [], []
    for part, group in groupby(tokens, key=lambda token: token.part):
        own = list(group)
        chips = "".join(f"<span>{_visible(token.text)}</span>" for token in own)
        groups.append(f'<span class="{part}">{chips}</span>')
        counts.append(f'<span class="{part}"><span>{len(own)}</span></span> {_PARTS[part]}')
    kept = sum(token.part != "cut" for token in tokens)
    return (
        f'<p class="tokens">{"".join(groups)}</p>'
        f'<p class="note tokens key">{kept} tokens: {"; ".join(counts)}. The last one\'s hidden state is read.</p>'
    )


def _visible(text: str) -> str:
    return escape(text).replace(" ", "<i>·</i>").replace("\n", "<i>⏎</i>").replace("\t", "<i>→</i>")
