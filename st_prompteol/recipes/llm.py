"""Asking a language model for the one word of a sentence: the question, what counts as a word, every answer kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from st_prompteol.files import append_lines, read_json_lines

PROMPT = (
    "Answer with exactly one word, the one that best stands for the meaning of this sentence: letters and hyphens "
    'only, no explanation.\nSentence: "{sentence}"'
)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LETTERS = range(2, 31)

Answered = tuple[str, list[str], str | None]  # a sentence, all answers to it, and why it has no word if that is known


class LLM(Protocol):
    """A language model that is asked: an `Endpoint` or a `LocalLM`."""

    @property
    def name(self) -> str:
        """The model, as the record of answers calls it."""

    @property
    def prompt(self) -> str:
        """What it is asked, `{sentence}` in place of the sentence."""

    def ask(self, sentences: Sequence[str]) -> Iterator[Answered]:
        """Asks for the word of each sentence; yields answers as they come."""


def ask_for_words(
    llm: LLM, sentences: Sequence[str], answers: Path, *, show_progress_bar: bool = False
) -> tuple[dict[str, str], str | None]:
    """Asks for the word of each sentence, except for those that `answers` has an answer for from the same question.

    Args:
        llm: What is asked.
        sentences: Distinct sentences.
        answers: A `.jsonl` file of all answers, good and bad, to which each is appended when it comes.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        Sentence -> word, as far as there is one, and why the last one without a word has none, if that is known.
    """
    known: dict[str, str | None] = {}
    for row in read_json_lines(answers, _check_answer):
        if (row["model"], row["prompt"]) == (llm.name, llm.prompt):
            known[row["sentence"]] = as_word(row["answer"], row["sentence"]) or known.get(row["sentence"])
    reason = None
    asked = [sentence for sentence in sentences if sentence not in known]
    with tqdm(total=len(asked), unit=" sentences", disable=not show_progress_bar) as bar:
        for sentence, given, failure in llm.ask(asked) if asked else ():
            reason = failure or reason
            for answer in given:
                known[sentence] = as_word(answer, sentence)
                row = {"sentence": sentence, "answer": answer, "word": known[sentence]}
                told = {**row, "model": llm.name, "prompt": llm.prompt}
                append_lines(answers, [json.dumps(told, ensure_ascii=False)])
            bar.update()
    return {sentence: word for sentence in sentences if (word := known.get(sentence)) is not None}, reason


def as_word(answer: str, sentence: str) -> str | None:
    """Returns the word in an answer, its first letter a capital; None if it is not one, or repeats the sentence."""
    word = answer.strip().strip("\"'`“”‘’*").rstrip(".!").strip("\"'`“”‘’*")
    if _WORD.fullmatch(word) is None or len(word) not in _LETTERS:
        return None
    if re.findall(r"\w+", word.lower()) == re.findall(r"\w+", sentence.lower()):
        return None
    return word[0].upper() + word[1:]


def _check_answer(row: Any) -> None:
    if not all(isinstance(row[name], str) for name in ("sentence", "answer", "model", "prompt")):
        raise TypeError("an answer is text")
