"""Writes the triplets that `prompteol-tiny` is fine-tuned on, as a JSON Lines file for `train.py --train_file`.

python training/tiny_triplets.py --senteval_dir ../shared/senteval --nli_dir ../shared/hub/datasets/nli

A small model learns most of what it knows about similarity here, so the triplets come from everything at hand:
inference (premise, entailment, contradiction), paraphrases, the dictionary (a definition, its words, the words of
another meaning under the same general one) and sentences beside themselves with words left out. No triplet holds a
sentence that the model is chosen or tested by.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `training` is run from a checkout, not installed

from st_prompteol.evaluation.senteval import read_task
from st_prompteol.files import replacing_file
from training.data import ROLES, read_file
from training.failures import explained
from training.text import Synset, evaluation_sentences, is_forbidden, normalise, read_text, read_wordnet

Triplet = tuple[str, str, str]
_ALIKE = 4.0  # out of 5: pairs that people gave as much count as paraphrases


def inference_triplets(nli_dir: str, rng: random.Random) -> Iterator[Triplet]:
    """Yields premises with an entailment and a contradiction, or another premise where there is none."""
    hypotheses: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for _, row in read_file(nli_dir):
        if "premise" in row:
            hypotheses[row["premise"]][row["label"]].append(row["hypothesis"])
    premises = list(hypotheses)
    for premise, (entailed, _, contradicted) in ((p, [h[0], h[1], h[2]]) for p, h in hypotheses.items()):
        for number, hypothesis in enumerate(entailed):
            yield (
                premise,
                hypothesis,
                contradicted[number % len(contradicted)] if contradicted else rng.choice(premises),
            )


def paraphrase_triplets(senteval_dir: str, rng: random.Random) -> Iterator[Triplet]:
    """Yields the pairs of MRPC's, STS-B's and SICK's training parts that mean the same, with another sentence."""
    mrpc = read_task(senteval_dir, "MRPC")["train"]
    pairs = [pair for *pair, label in zip(*mrpc.columns, mrpc.labels, strict=True) if label == 1]
    for name, first, score in (("STS/STSBenchmark/sts-train.csv", 5, 4), ("SICK/SICK_train.txt", 1, 3)):
        lines = (Path(senteval_dir) / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if not line.startswith("pair_ID")]
        pairs += [row[first : first + 2] for row in rows if float(row[score]) >= _ALIKE]
    for first, second in pairs:
        yield first, second, rng.choice(pairs)[0]


def dictionary_triplets(synsets: list[Synset], rng: random.Random) -> Iterator[Triplet]:
    """Yields definitions with their words and the words of a sister: a meaning under the same general one."""
    sisters: dict[str, list[Synset]] = defaultdict(list)
    for synset in synsets:
        for hypernym in synset.hypernyms:
            sisters[hypernym].append(synset)
    for synset in synsets:
        group = [other for hypernym in synset.hypernyms for other in sisters[hypernym] if other is not synset]
        if group and all(word.islower() for word in synset.words):
            yield synset.definition, ", ".join(synset.words), ", ".join(rng.choice(group).words)


def sentence_triplets(sentences: list[str], rng: random.Random, kept: float = 0.7) -> Iterator[Triplet]:
    """Yields sentences with what is left of them when words are dropped, and the same of another sentence."""
    for sentence in sentences:
        if len(sentence.split()) > 4:
            yield sentence, _drop_words(sentence, rng, kept), _drop_words(rng.choice(sentences), rng, kept)


def _drop_words(sentence: str, rng: random.Random, kept: float) -> str:
    words = sentence.split()
    return " ".join(word for word in words if rng.random() < kept) or words[0]


def all_triplets(senteval_dir: str, nli_dir: str, wordnet_dir: str, seed: int, sources: list[str]) -> list[Triplet]:
    """Returns the triplets, none of which holds a sentence of an evaluation."""
    rng = random.Random(seed)
    forbidden = evaluation_sentences(senteval_dir)
    makers = {
        "inference": lambda: inference_triplets(nli_dir, rng),
        "paraphrases": lambda: paraphrase_triplets(senteval_dir, rng),
        "dictionary": lambda: dictionary_triplets(read_wordnet(wordnet_dir), rng),
        "sentences": lambda: sentence_triplets(read_text(senteval_dir, nli_dir, wordnet_dir).sentences, rng),
    }
    triplets = [
        triplet
        for source in sources
        for triplet in makers[source]()
        if all(normalise(sentence) and not is_forbidden(sentence, forbidden) for sentence in triplet)
    ]
    rng.shuffle(triplets)
    return triplets


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--senteval_dir", default="data", help="SentEval's data folder.")
    parser.add_argument("--nli_dir", default="nli", help="Folder of Parquet files with premise, hypothesis, label.")
    parser.add_argument("--wordnet_dir", default="/usr/share/wordnet", help="Folder of WordNet's data files.")
    parser.add_argument("--sources", nargs="+", default=["inference", "paraphrases", "dictionary", "sentences"])
    parser.add_argument("--output", default="runs/tiny-triplets.jsonl")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    with explained("tiny_triplets.py"):
        triplets = all_triplets(args.senteval_dir, args.nli_dir, args.wordnet_dir, args.seed, args.sources)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(args.output) as staged:
            lines = (json.dumps(dict(zip(ROLES, triplet, strict=True)), ensure_ascii=False) for triplet in triplets)
            staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{len(triplets):,} triplets: {args.output}")


if __name__ == "__main__":
    main()
