"""Candidate demonstrations: reading and writing files of them, every line checked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from st_prompteol.corpus import read_lines
from st_prompteol.files import replacing_file
from st_prompteol.template import Demonstration, PromptTemplate

logger = logging.getLogger(__name__)

_HEADER = ("sentence", "word", "source")


@dataclass(frozen=True)
class Candidate:
    """A demonstration to try, and where it comes from.

    Args:
        demonstration: The sentence and its word.
        source: What tables and plots call its origin, e.g. `"wordnet"`. Defaults to nothing.
    """

    demonstration: Demonstration
    source: str = ""


def read_candidates(path: str | os.PathLike[str]) -> list[Candidate]:
    r"""Reads candidates from a file; of duplicates the first one stays.

    Args:
        path: `.jsonl` with objects of `sentence`, `word` and, if known, `source`; `.tsv` with these columns, with or
            without a header; anything else in the paper's one-line spelling, `_` for a space and `*sent_0*` for the
            place of the sentence, e.g.
            `This_sentence_:_"A_jockey."_means_in_one_word:"Horse".This_sentence_:_"*sent_0*"_means_in_one_word:"`.

    Raises:
        ValueError: If there is no candidate in it, or a line is none; the message names the line.
        OSError: If it cannot be read.
    """
    path = Path(path)
    read = _READERS.get(path.suffix, _from_reference)
    candidates = []
    for number, line in read_lines(path):
        if not line.strip() or (number == 1 and tuple(line.split("\t")[:2]) == _HEADER[:2]):
            continue
        try:
            candidates.append(read(line, path.stem))
        except ValueError as error:
            raise ValueError(f"{str(path)!r}, line {number}: {error}") from None
    if not candidates:
        raise ValueError(f"{str(path)!r} holds no demonstration: write one a line, as sentence and word.")
    return drop_duplicates(candidates)


def write_candidates(candidates: Iterable[Candidate], path: str | os.PathLike[str]) -> None:
    """Writes candidates as `.jsonl` or `.tsv`; the file appears when it is complete.

    Raises:
        ValueError: If the suffix is another, or a candidate holds a tab, which has no place in a `.tsv` file.
        OSError: If it cannot be written.
    """
    suffix = check_output(path).suffix
    lines = [_WRITERS[suffix](candidate) for candidate in candidates]
    with replacing_file(path) as staged:
        header = "\t".join(_HEADER) + "\n" if suffix == ".tsv" else ""
        staged.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file of candidates to write; ValueError or FileNotFoundError if it cannot be one."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"Unknown format of candidates {str(path)!r}: end its name in {', '.join(_WRITERS)}.")
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(path)!r} does not exist: make it, then run again.")
    return path


def drop_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns the candidates, of equal demonstrations the first; says how many went."""
    candidates = list(candidates)
    first: dict[Demonstration, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.demonstration, candidate)
    if len(first) < len(candidates):
        logger.warning("%d duplicate demonstrations were dropped.", len(candidates) - len(first))
    return list(first.values())


def check_quotes(template: PromptTemplate, demonstrations: Sequence[Demonstration]) -> None:
    """Raises ValueError for a demonstration that would end the template's quotations before their time.

    With the paper's preprocessing double quotes of a sentence become single ones; without it nothing is escaped.
    """
    before, after = template.text.split("{sentence}")
    quote = after[:1] if template.preprocessing == "none" and before[-1:] in _QUOTES.get(after[:1], ()) else ""
    word_quote = _CLOSING.get(after[-1:], "")
    for demonstration in demonstrations:
        for text, closing in ((demonstration.sentence, quote), (demonstration.word, word_quote)):
            if closing and closing in text:
                raise ValueError(
                    f"The demonstration {demonstration.sentence!r} = {demonstration.word!r} holds {closing!r}, which "
                    f"ends a quotation of the template {template.text!r}: drop it, or use other quotes."
                )


def _from_json(line: str, source: str) -> Candidate:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{line[:80]!r} is not JSON ({error}): mend or drop the line.") from None
    if not isinstance(row, dict) or not {"sentence", "word"} <= row.keys():
        raise ValueError(f"{line[:80]!r} must be a JSON object with a sentence and a word: mend or drop the line.")
    return Candidate(Demonstration(row["sentence"], row["word"]), str(row.get("source") or source))


def _from_tsv(line: str, source: str) -> Candidate:
    cells = line.split("\t")
    if len(cells) not in (2, 3):
        raise ValueError(
            f"{line[:80]!r} has {len(cells)} tab-separated column(s), but a demonstration takes a sentence, a word "
            "and, if known, a source: mend or drop the line."
        )
    return Candidate(Demonstration(cells[0], cells[1]), (cells[2] if len(cells) == 3 else "") or source)


def _from_reference(line: str, source: str) -> Candidate:
    """Takes the one demonstration out of a line of the paper's spelling, whatever its template is."""
    spelled = f"{line[:80]!r} is not one demonstration and the place of the sentence in the paper's spelling"
    shown, hole, after = line.replace("_", " ").replace("*sent 0*", "{}").partition("{}")
    middle, stop = shown.find(after), shown.rfind('".')
    before = shown[stop + 2 :]
    if not hole or not after or middle < 0 or not before or not shown.startswith(before):
        raise ValueError(f"{spelled}: mend or drop the line.")
    sentence, word = shown[len(before) : middle], shown[middle + len(after) : stop]
    if not sentence or not word or before + sentence + after + word + '".' + before != shown or '"' in word:
        raise ValueError(f"{spelled}: mend or drop the line.")
    return Candidate(Demonstration(sentence, word), source)


_READERS: dict[str, Callable[[str, str], Candidate]] = {".jsonl": _from_json, ".tsv": _from_tsv}


def _to_json(candidate: Candidate) -> str:
    return json.dumps(dict(zip(_HEADER, _cells(candidate), strict=True)), ensure_ascii=False)


def _to_tsv(candidate: Candidate) -> str:
    if any("\t" in cell for cell in _cells(candidate)):
        raise ValueError(f"A tab in {candidate.demonstration!r} has no place in a .tsv file: write .jsonl instead.")
    return "\t".join(_cells(candidate))


def _cells(candidate: Candidate) -> Iterator[str]:
    return iter((candidate.demonstration.sentence, candidate.demonstration.word, candidate.source))


_WRITERS: dict[str, Callable[[Candidate], str]] = {".jsonl": _to_json, ".tsv": _to_tsv}
_QUOTES = {'"': '"', "'": "'", "`": "`", "”": "“", "’": "‘", "»": "«", "」": "「"}
_CLOSING = {opening: closing for closing, opening in _QUOTES.items()}
