"""Dictionary entries as candidates: definitions and their words from WordNet's files or a TSV file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from st_prompteol.files import read_lines
from st_prompteol.prompt.template import Demonstration
from st_prompteol.recipes.candidates import Candidate, read_candidates
from st_prompteol.recipes.llm import WORD

_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_LETTERS = range(3, 21)  # of a word
_WORDS = range(3, 16)  # of a definition


def read_dictionary(path: str | Path, *, min_frequency: int = 1) -> list[Candidate]:
    """Reads the dictionary entries that can be demonstrations: a definition and its single word.

    These are words of 3 to 20 letters, optionally hyphenated, whose definition has 3 to 15 words and does not contain
    the word itself. For WordNet, this is the first definition of the word's most frequent meaning, without leading
    remarks such as "(botany)". As in the paper, a definition ends with a period and a word is capitalized.

    Args:
        path: A folder with WordNet's files (`index.noun`, `data.noun`, … for any of nouns, verbs, adjectives and
            adverbs; Debian's package wordnet-base installs them in /usr/share/wordnet), or a `.tsv` file of
            definition and word.
        min_frequency: Minimum number of a word's meanings that occur in WordNet's tagged texts (`tagsense_cnt`), which
            excludes rare words; ignored for a `.tsv` file. Defaults to 1.

    Returns:
        One candidate per word, in alphabetical order.

    Raises:
        FileNotFoundError: If the folder or file does not exist, or the folder has none of WordNet's files.
        ValueError: If a line has an invalid format, or no entry can be a demonstration.
    """
    path = Path(path)
    if path.is_dir():
        entries = _read_wordnet(path, min_frequency)
    elif path.is_file():
        entries = ((found.demonstration.sentence, found.demonstration.word) for found in read_candidates(path))
    else:
        raise FileNotFoundError(
            f"{str(path)!r} is neither a folder of WordNet's files nor a .tsv file: Debian's package wordnet-base has "
            "them in /usr/share/wordnet."
        )
    source = "wordnet" if path.is_dir() else path.stem
    chosen: dict[str, Candidate] = {}
    for definition, word in entries:
        if word.lower() not in chosen and _is_plain(definition, word):
            shown = definition if definition[-1] in ".?!" else f"{definition}."
            chosen[word.lower()] = Candidate(Demonstration(shown, word[0].upper() + word[1:]), source)
    if not chosen:
        raise ValueError(
            f"{str(path)!r} has no entry of a single word with a definition of {_WORDS[0]} to {_WORDS[-1]} words: "
            "lower min_frequency or use another dictionary."
        )
    return [chosen[word] for word in sorted(chosen)]


def _is_plain(definition: str, word: str) -> bool:
    words = definition.lower().split()
    return (
        WORD.fullmatch(word) is not None
        and len(word) in _LETTERS
        and len(words) in _WORDS
        and '"' not in definition
        and word.lower() not in re.findall(r"[\w-]+", definition.lower())
    )


def _read_wordnet(folder: Path, min_frequency: int) -> Iterator[tuple[str, str]]:
    """Yields (definition, word) of words with at least this frequency, in the spelling of the data files."""
    pairs = [(folder / f"index.{part}", folder / f"data.{part}") for part in _PARTS_OF_SPEECH]
    pairs = [(index, data) for index, data in pairs if index.is_file() and data.is_file()]
    if not pairs:
        raise FileNotFoundError(
            f"{str(folder)!r} has neither index.noun and data.noun nor those of another part of speech: name the "
            "folder of WordNet's files, which is /usr/share/wordnet with Debian's package wordnet-base."
        )
    for index, data in pairs:
        synsets = {offset: (words, gloss) for offset, words, gloss in read_synsets(data)}
        for number, line in _entries(index):
            lemma, frequency, offsets = _parse_index(index, number, line)
            if frequency < min_frequency or not offsets:
                continue
            if offsets[0] not in synsets:
                raise ValueError(
                    f"{str(index)!r}, line {number}: {data.name} has no entry {offsets[0]}, so the two files are of "
                    "different versions: install WordNet again."
                )
            words, gloss = synsets[offsets[0]]
            definition = re.sub(r"^(\([^)]*\)\s*)+", "", gloss).split(";")[0].strip()
            yield definition, next((word for word in words if word.lower() == lemma), lemma)


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """Returns the numbered lines of one of WordNet's files, without the indented license at its beginning."""
    return ((number, line) for number, line in read_lines(path) if line.strip() and not line.startswith("  "))


def _parse_index(path: Path, number: int, line: str) -> tuple[str, int, list[str]]:
    """Returns the lemma, its `tagsense_cnt` and the offsets of its meanings, most frequent first."""
    fields = line.split()
    with suppress(IndexError, ValueError):
        senses, pointers = int(fields[2]), int(fields[3])
        frequency, offsets = int(fields[5 + pointers]), fields[6 + pointers :]
        if len(offsets) == senses:
            return fields[0], frequency, offsets
    raise _damaged(path, number, line)


def read_synsets(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yields the meanings in one of WordNet 3's data files (format: manual page wndb(5)).

    Args:
        path: `data.noun`, `data.verb`, `data.adj` or `data.adv`.

    Yields:
        The meaning's offset; its words and phrases, with `_` for a space and without adjective markers such as `(a)`;
        and its gloss, which holds definitions and quoted examples.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line has an invalid format.
    """
    for number, line in _entries(path):
        facts, separator, gloss = line.partition(" | ")
        fields = facts.split()
        count = -1
        with suppress(IndexError, ValueError):
            count = int(fields[3], 16)
        words = [re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * count : 2]]
        if not separator or len(words) != count:
            raise _damaged(path, number, line)
        yield fields[0], words, gloss.strip()


def _damaged(path: Path, number: int, line: str) -> ValueError:
    return ValueError(
        f"{str(path)!r}, line {number}, is not in WordNet's format ({line[:60]!r}): install WordNet again."
    )
