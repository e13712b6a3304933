"""Training triplets from the Hub or a file, with a check of every row; STS-B dev for choosing the checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from tokenizers import Tokenizer

from st_prompteol.evaluation.senteval import STS_DEV_TASK, read_task
from st_prompteol.files import Bad, Row, look_into, opened, read_rows, suffix_of

if TYPE_CHECKING:
    from training.arguments import DataArguments

logger = logging.getLogger(__name__)

ROLES = ("anchor", "positive", "negative")
_REPLACEMENT = "\ufffd"  # replaces incomplete bytes of a character when decoding
_PLACES = ("1", "2", "3")  # the columns of a file without a header
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json")
# The template's preprocessing for each value of `preprocessing`: in training, in evaluation
PREPROCESSING = {"paper": ("paper", "paper"), "paper-train": ("none", "paper"), "none": ("none", "none")}
STS_BENCHMARK = "sentence-transformers/stsb"
_SIMCSE = ("sent0", "sent1", "hard_neg")  # the columns of the paper's file, nli_for_simcse.csv


def load_triplets(args: DataArguments, tokenizer: Tokenizer, seed: int = 0) -> Dataset | IterableDataset:
    """Returns the training data with the columns anchor, positive and, if there are hard negatives, negative.

    Every sentence is truncated to `max_sentence_tokens` tokens without the template. Rows with an empty or non-text
    cell are skipped and counted; with `strict` they end the run.

    Raises:
        ValueError: If there are no rows, a column is missing, the content of a file does not match its suffix, or for
            the first bad row with `strict`.
        FileNotFoundError: If the file does not exist.
    """
    columns = _find_columns(args)
    features = Features({role: Value("string") for role in columns})
    read = partial(_read_checked, args, columns)
    if args.streaming:
        data = IterableDataset.from_generator(read, features=features)
        data = data.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size)
    elif rows := list(read()):
        data = Dataset.from_list(rows, features=features)
    else:
        raise ValueError(f"{_source(args)} has no row to train on: check the file and its columns.")

    def cut(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        return {role: cut_sentences(batch[role], tokenizer, args.max_sentence_tokens) for role in columns}

    return data.map(cut, batched=True, features=features)


def _source(args: DataArguments) -> str:
    return repr(args.train_file or args.dataset_name)


def _read_source(args: DataArguments) -> Iterator[Row | Bad]:
    """Yields the rows of the file, or of the Hub dataset if no file is given."""
    if args.train_file:
        yield from read_file(args.train_file, args.columns or (), args.header)
        return
    config = args.dataset_config or ("triplet" if args.dataset_name == "sentence-transformers/all-nli" else None)
    rows = load_dataset(args.dataset_name, config, split=args.dataset_split, streaming=args.streaming)
    for number, cells in enumerate(rows):
        yield Row(f"row {number}", cells)


def _find_columns(args: DataArguments) -> dict[str, str]:
    """Returns two or three columns of the source by role, from the first readable row."""
    problem = ""
    for row in _read_source(args):
        if isinstance(row, Row):
            break
        problem = problem or f" ({row.problem})"
    else:
        raise ValueError(f"{_source(args)} has no row to train on{problem}: check the file and its columns.")
    for names in [args.columns] if args.columns else [ROLES, _SIMCSE, _PLACES, ROLES[:2], _SIMCSE[:2], _PLACES[:2]]:
        if len(names) in (2, 3) and set(names) <= set(row.cells):
            return dict(zip(ROLES, names, strict=False))
    raise ValueError(
        f"{_source(args)} has the columns {', '.join(map(repr, row.cells))}, but not "
        f"{' '.join(args.columns or ROLES)}: name the anchor, positive and (optional) negative column with --columns, "
        "or say --header false if the first row of a CSV or TSV file is data."
    )


def _read_checked(args: DataArguments, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yields the valid rows, at most `max_train_samples`, and logs the number of skipped rows."""
    skipped, places, count = Counter[str](), list[str](), 0
    for row in _read_source(args):
        problem = _problem_of(row, columns)
        if problem is None:
            yield {role: row.cells[column] for role, column in columns.items()}
            count += 1
            if count == args.max_train_samples:
                break
        elif args.strict:
            sentence = (
                row.problem if isinstance(row, Bad) else f"{_source(args)}, {row.place}: {problem}; fix the row,"
            )
            raise ValueError(f"{sentence} or drop --strict to skip such rows.")
        else:
            skipped[problem] += 1
            places.append(row.place)
    if skipped:
        counts = ", ".join(f"{problem} ({number})" for problem, number in skipped.items())
        first = ", ".join(places[:3])
        logger.warning("Skipped %d rows of %s: %s; the first: %s.", len(places), _source(args), counts, first)


