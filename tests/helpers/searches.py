"""Candidates, pairs and a WordNet for the search over recipes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from st_prompteol import Demonstration
from st_prompteol.recipes import (
    Candidate,
    write_candidates,
)

from .sentences import WORDS

Pair = tuple[str, str, float]
LETTERS = [one + other for one in "abcdefghij" for other in "abcdefghij"]


def make_pairs(count: int = 60, seed: int = 0) -> list[Pair]:
    """Pairs of sentences of a few words, which recur; gold is the share of words in common."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS.split(), size=rng.integers(3, 8))) for _ in range(count)]
    pairs = []
    for _ in range(count):
        a, b = rng.choice(sentences, size=2, replace=False)
        one, other = set(a.split()), set(b.split())
        pairs.append((str(a), str(b), 5 * len(one & other) / len(one | other)))
    return pairs


def make_candidates(count: int = 12, seed: int = 1) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [
        Candidate(
            Demonstration(" ".join(rng.choice(words, size=4)) + ".", f"{rng.choice(words)}-{LETTERS[number]}".title()),
            ["wordnet", "llm"][number % 2],
        )
        for number in range(count)
    ]


def write_search(folder: Path, count: int = 30) -> list[str]:
    write_candidates(make_candidates(count), folder / "c.jsonl")
    rows = [{"sentence1": a, "sentence2": b, "score": gold} for a, b, gold in make_pairs(60)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(folder / "c.jsonl"), "--pairs", str(folder / "p.jsonl")]


def distinct(pairs: list[Pair]) -> list[str]:
    return list(dict.fromkeys(sentence for pair in pairs for sentence in pair[:2]))


def correlate(left: Any, right: Any, pairs: list[Pair]) -> float:
    cosine = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return 100 * float(spearmanr(cosine, [pair[2] for pair in pairs]).statistic)


WORDNET = Path(os.environ.get("WORDNET_DIR", "/usr/share/wordnet"))


def write_wordnet(folder: Path) -> Path:
    """Writes a folder in WordNet's format: offsets are bytes into the data file, two spaces begin its license."""
    senses = {
        "noun": [
            ("horse", 5, ["horse", "Equus_caballus"], 'solid-hoofed herbivorous quadruped; "he rode"'),
            ("venison", 1, ["venison"], "meat from a deer used as food"),
            ("deer", 0, ["deer"], "(zoology) a ruminant with antlers of the male"),
            ("cervid", 2, ["cervid"], "a cervid is what it is"),
            ("race_horse", 3, ["race_horse"], "a horse bred for racing"),
            ("short", 3, ["short"], "too short"),
        ],
        "adj": [
            ("swiss", 1, ["Swiss(a)"], "of or relating to Switzerland or its people"),
            ("horse", 1, ["horse"], "of or like a horse"),
        ],
    }
    folder.mkdir()
    for part, entries in senses.items():
        data = "  1 This is the license.  \n"
        index = "  1 This is the license.  \n"
        for lemma, frequency, words, gloss in entries:
            offset = f"{len(data.encode()):08d}"
            members = " ".join(f"{word} 0" for word in words)
            data += f"{offset} 05 {part[0]} {len(words):02x} {members} 001 @ 00000001 n 0000 | {gloss}  \n"
            index += f"{lemma} {part[0]} 1 1 @ 1 {frequency} {offset}  \n"
        (folder / f"data.{part}").write_text(data, encoding="utf-8")
        (folder / f"index.{part}").write_text(index, encoding="utf-8")
    return folder
