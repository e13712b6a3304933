"""Candidate demonstrations: reads and writes them, and checks which of them fit a template and a model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from st_prompteol.files import LINE, Bad, look_into, opened, read_rows, report
from st_prompteol.files.atomic import replacing_file
from st_prompteol.files.output import check_output
from st_prompteol.model import PromptEOL
from st_prompteol.prompt.template import CLOSING_QUOTES, HOLE, Demonstration, PromptTemplate

logger = logging.getLogger(__name__)

FORMATS = (".jsonl", ".tsv")  # output formats
_COLUMNS = ("sentence", "word", "source")


@dataclass(frozen=True)
class Candidate:
    """A demonstration to try, and its source.

    Args:
        demonstration: The sentence and its word.
        source: Name of its source in tables and plots, e.g. `"wordnet"`. Defaults to the empty string.

    Example:
        >>> Candidate(Demonstration("A jockey riding a horse.", "Equestrian"), source="paper").demonstration.word
        'Equestrian'
    """

    demonstration: Demonstration
    source: str = ""


def read_candidates(path: str | os.PathLike[str]) -> list[Candidate]:
    r"""Reads candidates from a file and drops duplicates.

    Args:
        path: `.jsonl` or `.json` with objects of `sentence`, `word` and optionally `source`; `.tsv` or `.csv` with
            these columns, with or without a header; any other file in the paper's one-line notation, with `_` for a
            space and `*sent_0*` for the place of the sentence, e.g.
            `This_sentence_:_"A_jockey."_means_in_one_word:"Horse".This_sentence_:_"*sent_0*"_means_in_one_word:"`.

    Raises:
        ValueError: If the file has no candidates, or a line is invalid; the message names the line.
        OSError: If the file cannot be read.

    Example:
        >>> candidates = read_candidates("examples/candidates.tsv")
        >>> candidates[0].demonstration
        Demonstration(sentence='A jockey riding a horse.', word='Equestrian')
    """
    path = Path(path)
    candidates, count = [], 0
    with opened(path) as file:
        contents = look_into(path, file, columns=_COLUMNS[:2], header=True)
        if contents.kind in ("CSV", "TSV") and not _has_header(contents.name, contents.columns):
            names = _COLUMNS[: max(2, len(contents.columns))]
            contents = replace(contents, columns=list(names), header=False)
        for row in read_rows(path, file=file, header=contents.header or contents.columns):
            if isinstance(row, Bad):
                raise ValueError(row.problem)
            count += 1
            try:
                if LINE not in row.cells:
                    candidates.append(_from_cells(row.cells, path.stem))
                elif row.cells[LINE].strip():
                    candidates.append(_from_reference(row.cells[LINE], path.stem))
            except ValueError as error:
                raise ValueError(f"{str(path)!r}, {row.place}: {error}") from None
    report(contents, count)
    if not candidates:
        raise ValueError(f"{str(path)!r} holds no demonstration: write one a line, as sentence and word.")
    return drop_duplicates(candidates)


def write_candidates(candidates: Iterable[Candidate], path: str | os.PathLike[str]) -> None:
    """Writes candidates to a `.jsonl` or `.tsv` file, atomically.

    Args:
        candidates: The candidates.
        path: The output file, `.jsonl` or `.tsv`.

    Raises:
        ValueError: If the file has another suffix, or a candidate contains a tab, which a `.tsv` file cannot hold.
        OSError: If the file cannot be written.

    Example:
        >>> jockey = Candidate(Demonstration("A jockey riding a horse.", "Equestrian"))
        >>> write_candidates([jockey], "mine.jsonl")
        >>> [candidate.demonstration.word for candidate in read_candidates("mine.jsonl")]
        ['Equestrian']
    """
    rows = [(one.demonstration.sentence, one.demonstration.word, one.source) for one in candidates]
    check_output(path, FORMATS)
    if Path(path).suffix == ".jsonl":
        lines = [json.dumps(dict(zip(_COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows]
    else:
        if tabs := [row for row in rows if "\t" in "".join(row)]:
            raise ValueError(f"A .tsv file cannot hold the tab in {tabs[0]!r}: write .jsonl instead.")
        lines = ["\t".join(row) for row in (_COLUMNS, *rows)]
    with replacing_file(path) as staged:
        staged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def drop_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns the candidates, keeping the first of equal demonstrations; logs how many were dropped."""
    candidates = list(candidates)
    first: dict[Demonstration, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.demonstration, candidate)
    if len(first) < len(candidates):
        logger.warning("%d duplicate demonstrations were dropped.", len(candidates) - len(first))
    return list(first.values())