def _problem_of(row: Row | Bad, columns: dict[str, str]) -> str | None:
    if isinstance(row, Bad):
        return "unreadable"
    for column in columns.values():
        if not isinstance(row.cells.get(column), str):
            return f"{column} is not text"
        if not row.cells[column].strip():
            return f"{column} is empty"
    return None


def cut_sentences(sentences: list[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Truncates sentences to their first `max_tokens` tokens without the template (the paper's code: 32).

    Shorter sentences are unchanged. If the limit splits a character, which may consist of several byte-level tokens,
    the sentence ends before that character.
    """
    encoded = (encoding.ids for encoding in tokenizer.encode_batch(sentences, add_special_tokens=False))
    return [
        sentence if len(ids) <= max_tokens else _decode_whole(tokenizer, ids, max_tokens)
        for sentence, ids in zip(sentences, encoded, strict=True)
    ]


def _decode_whole(tokenizer: Tokenizer, ids: list[int], count: int) -> str:
    """Decodes the first `count` tokens, without tokens of an incomplete character at the end."""
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    text = decode(ids[:count])
    if text.endswith(_REPLACEMENT):  # incomplete, unless the sentence itself contains it
        whole = decode(ids)
        while text.endswith(_REPLACEMENT) and not whole.startswith(text):
            count -= 1
            text = decode(ids[:count])
    return text


def read_file(path: str | Path, columns: Sequence[str] = (), header: bool | None = None) -> Iterator[Row | Bad]:
    """Yields the rows of a CSV, TSV, JSON or Parquet file, or of all Parquet files in a folder.

    Args:
        path: The file or folder.
        columns: The columns that will be used, if they were named. Defaults to none.
        header: Whether a CSV or TSV file has a header. Defaults to None: detected from its content.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the format is unknown, the file is not in its format, or it is unclear whether it has a header.
    """
    files = files_of(path)
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{str(path)!r} is neither a file nor a folder with .parquet files: check train_file.")
    if suffix_of(files[0]) not in _SUFFIXES:
        raise ValueError(f"Unknown format {str(path)!r}: train_file ends in {', '.join(_SUFFIXES)}.")
    for file in files:
        with opened(file) as source:
            contents = look_into(file, source, columns=columns, header=header)
            yield from read_rows(file, file=source, header=contents.header)


def files_of(path: str | Path) -> list[Path]:
    """Returns the file, or all Parquet files in the folder."""
    return sorted(Path(path).rglob("*.parquet")) if Path(path).is_dir() else [Path(path)]


def sts_benchmark(split: str, data_dir: str | None, batch_size: int) -> EmbeddingSimilarityEvaluator:
    """Returns upstream's evaluator for a split of STS-B, e.g. named `sts-dev`: Spearman correlation of the cosines.

    Args:
        split: `"dev"` or `"test"`.
        data_dir: SentEval's data folder; None to load the split from the Hub.
        batch_size: The number of sentences per forward pass.

    Raises:
        FileNotFoundError: If `data_dir` does not contain STS-B.
    """
    if data_dir is None:
        rows = load_dataset(STS_BENCHMARK, split={"dev": "validation", "test": "test"}[split])
        columns = [list(rows[name]) for name in ("sentence1", "sentence2", "score")]
    else:
        (examples,) = read_task(data_dir, {"dev": STS_DEV_TASK, "test": "STSBenchmark"}[split]).values()
        columns = [*examples.columns, examples.labels.tolist()]
    return EmbeddingSimilarityEvaluator(*columns, name=f"sts-{split}", main_similarity="cosine", batch_size=batch_size)
