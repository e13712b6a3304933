"""Scored sentence pairs: those of STS-B dev, or of a file."""

from __future__ import annotations

from pathlib import Path

from st_prompteol.demonstrations.measure import ScoredPair
from st_prompteol.evaluation.data import senteval_folder
from st_prompteol.evaluation.senteval import STS_DEV_TASK, read_task
from st_prompteol.tables import Bad, read_rows

_COLUMNS = ("sentence1", "sentence2", "score")


def sts_b_dev(data_dir: str | Path | None = None) -> list[ScoredPair]:
    """Returns the pairs of STS-B dev, from a folder in SentEval's layout, or downloaded once."""
    (examples,) = read_task(senteval_folder(data_dir), STS_DEV_TASK).values()
    first, second = examples.columns
    return list(zip(first, second, map(float, examples.labels), strict=True))


def read_pairs(path: str | Path) -> list[ScoredPair]:
    """Reads pairs from a `.jsonl`, `.csv` or `.tsv` file with the columns `sentence1`, `sentence2` and `score`.

    Raises:
        ValueError: If the suffix is another, a column is missing, a score is no number or there is no pair; the
            message names the line.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".csv", ".tsv"):
        raise ValueError(f"Unknown format of pairs {str(path)!r}: end its name in .jsonl, .csv or .tsv.")
    pairs = []
    for row in read_rows(path):
        if isinstance(row, Bad):
            raise ValueError(row.problem)
        try:
            first, second, score = (row.cells[name] for name in _COLUMNS)
            if not isinstance(first, str) or not isinstance(second, str):
                raise TypeError("a sentence is no text")
            pairs.append((first, second, float(score)))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{str(path)!r}, {row.place}, must have {', '.join(_COLUMNS)}, the last one a number: mend it."
            ) from None
    if not pairs:
        raise ValueError(f"{str(path)!r} holds no pair: write {', '.join(_COLUMNS)} of each.")
    return pairs
