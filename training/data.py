"""Triplets to train on, from the Hub or a file, every row checked; STS-B dev to choose the checkpoint by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from tokenizers import Tokenizer

from st_prompteol.evaluation.senteval import STS_DEV_TASK, read_task
from st_prompteol.tables import Bad, Row, read_rows

if TYPE_CHECKING:
    from training.arguments import DataArguments

logger = logging.getLogger(__name__)

ROLES = ("anchor", "positive", "negative")
_SIMCSE = ("sent0", "sent1", "hard_neg")  # the columns of the paper's file, nli_for_simcse.csv
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_CHUNK = 1000


def load_triplets(args: DataArguments, tokenizer: Tokenizer, seed: int = 0) -> Dataset | IterableDataset:
    """Returns the training data: columns anchor, positive and, if there are hard negatives, negative.

    Every sentence is cut to `max_sentence_tokens` of its own tokens; rows with an empty cell or one that is not text
    are skipped and counted, or with `strict` end the run.

    Raises:
        ValueError: If there is no row, a column is missing, a file is not what its name says, or, with `strict`, for
            the first bad row.
        FileNotFoundError: If there is no such file.
    """
    triplets = _Triplets(args, tokenizer)
    columns = triplets.roles()
    if args.streaming:
        features = Features({role: Value("string") for role in columns})
        stream = IterableDataset.from_generator(triplets.rows, features=features)
        return stream.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size)
    table: dict[str, list[str]] = {role: [] for role in columns}
    for row in triplets.rows():
        for role, cells in table.items():
            cells.append(row[role])
    if not table["anchor"]:
        raise ValueError(f"{triplets.source} holds no row to train on: check the file and its columns.")
    return Dataset.from_dict(table)


@dataclass
class _Triplets:
    """The rows of a source, read anew each time they are asked for."""

    args: DataArguments
    tokenizer: Tokenizer
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        return repr(self.args.train_file or self.args.dataset_name)

    def raw(self) -> Iterator[Row | Bad]:
        return read_file(self.args.train_file) if self.args.train_file else _read_hub(self.args)

    def roles(self) -> tuple[str, ...]:
        """The roles that the source has a column for: two or three."""
        return ROLES[: len(self.mapping())]

    def mapping(self) -> dict[str, str]:
        """From roles to the names of the source's columns."""
        first = next((row for row in self.raw() if isinstance(row, Row)), None)
        if first is None:
            problem = next((f" ({row.problem})" for row in self.raw() if isinstance(row, Bad)), "")
            raise ValueError(f"{self.source} holds no row to train on{problem}: check the file and its columns.")
        found = list(first.cells)
        candidates = [self.args.columns] if self.args.columns else [ROLES, _SIMCSE, ROLES[:2], _SIMCSE[:2]]
        for names in candidates:
            if len(names) in (2, 3) and set(names) <= set(found):
                return dict(zip(ROLES, names, strict=False))
        wanted = " ".join(self.args.columns or ROLES)
        raise ValueError(
            f"{self.source} has the columns {', '.join(map(repr, found))}, but not {wanted}: name the anchor, "
            "positive and (optional) negative column with --columns."
        )

    def rows(self) -> Iterator[dict[str, str]]:
        """Yields checked rows whose sentences are cut; of each there is at most `max_train_samples`."""
        mapping = self.mapping()
        self.skipped, self.examples = {}, []
        count, chunk = 0, []
        for row in self.raw():
            sentences = [row.cells.get(name) for name in mapping.values()]
            problem = "unreadable" if isinstance(row, Bad) else self.problem(list(mapping.values()), sentences)
            if problem:
                self.skip(row, problem)
                continue
            chunk.append(sentences)
            count += 1
            if count == self.args.max_train_samples:
                break
            if len(chunk) == _CHUNK:
                yield from self.cut(chunk, list(mapping))
                chunk = []
        yield from self.cut(chunk, list(mapping))
        self.report()

    @staticmethod
    def problem(names: list[str], sentences: list[Any]) -> str | None:
        for name, sentence in zip(names, sentences, strict=True):
            if not isinstance(sentence, str):
                return f"{name} is not text"
            if not sentence.strip():
                return f"{name} is empty"
        return None

    def skip(self, row: Row | Bad, problem: str) -> None:
        if self.args.strict:
            told = row.problem if isinstance(row, Bad) else f"{self.source}, {row.place}: {problem}; mend the row,"
            raise ValueError(f"{told} or drop --strict to skip such rows.")
        self.skipped[problem] = self.skipped.get(problem, 0) + 1
        if len(self.examples) < 3:
            self.examples.append(row.place)

    def report(self) -> None:
        if self.skipped:
            counts = ", ".join(f"{problem} ({count})" for problem, count in self.skipped.items())
            logger.warning(
                "Skipped %d rows of %s: %s; the first: %s.",
                sum(self.skipped.values()),
                self.source,
                counts,
                ", ".join(self.examples),
            )

    def cut(self, chunk: list[list[str]], roles: list[str]) -> Iterator[dict[str, str]]:
        sentences = cut_sentences(
            [cell for row in chunk for cell in row], self.tokenizer, self.args.max_sentence_tokens
        )
        width = len(roles)
        for start in range(0, len(sentences), width):
            yield dict(zip(roles, sentences[start : start + width], strict=True))


