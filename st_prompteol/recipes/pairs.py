"""Scored sentence pairs: STS-B dev or a file, shuffled and split into search and held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from st_prompteol.evaluation.data import senteval_folder
from st_prompteol.evaluation.senteval import STS_DEV_TASK, read_task
from st_prompteol.failures import check_whole
from st_prompteol.files import Bad, look_into, opened, read_rows, report

ScoredPair = tuple[str, str, float]

_COLUMNS = ("sentence1", "sentence2", "score")
_FEWEST_PAIRS = 10


def sts_b_dev(data_dir: str | Path | None = None) -> list[ScoredPair]:
    """Returns the pairs of STS-B dev.

    Args:
        data_dir: A folder in SentEval's layout. Defaults to None: downloaded once.

    Example:
        >>> pairs = sts_b_dev("senteval")  # without a folder, they are downloaded once
        >>> [type(value).__name__ for value in pairs[0]]
        ['str', 'str', 'float']
    """
    (examples,) = read_task(senteval_folder(data_dir), STS_DEV_TASK).values()
    first, second = examples.columns
    return list(zip(first, second, map(float, examples.labels), strict=True))


def read_pairs(path: str | Path, header: bool | None = None) -> list[ScoredPair]:
    """Reads pairs from a JSON, CSV, TSV or Parquet file with columns `sentence1`, `sentence2`, `score`.

    Args:
        path: The file: `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`, optionally compressed with gzip or zstd.
        header: False for a CSV or TSV file without a header, whose columns are in this order. Defaults to None: the
            file has a header with these names.

    Raises:
        ValueError: If the format is unknown, a column is missing, a score is not a number or there are no pairs; the
            message names the line.
        OSError: If the file cannot be read.

    Example:
        >>> pairs = read_pairs("examples/pairs.tsv")
        >>> len(pairs)
        40
    """
    name, pairs = str(path), []
    with opened(path) as file:
        contents = look_into(path, file, columns=_COLUMNS, header=_COLUMNS if header is False else header)
        if contents.is_lines:
            raise ValueError(f"Unknown format of pairs {name!r}: end its name in .jsonl, .csv, .tsv or .parquet.")
        if contents.kind in ("CSV", "TSV") and contents.columns and not set(_COLUMNS) <= set(contents.columns):
            raise ValueError(
                f"{name!r} has no header with {', '.join(_COLUMNS)} but {', '.join(map(repr, contents.columns))}: "
                "rename its columns or, if it has no header and its columns are in this order, say --no-header "
                "(header=False in Python)."
            )
        for row in read_rows(path, file=file, header=header is not False or _COLUMNS):
            if isinstance(row, Bad):
                raise ValueError(row.problem)
            try:
                first, second, score = (row.cells[column] for column in _COLUMNS)
                if not isinstance(first, str) or not isinstance(second, str):
                    raise TypeError("sentences must be text")
                pairs.append((first, second, float(score)))
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{name!r}, {row.place}, must have {', '.join(_COLUMNS)}, the last one a number: mend it."
                ) from None
    report(contents, len(pairs))
    if not pairs:
        raise ValueError(f"{name!r} holds no pair: write {', '.join(_COLUMNS)} of each.")
    return pairs


def split_pairs(
    pairs: Iterable[ScoredPair], holdout: float = 0.0, seed: int = 0
) -> tuple[list[ScoredPair], list[ScoredPair]]:
    """Shuffles pairs and splits them into search pairs and held-out pairs.

    Args:
        pairs: The pairs.
        holdout: Fraction of held-out pairs. Defaults to 0.
        seed: Seed of the shuffling. Defaults to 0.

    Raises:
        ValueError: If the fraction is not in [0, 1), a part has fewer than 10 pairs, or its gold scores are not
            finite or all equal.
    """
    check_whole(0, seed=seed)
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout} is not a share of the pairs: choose 0 to below 1, e.g. 0.3.")
    checked = [(str(first), str(second), float(score)) for first, second, score in pairs]
    for place, (_, _, score) in enumerate(checked, start=1):
        if not np.isfinite(score):
            raise ValueError(f"The gold score of pair {place} is {score}, not a number: mend or drop the pair.")
    order = np.random.default_rng(seed).permutation(len(checked))
    shuffled = [checked[place] for place in order]
    searched = len(shuffled) - round(holdout * len(shuffled))
    parts = shuffled[:searched], shuffled[searched:]
    for part, purpose in zip(parts, ("a search", "a holdout") if holdout else ("a search",), strict=False):
        gold = {score for _, _, score in part}
        if len(part) < _FEWEST_PAIRS:
            raise ValueError(f"{len(part)} scored pairs are too few for {purpose}: give {_FEWEST_PAIRS} or more.")
        if len(gold) == 1:
            raise ValueError(
                f"All {len(part)} gold scores of {purpose} are {gold.pop():g}, so no recipe can rank pairs better "
                "than another: give pairs of different scores."
            )
    return parts
