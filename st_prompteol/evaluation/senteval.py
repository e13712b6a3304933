"""Reads the SentEval tasks: sentences and labels from a folder in SentEval's layout, with every line validated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STS_TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
"""The paper's 7 tasks of semantic textual similarity.

Example:
    >>> STS_TASKS
    ('STS12', 'STS13', 'STS14', 'STS15', 'STS16', 'STSBenchmark', 'SICKRelatedness')
"""

STS_DEV_TASK = "STSBenchmark-dev"
"""The validation task, on which recipes and checkpoints are chosen.

Example:
    >>> STS_DEV_TASK in STS_TASKS
    False
"""

STS_TRAIN_TASK = "STSBenchmark-train"  # for `read_task` only, never evaluated
TRANSFER_TASKS = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
"""The paper's 7 transfer tasks: classifiers on frozen embeddings.

Example:
    >>> TRANSFER_TASKS
    ('MR', 'CR', 'SUBJ', 'MPQA', 'SST2', 'TREC', 'MRPC')
"""

CROSS_VALIDATED_TASKS = ("MR", "CR", "SUBJ", "MPQA")  # without a test split
TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


@dataclass(frozen=True)
class TaskResult:
    """The result of one task.

    Args:
        task: The task's name.
        score: The score shown in tables, x100: Spearman over all pairs (STS) or test accuracy (transfer).
        details: Further results as JSON values, scores x100.

    Example:
        >>> result = TaskResult("STS12", 62.9, details={})
        >>> print(f"{result.task} {result.score:.2f}")
        STS12 62.90
    """

    task: str
    score: float
    details: dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """The examples of one subset (STS) or one split (transfer).

    Args:
        columns: One list of sentences, or two for a task on pairs. Tokens are separated by one space, as in SentEval.
        labels: Gold scores (float64) or classes (int64), `(len(columns[0]),)`.
    """

    columns: tuple[list[str], ...]
    labels: npt.NDArray[Any]


def task_files(data_dir: str | Path, task: str) -> list[Path]:
    """Returns the files that a task reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    paths = [Path(data_dir) / name for names in _TASKS[task].files.values() for name in names]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, which the task {task} reads: data_dir must be a folder in SentEval's layout, "
                "as senteval.tar unpacks to."
            )
    return paths