def usable(model: PromptEOL, template: PromptTemplate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that fit a template and the model; logs how many do not, and why the first does not."""
    reasons = [problem(model, replace(template, demonstrations=(one.demonstration,))) for one in candidates]
    left_out = [(one, reason) for one, reason in zip(candidates, reasons, strict=True) if reason is not None]
    if left_out:
        logger.warning(
            "Of %d candidates %d do not fit the template %r and are left out, the first one, %r, because it %s.",
            len(candidates),
            len(left_out),
            template.text,
            left_out[0][0].demonstration.sentence[:80],
            left_out[0][1],
        )
    return [one for one, reason in zip(candidates, reasons, strict=True) if reason is None]


def problem(model: PromptEOL, template: PromptTemplate) -> str | None:
    """Returns why a template's demonstrations do not fit it or the model; None if they do.

    The paper's preprocessing turns double quotes in a sentence into single ones; without it nothing is escaped.
    """
    before, after = template.text.split(HOLE)
    closing = CLOSING_QUOTES.get(before[-1:], "")
    quote = closing if template.preprocessing == "none" and after.startswith(closing) else ""
    word_quote = CLOSING_QUOTES.get(after[-1:], "")
    for shot in template.demonstrations:
        for text, mark in ((shot.sentence, quote), (shot.word, word_quote)):
            if mark and mark in text:
                return f"holds {mark!r}, which ends a quotation of the template {template.text!r}"
    tokens, limit = len(model.tokenizer.tokenize_plainly(template.render("x"))), model.max_seq_length
    if limit is not None and tokens > limit:
        return f"takes {tokens} tokens with a sentence of one letter, but max_seq_length is {limit}"
    return None


def _has_header(name: str, first: Sequence[str]) -> bool:
    """Returns whether the first row of a table is a header; ValueError if it looks like a header of other columns."""
    if {"sentence", "word"} <= set(first):
        return True
    if {cell.strip().lower() for cell in first} & {*_COLUMNS, "definition"}:
        raise ValueError(
            f"The first row of {name!r}, {', '.join(map(repr, first))}, looks like a header: call its columns "
            "'sentence' and 'word'."
        )
    return False


def _from_cells(cells: Mapping[str, Any], source: str) -> Candidate:
    if not {"sentence", "word"} <= cells.keys():
        raise ValueError(f"{str(dict(cells))[:80]} must hold a sentence and a word: mend or drop it.")
    return Candidate(Demonstration(cells["sentence"], cells["word"]), str(cells.get("source") or source))


def _from_reference(line: str, source: str) -> Candidate:
    """Reads the demonstration from a line in the paper's notation, with any template."""
    shown, _, after = line.replace("_", " ").replace("*sent 0*", HOLE).partition(HOLE)
    middle, stop = shown.find(after), shown.rfind('".')
    before = shown[stop + 2 :]
    sentence, word = shown[len(before) : middle], shown[middle + len(after) : stop]
    is_whole = before and after and middle > 0 and before + sentence + after + word + '".' + before == shown
    if not is_whole or not sentence or not word or '"' in word:
        raise ValueError(
            f"{line[:80]!r} is not one demonstration and the place of the sentence in the paper's spelling: mend or "
            "drop the line."
        )
    return Candidate(Demonstration(sentence, word), source)
