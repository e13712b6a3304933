"""Candidate demonstrations: reading and writing files of them, every line checked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_prompteol.files import replacing_file
from st_prompteol.tables import LINE, Bad, columns_of, read_rows
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
        path: `.jsonl` with objects of `sentence`, `word` and, if known, `source`; `.tsv` or `.csv` with these columns,
            with or without a header; anything else in the paper's one-line spelling, `_` for a space and `*sent_0*`
            for the place of the sentence, e.g.
            `This_sentence_:_"A_jockey."_means_in_one_word:"Horse".This_sentence_:_"*sent_0*"_means_in_one_word:"`.

    Raises:
        ValueError: If there is no candidate in it, or a line is none; the message names the line.
        OSError: If it cannot be read.
    """
    path = Path(path)
    candidates = []
    for row in read_rows(path, header=_missing_header(path)):
        if isinstance(row, Bad):
            raise ValueError(row.problem)
        try:
            if LINE not in row.cells:
                candidates.append(_from_cells(row.cells, path.stem))
            elif row.cells[LINE].strip():
                candidates.append(_from_reference(row.cells[LINE], path.stem))
        except ValueError as error:
            raise ValueError(f"{str(path)!r}, {row.place}: {error}") from None
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


def _missing_header(path: Path) -> Sequence[str] | None:
    """Returns the columns of a table without a header, None where there is one."""
    if path.suffix not in (".csv", ".tsv") or {"sentence", "word"} <= set(first := columns_of(path)):
        return None
    return _HEADER[: max(2, len(first))]


def _from_cells(cells: Mapping[str, Any], source: str) -> Candidate:
    if not {"sentence", "word"} <= cells.keys():
        raise ValueError(f"{str(dict(cells))[:80]} must hold a sentence and a word: mend or drop it.")
    return Candidate(Demonstration(cells["sentence"], cells["word"]), str(cells.get("source") or source))


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