def check_tasks(data_dir: str | Path, tasks: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Checks the names and files of tasks before any of them runs.

    Args:
        data_dir: A folder in SentEval's layout.
        tasks: Names of tasks.
        known: Valid names.

    Returns:
        The tasks as a list.

    Raises:
        ValueError: If a task is not in `known`.
        FileNotFoundError: If a file is missing.
    """
    chosen = check_names(tasks, known)
    for task in chosen:
        task_files(data_dir, task)
    return chosen


def check_names(tasks: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Returns the tasks as a list; raises ValueError if one is not in `known`."""
    chosen = list(tasks)
    for task in chosen:
        if task not in known:
            raise ValueError(f"Unknown task {task!r}: choose from {', '.join(known)}.")
    return chosen


def read_task(data_dir: str | Path, task: str) -> dict[str, Examples]:
    """Reads a task.

    Args:
        data_dir: A folder in SentEval's layout: `STS`, `SICK`, `MR`, `CR`, `SUBJ`, `MPQA`, `SST`, `TREC`, `MRPC`.
        task: One of `STS_TASKS`, `STS_DEV_TASK`, `STS_TRAIN_TASK` or `TRANSFER_TASKS`.

    Returns:
        The examples by subset or split, in the order of the files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is empty or not text, or if a line lacks a column, a score or a known label.
    """
    task_files(data_dir, task)
    splits = {}
    for split, names in _TASKS[task].files.items():
        paths = [Path(data_dir) / name for name in names]
        splits[split] = _TASKS[task].read(*paths)
        if len(splits[split].labels) == 0:
            raise ValueError(f"{paths[-1]} has no labeled line: unpack senteval.tar again.")
    return splits


def _read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Reads lines as SentEval does: in its Latin-1 files, the character NEL (U+0085) also ends a line."""
    try:
        lines = path.read_text(encoding=encoding).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding} text (byte {error.start}): unpack senteval.tar again.") from None
    if not lines:
        raise ValueError(f"{path} is empty: unpack senteval.tar again.")
    return lines


def _read_rows(path: Path, columns: int) -> list[list[str]]:
    """Reads a tab-separated file whose rows have at least `columns` columns."""
    rows = [line.split("\t") for line in _read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) < columns:
            raise _damaged(path, number, f", has {len(row)} tab-separated column(s) where {columns} are needed")
    return rows


def _damaged(path: Path, number: int, problem: str) -> ValueError:
    return ValueError(f"{path}, line {number}{problem}: mend the line or unpack senteval.tar again.")


def _sentences(texts: Iterable[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _score(text: str, path: Path, number: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not np.isfinite(score):
        raise _damaged(path, number, f": the gold score {text!r} is not a number")
    return score


def _class(text: str, path: Path, number: int, classes: tuple[str, ...] = ("0", "1")) -> int:
    if text.strip() not in classes:
        raise _damaged(path, number, f": the label {text!r} is none of {', '.join(classes)}")
    return classes.index(text.strip())


def _read_columns(
    path: Path,
    *,
    sentences: tuple[int, ...],
    label: int,
    parse_label: Callable[[str, Path, int], float] = _score,
    header: bool = False,
) -> Examples:
    """Reads one tab-separated file, given the column indices of sentences and label."""
    rows = _read_rows(path, columns=max(*sentences, label) + 1)[header:]
    return Examples(
        tuple(_sentences(row[column] for row in rows) for column in sentences),
        np.array([parse_label(row[label], path, number) for number, row in enumerate(rows, start=1 + header)]),
    )


def _read_sts(input_path: Path, gold_path: Path) -> Examples:
    """Reads a file of pairs and a file of gold scores; pairs with an empty gold line are not annotated and skipped."""
    rows, gold = _read_rows(input_path, columns=2), _read_lines(gold_path)
    if len(rows) != len(gold):
        raise ValueError(
            f"{input_path} has {len(rows)} lines and {gold_path} has {len(gold)}, which must be equal: "
            "unpack senteval.tar again."
        )
    scored = [number for number, text in enumerate(gold) if text]
    return Examples(
        tuple(_sentences(rows[number][column] for number in scored) for column in (0, 1)),
        np.array([_score(gold[number], gold_path, number + 1) for number in scored]),
    )


def _read_binary(positive_path: Path, negative_path: Path) -> Examples:
    positive, negative = _read_lines(positive_path, "latin-1"), _read_lines(negative_path, "latin-1")
    return Examples((_sentences(positive + negative),), np.repeat([1, 0], [len(positive), len(negative)]))


def _read_trec(path: Path) -> Examples:
    """Reads lines such as `NUM:dist How far is it ?`: coarse class, fine class, question."""
    sentences, labels = [], []
    for number, line in enumerate(_read_lines(path, "latin-1"), start=1):
        target, _, rest = line.partition(":")
        _, space, question = rest.partition(" ")
        if not space:
            raise _damaged(path, number, ", is not of the form 'CLASS:fine question'")
        labels.append(_class(target, path, number, TREC_CLASSES))
        sentences.append(question)
    return Examples((_sentences(sentences),), np.array(labels))


@dataclass(frozen=True)
class _Task:
    """Files by subset or split of a task, and the function that reads the files of one of them."""

    files: dict[str, tuple[str, ...]]
    read: Callable[..., Examples]


def _sts(year: str, *subsets: str) -> _Task:
    folder = f"STS/{year}-en-test"
    return _Task(
        {name: (f"{folder}/STS.input.{name}.txt", f"{folder}/STS.gs.{name}.txt") for name in subsets}, _read_sts
    )


_read_stsb = partial(_read_columns, sentences=(5, 6), label=4)
_read_sick = partial(_read_columns, sentences=(1, 2), label=3, header=True)
_read_sst = partial(_read_columns, sentences=(0,), label=1, parse_label=_class)
_read_mrpc = partial(_read_columns, sentences=(3, 4), label=0, parse_label=_class, header=True)

_TASKS = {
    "STS12": _sts("STS12", "MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": _sts("STS13", "FNWN", "headlines", "OnWN"),  # as in SentEval, without SMT, which may not be shared
    "STS14": _sts("STS14", "deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": _sts("STS15", "answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": _sts("STS16", "answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
    "STSBenchmark": _Task({"test": ("STS/STSBenchmark/sts-test.csv",)}, _read_stsb),
    STS_DEV_TASK: _Task({"dev": ("STS/STSBenchmark/sts-dev.csv",)}, _read_stsb),
    STS_TRAIN_TASK: _Task({"train": ("STS/STSBenchmark/sts-train.csv",)}, _read_stsb),
    "SICKRelatedness": _Task({"test": ("SICK/SICK_test_annotated.txt",)}, _read_sick),
    "MR": _Task({"train": ("MR/rt-polarity.pos", "MR/rt-polarity.neg")}, _read_binary),
    "CR": _Task({"train": ("CR/custrev.pos", "CR/custrev.neg")}, _read_binary),
    "SUBJ": _Task({"train": ("SUBJ/subj.objective", "SUBJ/subj.subjective")}, _read_binary),
    "MPQA": _Task({"train": ("MPQA/mpqa.pos", "MPQA/mpqa.neg")}, _read_binary),
    "SST2": _Task({split: (f"SST/binary/sentiment-{split}",) for split in ("train", "dev", "test")}, _read_sst),
    "TREC": _Task({"train": ("TREC/train_5500.label",), "test": ("TREC/TREC_10.label",)}, _read_trec),
    "MRPC": _Task({split: (f"MRPC/msr_paraphrase_{split}.txt",) for split in ("train", "test")}, _read_mrpc),
}
