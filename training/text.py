"""English text for a small LM: sentences and a dictionary, without any sentence that the model is evaluated on.

The text of the k-fold tasks (MR, CR, SUBJ, MPQA) has no test part; it is read without its labels.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from st_prompteol.demonstrations.wordnet import read_synsets
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, STS_TRAIN_TASK, read_task
from st_prompteol.template import PromptTemplate
from training.data import read_file

_TRAINING_PARTS = ("MR", "CR", "SUBJ", "MPQA", "TREC", "MRPC")  # MR holds the sentences of SST
_TEST_PARTS = ("SST2", "TREC", "MRPC")
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Text:
    """What there is to read.

    Args:
        sentences: Each of them once.
        definitions: Pairs of a definition and a word that has it.
    """

    sentences: list[str]
    definitions: list[tuple[str, str]]

    def split(self, every: int) -> tuple[Text, Text]:
        """Returns the text to train on and the held-out text, about one sentence in `every`, whatever the order."""
        parts = []
        for held_out in (False, True):
            sentences = [text for text in self.sentences if _is_held_out(text, every) == held_out]
            definitions = [pair for pair in self.definitions if _is_held_out(pair[0], every) == held_out]
            parts.append(Text(sentences, definitions))
        return parts[0], parts[1]


@dataclass(frozen=True)
class Synset:
    """A meaning in WordNet.

    Args:
        words: The words and phrases that have it.
        definition: What it is.
        examples: Sentences that use one of the words.
    """

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def normalise(sentence: str) -> str:
    """Returns what two spellings of a sentence share: its letters and digits, in lower case."""
    return "".join(filter(str.isalnum, sentence.lower()))


def evaluation_sentences(senteval_dir: str) -> set[str]:
    """Returns every sentence, normalised, that a model is chosen or tested by: of all STS tasks and all test parts."""
    seen: set[str] = set()
    for task in (*STS_TASKS, STS_DEV_TASK, *_TEST_PARTS):
        for part, examples in read_task(senteval_dir, task).items():
            if part != "train":
                seen.update(normalise(sentence) for column in examples.columns for sentence in column)
    return seen


def read_text(senteval_dir: str, nli_dir: str, wordnet_dir: str) -> Text:
    """Reads all text, drops what is evaluated on, and what stands there twice.

    Args:
        senteval_dir: SentEval's data folder.
        nli_dir: A folder of Parquet files whose text columns are sentences.
        wordnet_dir: WordNet's folder, with `data.noun`, `data.verb`, `data.adj` and `data.adv`.

    Raises:
        FileNotFoundError: If a folder lacks a file.
    """
    forbidden = evaluation_sentences(senteval_dir)
    synsets = read_wordnet(wordnet_dir)
    sources = (
        _senteval_sentences(senteval_dir),
        (cell for row in read_file(nli_dir) for cell in row.cells.values() if isinstance(cell, str)),
        (example for synset in synsets for example in synset.examples),
    )
    sentences, seen = [], set(forbidden)
    for sentence in (" ".join(sentence.split()) for source in sources for sentence in source):
        key = normalise(sentence)
        if key and key not in seen:
            seen.add(key)
            sentences.append(sentence)
    definitions = [
        (synset.definition, word)
        for synset in synsets
        if not is_forbidden(synset.definition, forbidden)
        for word in synset.words
        if _WORD.fullmatch(word)
    ]
    return Text(sentences, definitions)


def is_forbidden(definition: str, forbidden: set[str]) -> bool:
    """Whether a definition, or one of the parts that its semicolons separate, is a sentence of an evaluation."""
    return any(normalise(part) in forbidden for part in (definition, *definition.split(";")))


def _senteval_sentences(senteval_dir: str) -> Iterator[str]:
    for task in _TRAINING_PARTS:
        for column in read_task(senteval_dir, task)["train"].columns:
            yield from column
    pairs = read_task(senteval_dir, STS_TRAIN_TASK)["train"].columns
    yield from chain.from_iterable(zip(*pairs, strict=True))
    yield from chain.from_iterable(row[1:3] for row in read_sick_train(senteval_dir))


def read_sick_train(senteval_dir: str) -> list[list[str]]:
    """Returns the rows of SICK's training part: number, two sentences, relatedness, entailment.

    As `prompteol-tiny` was trained on them: the first row is the header, and spaces at a sentence's end stay.
    """
    lines = (Path(senteval_dir) / "SICK/SICK_train.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def read_wordnet(wordnet_dir: str) -> list[Synset]:
    """Reads all meanings of WordNet 3.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a line is not in its format.
    """
    synsets = []
    for part in ("noun", "verb", "adj", "adv"):
        path = Path(wordnet_dir) / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: wordnet_dir is the folder with WordNet's data.noun (on Debian the package "
                "wordnet-base puts it into /usr/share/wordnet)."
            )
        synsets += [
            Synset(
                words=tuple(word.replace("_", " ") for word in words),
                definition=gloss.partition('"')[0].strip(" ;:"),
                examples=tuple(example.strip() for example in re.findall(r'"([^"]+)"', gloss)),
            )
            for _, words, gloss in read_synsets(path)
        ]
    return synsets


def _is_held_out(text: str, every: int) -> bool:
    return zlib.crc32(normalise(text).encode()) % every == 0


def render_documents(text: Text, seed: int) -> list[str]:
    """Returns documents to train on: sentences and definitions bare, and in PromptEOL's template with a word.

    A definition stands with the word that it defines; a sentence, once as it is and once in lower case, with one of
    its own words, rare ones more often than common ones: after the template's last token a model then knows what the
    sentence is about. A space is in front of the word, so that it is the same token as inside of a sentence.
    """
    rng = random.Random(seed)
    template = PromptTemplate()
    counts = Counter(word for sentence in text.sentences for word in set(_words(sentence)))
    documents = [*text.sentences, *dict.fromkeys(definition for definition, _ in text.definitions)]
    documents += [_with_word(template, definition, word) for definition, word in text.definitions]
    for sentence in text.sentences:
        words = _words(sentence)
        if words:
            weights = [math.log(1.1 * len(text.sentences) / counts[word]) for word in words]
            for spelling, word in zip((sentence, sentence.lower()), rng.choices(words, weights, k=2), strict=True):
                documents.append(_with_word(template, spelling, word))
    rng.shuffle(documents)
    return documents


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())


def _with_word(template: PromptTemplate, sentence: str, word: str) -> str:
    return f'{template.render(sentence)} {word}".'


def pack(documents: Iterable[list[int]], length: int, open_rows: int = 32) -> list[list[list[int]]]:
    """Puts whole documents together into rows of at most `length` tokens; longer documents lose their end."""
    rows: list[list[list[int]]] = []
    waiting: list[tuple[int, list[list[int]]]] = []  # tokens that are left, documents
    for document in documents:
        document = document[:length]
        fitting = [place for place, (left, _) in enumerate(waiting) if left >= len(document)]
        if fitting:
            left, row = waiting.pop(min(fitting, key=lambda place: waiting[place][0]))
        else:
            left, row = length, []
            rows.append(row)
        row.append(document)
        waiting.append((left - len(document), row))
        if len(waiting) > open_rows:
            waiting.remove(min(waiting, key=lambda entry: entry[0]))
    return rows
