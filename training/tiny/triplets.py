"""Writes the triplets that the packaged model is fine-tuned on, as a JSON Lines file for `train.py --train_file`.

python training/tiny/triplets.py --senteval_dir ../shared/senteval --nli_dir ../shared/hub/datasets/nli

Inference (premise, entailment, contradiction), mostly of captions, and paraphrases, mostly from the news. No triplet
has a sentence that the model is chosen or tested by.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `training` is run from a checkout, not installed

from st_prompteol.evaluation.senteval import STS_TRAIN_TASK, read_task
from st_prompteol.files.atomic import replacing_file
from training.data import ROLES, read_file
from training.failures import explained
from training.tiny.text import evaluation_sentences, is_forbidden, normalize, read_sick_train

Triplet = tuple[str, str, str]
_ALIKE = 4.0  # out of 5: pairs with at least this score count as paraphrases


def inference_triplets(nli_dir: str, rng: random.Random) -> Iterator[Triplet]:
    """Yields premises with an entailment and a contradiction, or another premise where there is none."""
    hypotheses: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read_file(nli_dir):
        if "premise" in row.cells:
            hypotheses[row.cells["premise"]][row.cells["label"]].append(row.cells["hypothesis"])
    premises = list(hypotheses)
    for premise, by_label in hypotheses.items():
        contradicted = by_label[2]
        for number, entailed in enumerate(by_label[0]):
            negative = contradicted[number % len(contradicted)] if contradicted else rng.choice(premises)
            yield premise, entailed, negative


def paraphrase_triplets(senteval_dir: str, rng: random.Random) -> Iterator[Triplet]:
    """Yields the pairs of MRPC's, STS-B's and SICK's training parts that mean the same, with another sentence."""
    pairs: list[list[str]] = []
    for task, least in (("MRPC", 1), (STS_TRAIN_TASK, _ALIKE)):
        part = read_task(senteval_dir, task)["train"]
        pairs += [pair for *pair, label in zip(*part.columns, part.labels, strict=True) if label >= least]
    pairs += [row[1:3] for row in read_sick_train(senteval_dir)[1:] if float(row[3]) >= _ALIKE]
    for first, second in pairs:
        yield first, second, rng.choice(pairs)[0]


def read_triplets(senteval_dir: str, nli_dir: str) -> list[Triplet]:
    """Returns the triplets, the same ones in the same order each time."""
    forbidden, kept = evaluation_sentences(senteval_dir), list[Triplet]()
    for read, folder in ((inference_triplets, nli_dir), (paraphrase_triplets, senteval_dir)):
        rng = random.Random(42)
        allowed = [
            triplet
            for triplet in read(folder, rng)
            if all(normalize(sentence) and not is_forbidden(sentence, forbidden) for sentence in triplet)
        ]
        rng.shuffle(allowed)
        kept += allowed
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--senteval_dir", default="data", help="SentEval's data folder.")
    parser.add_argument("--nli_dir", default="nli", help="Folder of Parquet files with premise, hypothesis, label.")
    parser.add_argument("--output", default="runs/tiny-triplets.jsonl")
    args = parser.parse_args(argv)
    with explained("triplets.py"):
        triplets = read_triplets(args.senteval_dir, args.nli_dir)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(args.output) as staged:
            lines = (json.dumps(dict(zip(ROLES, triplet, strict=True)), ensure_ascii=False) for triplet in triplets)
            staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{len(triplets):,} triplets: {args.output}")


if __name__ == "__main__":
    main()
