"""English text for a small LM: sentences and a dictionary, without any sentence that the model is evaluated on.

The text of the k-fold tasks (MR, CR, SUBJ, MPQA) has no test part; it is read without its labels.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, STS_TRAIN_TASK, read_task
from st_prompteol.prompt.template import PromptTemplate
from st_prompteol.recipes.wordnet import read_synsets
from training.data import read_file

_TRAINING_PARTS = ("MR", "CR", "SUBJ", "MPQA", "TREC", "MRPC")  # MR holds the sentences of SST
_TEST_PARTS = ("SST2", "TREC", "MRPC")
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Text:
    """Text to train on.

    Args:
        sentences: Each of them once.
        definitions: Pairs of a definition and a word that has it.
    """

    sentences: list[str]
    definitions: list[tuple[str, str]]

    def split(self, every: int) -> tuple[Text, Text]:
        """Returns the text to train on and the held-out text, about one sentence in `every`, whatever the order."""

        def part(held_out: bool) -> Text:
            def belongs(text: str) -> bool:
                return (zlib.crc32(normalize(text).encode()) % every == 0) == held_out

            return Text(
                [sentence for sentence in self.sentences if belongs(sentence)],
                [(definition, word) for definition, word in self.definitions if belongs(definition)],
            )

        return part(False), part(True)


def normalize(sentence: str) -> str:
    """Returns a sentence's letters and digits in lower case, which are the same in two spellings of it."""
    return "".join(filter(str.isalnum, sentence.lower()))


def evaluation_sentences(senteval_dir: str) -> set[str]:
    """Returns every sentence, normalized, that a model is chosen or tested by: of all STS tasks and all test parts."""
    return {
        normalize(sentence)
        for task in (*STS_TASKS, STS_DEV_TASK, *_TEST_PARTS)
        for part, examples in read_task(senteval_dir, task).items()
        if part != "train"
        for sentence in chain.from_iterable(examples.columns)
    }


def is_forbidden(text: str, forbidden: set[str]) -> bool:
    """Whether a sentence or definition, or one of the parts that its semicolons separate, is in an evaluation."""
    return any(normalize(part) in forbidden for part in (text, *text.split(";")))


def read_text(senteval_dir: str, nli_dir: str, wordnet_dir: str) -> Text:
    """Reads all text but what is evaluated on, each sentence once.

    Args:
        senteval_dir: SentEval's data folder.
        nli_dir: A folder of Parquet files whose text columns are sentences.
        wordnet_dir: WordNet's folder, with `data.noun`, `data.verb`, `data.adj` and `data.adv`.

    Raises:
        FileNotFoundError: If a folder lacks a file.
    """
    forbidden = evaluation_sentences(senteval_dir)
    synsets = list(read_wordnet(wordnet_dir))
    sources = (
        _senteval_sentences(senteval_dir),
        (cell for row in read_file(nli_dir) for cell in row.cells.values() if isinstance(cell, str)),
        (example for _, _, examples in synsets for example in examples),
    )
    sentences: dict[str, str] = {}
    for sentence in (" ".join(sentence.split()) for source in sources for sentence in source):
        sentences.setdefault(normalize(sentence), sentence)
    definitions = [
        (definition, word)
        for words, definition, _ in synsets
        if not is_forbidden(definition, forbidden)
        for word in words
        if _WORD.fullmatch(word)
    ]
    return Text([sentence for key, sentence in sentences.items() if key and key not in forbidden], definitions)


def _senteval_sentences(senteval_dir: str) -> Iterator[str]:
    for task in _TRAINING_PARTS:
        yield from chain.from_iterable(read_task(senteval_dir, task)["train"].columns)
    pairs = read_task(senteval_dir, STS_TRAIN_TASK)["train"].columns
    yield from chain.from_iterable(zip(*pairs, strict=True))
    yield from chain.from_iterable(row[1:3] for row in read_sick_train(senteval_dir))


def read_sick_train(senteval_dir: str) -> list[list[str]]:
    """Returns the rows of SICK's training part: number, two sentences, relatedness, entailment.

    As the packaged model was trained on them: the first row is the header, and spaces at a sentence's end stay.
    """
    lines = (Path(senteval_dir) / "SICK/SICK_train.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def read_wordnet(wordnet_dir: str) -> Iterator[tuple[list[str], str, list[str]]]:
    """Yields the meanings of WordNet 3: the words that have it, its definition, and sentences with one of the words.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a line is not in its format.
    """
    for part in ("noun", "verb", "adj", "adv"):
        path = Path(wordnet_dir) / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: wordnet_dir is the folder with WordNet's data.noun (on Debian the package "
                "wordnet-base puts it into /usr/share/wordnet)."
            )
        for _, words, gloss in read_synsets(path):
            examples = [example.strip() for example in re.findall(r'"([^"]+)"', gloss)]
            yield [word.replace("_", " ") for word in words], gloss.partition('"')[0].strip(" ;:"), examples


def render_documents(text: Text, seed: int) -> list[str]:
    """Returns documents to train on: sentences and definitions bare, and in PromptEOL's template with a word.

    A definition comes with the word that it defines; a sentence, once as it is and once in lower case, with one of
    its own words, rare ones more often than common ones: after the template's last token a model then knows what the
    sentence is about. A space is in front of the word, so that it is the same token as inside of a sentence.
    """
    rng, template = random.Random(seed), PromptTemplate()

    def with_word(sentence: str, word: str) -> str:
        return f'{template.render(sentence)} {word}".'

    words = [_WORD.findall(sentence.lower()) for sentence in text.sentences]
    counts = Counter(word for found in words for word in set(found))
    documents = [*text.sentences, *dict.fromkeys(definition for definition, _ in text.definitions)]
    documents += [with_word(definition, word) for definition, word in text.definitions]
    for sentence, found in zip(text.sentences, words, strict=True):
        if found:
            weights = [math.log(1.1 * len(text.sentences) / counts[word]) for word in found]
            first, second = rng.choices(found, weights, k=2)
            documents += [with_word(sentence, first), with_word(sentence.lower(), second)]
    rng.shuffle(documents)
    return documents
