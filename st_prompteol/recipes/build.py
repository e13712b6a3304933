"""Builds candidate demonstrations from dictionary entries, and from sentences to which an LLM adds a word each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from st_prompteol.evaluation.data import senteval_folder
from st_prompteol.evaluation.senteval import STS_TRAIN_TASK, read_task
from st_prompteol.failures import check_whole
from st_prompteol.files.output import check_output
from st_prompteol.prompt.template import Demonstration
from st_prompteol.recipes.candidates import FORMATS, Candidate, drop_duplicates, write_candidates
from st_prompteol.recipes.llm import LLM, ask_for_words
from st_prompteol.recipes.wordnet import read_dictionary

# The paper's mix (section 3.2)
LLM_COUNT, DICTIONARY_COUNT = 100, 200


def build_demonstrations(
    output: str | Path,
    *,
    dictionary: str | Path | None = None,
    llm: LLM | None = None,
    sentences: Sequence[str] | None = None,
    dictionary_count: int | None = None,
    llm_count: int | None = None,
    min_frequency: int = 1,
    data_dir: str | Path | None = None,
    seed: int = 0,
    show: Callable[[str], None] = lambda line: None,
    show_progress_bar: bool = False,
) -> list[Candidate]:
    """Builds candidate demonstrations and writes them to a file.

    The LLM's answers are logged with their questions, as they arrive, in `<output>.answers.jsonl` beside the output.
    Interrupted runs are resumable, and no answered question is repeated.

    Args:
        output: The output file, `.jsonl` or `.tsv`.
        dictionary: A folder with WordNet's files or a `.tsv` file, see `read_dictionary`. Defaults to None: no
            dictionary.
        llm: An `Endpoint` or a `LocalLM`. Defaults to None: no LLM.
        sentences: Sentences for which the LLM finds words. Defaults to None: STS-B train.
        dictionary_count: Number of dictionary entries. Defaults to None: 200 with an LLM as in the paper, 300
            without.
        llm_count: Number of sentences for the LLM, at most all. Defaults to None: 100 with a dictionary as in the
            paper, 300 without.
        min_frequency: See `read_dictionary`. Defaults to 1.
        data_dir: A folder in SentEval's layout, for STS-B train. Defaults to None: downloaded once.
        seed: Seed of the random samples. Defaults to 0.
        show: Called with lines of text that report progress. Defaults to ignoring them.
        show_progress_bar: Whether to show a progress bar. Defaults to False.

    Returns:
        The candidates, beginning with the LLM's.

    Raises:
        ValueError: If neither dictionary nor LLM is given, a count is below 1, the dictionary has too few entries,
            there is no candidate, or a file is damaged; also raised by the LLM.
        OSError: If a file cannot be read or written; also raised by the LLM.

    Example:
        >>> built = build_demonstrations("mine.jsonl", dictionary="examples/candidates.tsv", dictionary_count=5)
        >>> len(built), len(read_candidates("mine.jsonl"))
        (5, 5)
    """
    path = Path(output)
    check_output(path, FORMATS)
    if dictionary is None and llm is None:
        raise ValueError("There is nothing to build from: give a dictionary, an LLM or both.")
    check_whole(dictionary_count=dictionary_count, llm_count=llm_count)
    check_whole(0, min_frequency=min_frequency, seed=seed)
    both = dictionary is not None and llm is not None
    dictionary_count = dictionary_count or (DICTIONARY_COUNT if both else DICTIONARY_COUNT + LLM_COUNT)
    llm_count = llm_count or (LLM_COUNT if both else DICTIONARY_COUNT + LLM_COUNT)
    entries = []
    if dictionary is not None:
        entries = read_dictionary(dictionary, min_frequency=min_frequency)
        if len(entries) < dictionary_count:
            raise ValueError(
                f"{str(dictionary)!r} has {len(entries)} entries that can be demonstrations, but {dictionary_count} "
                "are asked for: ask for fewer, lower min_frequency or use another dictionary."
            )
        entries = random.Random(seed).sample(entries, dictionary_count)
        show(f"{len(entries)} from {dictionary}")
    found: list[Candidate] = []
    if llm is not None:
        if sentences is None:
            (examples,) = read_task(senteval_folder(data_dir), STS_TRAIN_TASK).values()
            sentences = [sentence for column in examples.columns for sentence in column]
        asked = list(dict.fromkeys(sentence for sentence in sentences if sentence.strip()))
        asked = random.Random(seed).sample(asked, min(llm_count, len(asked)))
        words, reason = ask_for_words(
            llm, asked, path.with_suffix(".answers.jsonl"), show_progress_bar=show_progress_bar
        )
        found = [Candidate(Demonstration(sentence, word), llm.name) for sentence, word in words.items()]
        missing = len(asked) - len(found)
        show(
            f"{len(found)} from {llm.name}"
            + f"; {missing} of {len(asked)} sentences are missing a word" * bool(missing)
            + f", of the last one {reason}: run again to ask for those without an answer" * (reason is not None)
        )
    candidates = drop_duplicates([*found, *entries])
    if not candidates:
        raise ValueError("No sentence got a word, so there is no candidate to write: look at the LLM's answers.")
    write_candidates(candidates, path)
    return candidates
