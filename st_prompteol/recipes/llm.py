"""Asks a language model for the one word of a sentence: the question, the validation and the log of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from st_prompteol.files.atomic import append_lines, read_json_lines

PROMPT = (
    "Answer with exactly one word, the one that best stands for the meaning of this sentence: letters and hyphens "
    'only, no explanation.\nSentence: "{sentence}"'
)
WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LETTERS = range(2, 31)

# A sentence, all answers for it, and the reason why it has no word, if known
Answered = tuple[str, list[str], str | None]


class LLM(Protocol):
    """A language model that answers questions: an `Endpoint` or a `LocalLM`."""

    @property
    def name(self) -> str:
        """Name of the model in the log of answers."""

    @property
    def prompt(self) -> str:
        """The question, with `{sentence}` as a placeholder."""

    def ask(self, sentences: Sequence[str]) -> Iterator[Answered]:
        """Asks for the word of each sentence; yields answers as they arrive."""


def ask_for_words(
    llm: LLM, sentences: Sequence[str], answers: Path, *, show_progress_bar: bool = False
) -> tuple[dict[str, str], str | None]:
    """Asks for the word of each sentence that has no answer to the same question in the log yet.

    Args:
        llm: The language model.
        sentences: Distinct sentences.
        answers: A `.jsonl` log of all answers, valid or not; each is appended as it arrives.
        show_progress_bar: Whether to show a progress bar. Defaults to False.

    Returns:
        The words by sentence, without sentences that have none, and why the last of those has none, if known.
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
                row |= {"model": llm.name, "prompt": llm.prompt}
                append_lines(answers, [json.dumps(row, ensure_ascii=False)])
            bar.update()
    return {sentence: word for sentence in sentences if (word := known.get(sentence)) is not None}, reason


def as_word(answer: str, sentence: str) -> str | None:
    """Returns the capitalized word of an answer; None if it is not a single word, or repeats the sentence."""
    word = answer.strip().strip("\"'`“”‘’*").rstrip(".!").strip("\"'`“”‘’*")
    if WORD.fullmatch(word) is None or len(word) not in _LETTERS:
        return None
    if re.findall(r"\w+", word.lower()) == re.findall(r"\w+", sentence.lower()):
        return None
    return word[0].upper() + word[1:]


def _check_answer(row: Any) -> None:
    if not all(isinstance(row[name], str) for name in ("sentence", "answer", "model", "prompt")):
        raise TypeError("an answer is text")