def cut_sentences(sentences: list[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Cuts sentences to their first `max_tokens` tokens, the template not counted (the paper's code: 32).

    A sentence that is short enough stays as it is, to the character.
    """
    if not sentences:
        return []
    encoded = (encoding.ids for encoding in tokenizer.encode_batch(sentences, add_special_tokens=False))
    return [
        sentence if len(ids) <= max_tokens else tokenizer.decode(ids[:max_tokens], skip_special_tokens=False)
        for sentence, ids in zip(sentences, encoded, strict=True)
    ]


def read_file(path: str | Path) -> Iterator[Row | Bad]:
    """Yields the rows of a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, or of all of a folder's Parquet files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is unknown or the file as a whole is not in it.
    """
    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{str(path)!r} is neither a file nor a folder with .parquet files: check train_file.")
    if files[0].suffix not in _SUFFIXES:
        raise ValueError(f"Unknown format {str(path)!r}: train_file ends in {', '.join(_SUFFIXES)}.")
    for file in files:
        yield from read_rows(file)


def _read_hub(args: DataArguments) -> Iterator[Row | Bad]:
    config = args.dataset_config or ("triplet" if args.dataset_name == "sentence-transformers/all-nli" else None)
    rows = load_dataset(args.dataset_name, config, split=args.dataset_split, streaming=args.streaming)
    for number, cells in enumerate(rows):
        yield Row(f"row {number}", cells)


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences with the similarity that people gave them, 0 to 5 or 0 to 1."""

    first: list[str]
    second: list[str]
    scores: list[float]

    def evaluator(self, name: str, batch_size: int) -> EmbeddingSimilarityEvaluator:
        """Returns upstream's evaluator: Spearman of the cosines with the scores, under `name`."""
        return EmbeddingSimilarityEvaluator(
            self.first, self.second, self.scores, name=name, main_similarity="cosine", batch_size=batch_size
        )


def load_sts_benchmark(split: str, data_dir: str | None) -> Pairs:
    """Returns a split of STS-B (`"dev"` or `"test"`) from SentEval's folder, or from the Hub if there is none.

    Raises:
        FileNotFoundError: If `data_dir` does not hold it.
    """
    if data_dir is None:
        rows = load_dataset("sentence-transformers/stsb", split={"dev": "validation", "test": "test"}[split])
        return Pairs(list(rows["sentence1"]), list(rows["sentence2"]), list(rows["score"]))
    (examples,) = read_task(data_dir, {"dev": STS_DEV_TASK, "test": "STSBenchmark"}[split]).values()
    return Pairs(*examples.columns, examples.labels.tolist())


def training_preprocessing(preprocessing: str) -> tuple[str, str]:
    """Returns the preprocessing of templates (`"paper"` or `"none"`) in training and in evaluation."""
    return {"paper": ("paper", "paper"), "paper-train": ("none", "paper"), "none": ("none", "none")}[preprocessing]
