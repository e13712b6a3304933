"""Asking a language model for the one word of a sentence: the question, what counts as a word, every answer kept."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from st_prompteol.files import append_lines, read_json_lines

logger = logging.getLogger(__name__)

PROMPT = (
    "Answer with exactly one word, the one that best stands for the meaning of this sentence: letters and hyphens "
    'only, no explanation.\nSentence: "{sentence}"'
)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LETTERS = range(2, 31)


class LLM(Protocol):
    """What answers: an `Endpoint` or a `LocalLM`."""

    @property
    def name(self) -> str:
        """The model, as the record of answers calls it."""

    @property
    def prompt(self) -> str:
        """What it is asked, `{sentence}` in place of the sentence."""

    def ask(self, sentences: Sequence[str], record: Callable[[str, str], bool]) -> str | None:
        """Asks for the word of each sentence.

        Args:
            sentences: The sentences.
            record: Takes a sentence and an answer as soon as it is there; says whether it is a word. It may be called
                from several threads.

        Returns:
            Why some sentences have no answer, None if there is nothing to say.
        """


def ask_for_words(
    llm: LLM, sentences: Sequence[str], answers: Path, *, show_progress_bar: bool = False
) -> tuple[dict[str, str], str | None]:
    """Asks for the word of each sentence, except for those that `answers` has an answer for from the same question.

    Args:
        llm: What is asked.
        sentences: Distinct sentences.
        answers: A `.jsonl` file of all answers, good and bad, each appended when it comes.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        Sentence -> word, as far as there is one, and why some have none if there is anything to say.
    """
    words: dict[str, str] = {}
    answered: set[str] = set()
    for row in read_json_lines(answers, _check_answer):
        if (row["model"], row["prompt"]) == (llm.name, llm.prompt):
            answered.add(row["sentence"])
            if (word := as_word(row["answer"], row["sentence"])) is not None:
                words[row["sentence"]] = word
    if answered:
        logger.info("%d sentences have an answer in %s and are not asked again.", len(answered), answers)
    lock = threading.Lock()

    def record(sentence: str, answer: str) -> bool:
        word = as_word(answer, sentence)
        row = {"sentence": sentence, "answer": answer, "word": word, "model": llm.name, "prompt": llm.prompt}
        with lock:
            append_lines(answers, [json.dumps(row, ensure_ascii=False)])
            if sentence not in answered:
                answered.add(sentence)
                bar.update()
            if word is not None:
                words[sentence] = word
        return word is not None

    open_ = [sentence for sentence in sentences if sentence not in answered]
    reason = None
    with tqdm(total=len(open_), unit=" sentences", disable=not show_progress_bar) as bar:
        if open_:
            reason = llm.ask(open_, record)
    return {sentence: words[sentence] for sentence in sentences if sentence in words}, reason


def as_word(answer: str, sentence: str) -> str | None:
    """Returns the word that an answer is, its first letter a capital; None if it is none, or repeats the sentence."""
    word = answer.strip().strip("\"'`“”‘’*").rstrip(".!").strip("\"'`“”‘’*")
    if _WORD.fullmatch(word) is None or len(word) not in _LETTERS:
        return None
    if re.findall(r"\w+", word.lower()) == re.findall(r"\w+", sentence.lower()):
        return None
    return word[0].upper() + word[1:]


def _check_answer(row: Any) -> None:
    if not all(isinstance(row[name], str) for name in ("sentence", "answer", "model", "prompt")):
        raise TypeError("an answer is text")
