"""Sentences and demonstrations that tests share."""

from __future__ import annotations

from st_prompteol import Demonstration

JOCKEY = Demonstration("A jockey riding a horse.", "Equestrian")


VENISON = Demonstration("meat from a deer.", "Venison")


SHOTS = (JOCKEY, VENISON)


TEXT = [
    "This sentence : means in one word:",
    "A jockey riding a horse.",
    "A man is playing a guitar and singing.",
    "The cat sat on the mat, and the dog did not.",
    "relating to switzerland or its people.",
]


SENTENCES = [
    "A jockey riding a horse.",
    "What is this",
    "?",
    "Is it raining?",
    'He said "no" twice',
    "une phrase en français, et une autre, et encore une autre qui est longue",
    "x",
    "😀 emoji! ",
]


WORDS = "a the man woman dog cat horse plays rides sings walks small big red guitar beach this sentence means in"
