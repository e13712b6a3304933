"""Demonstration search in one run: the reference implementation, ours by halving and ours exhaustively.

    python -m benchmarks.speed.search --tokenizer TOKENIZER --data-dir SENTEVAL

Uses random weights in the shape of OPT-125M, a real tokenizer and STS-B dev. The reference encodes both sentences of
every pair from scratch for each candidate: causal LM with logits and all hidden states, batches of 32, padded on the
left, unsorted. Its search of 300 candidates takes days on a CPU, so the time is extrapolated from some sentences of
some candidates, with interleaved methods. This assumes that all candidates and sentences take as long as the measured
ones, which are drawn at random; ours computes a candidate's prefix once per measured part, as in a round of halving.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import replace

import transformers

from benchmarks.speed.measuring import machine, seconds_of, table
from benchmarks.speed.reference import JOCKEY, Reference, model_folder
from st_prompteol import Demonstration, PromptEOL
from st_prompteol.recipes import sts_b_dev
from st_prompteol.recipes.rounds import ROUNDS

CANDIDATES = 300
SHOTS = [
    JOCKEY,
    Demonstration("relating to switzerland or its people.", "Swiss"),
    Demonstration("of or relating to tutors or tutoring.", "Tutorial"),
    Demonstration("A man is playing on a guitar and singing.", "Music"),
]


def main() -> None:
    """Measures and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or repository of OPT's tokenizer")
    parser.add_argument("--data-dir", required=True, help="folder in SentEval's layout")
    parser.add_argument("--sentences", type=int, default=256, help="of a candidate, for ours")
    parser.add_argument("--reference-sentences", type=int, default=64, help="of a candidate, for the reference")
    parser.add_argument("--candidates", type=int, default=len(SHOTS), choices=range(1, len(SHOTS) + 1))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    pairs = sts_b_dev(arguments.data_dir)
    every = [sentence for pair in pairs for sentence in pair[:2]]
    distinct = list(dict.fromkeys(every))
    shares = [share for share, _ in ROUNDS]
    steps = [share - before for share, before in zip(shares, (0.0, *shares), strict=False)]
    halving = sum(step * kept for step, (_, kept) in zip(steps, ROUNDS, strict=True))

    with model_folder("opt-125m", arguments.tokenizer) as folder:
        model, reference = PromptEOL(folder), Reference.open(folder, batch_size=32)

    rng = random.Random(0)
    theirs, ours = [], []
    for shot in SHOTS[: arguments.candidates]:
        template = model.template = replace(model.template, demonstrations=(shot,))
        texts = [template.render(sentence) for sentence in rng.sample(every, arguments.reference_sentences)]
        theirs.append(seconds_of(lambda texts=texts: reference.encode(texts)) / len(texts))
        sentences = rng.sample(distinct, arguments.sentences)
        # including its prefix
        ours.append(seconds_of(lambda sentences=sentences: model.encode(sentences, batch_size=64)) / len(sentences))
    exhaustive = len(distinct) * CANDIDATES
    ways = {
        "reference, exhaustive": (statistics.median(theirs), len(every) * CANDIDATES),
        "ours, exhaustive": (statistics.median(ours), exhaustive),
        "ours, halving": (statistics.median(ours), round(exhaustive * halving)),
    }
    hours = {way: seconds * count / 3600 for way, (seconds, count) in ways.items()}
    most = hours["reference, exhaustive"]
    lines = [
        [way, f"{seconds:.4f}", f"{count:,}", f"{hours[way]:.2f}", f"{most / hours[way]:.1f}x"]
        for way, (seconds, count) in ways.items()
    ]
    print(machine())
    print(table("way | s a sentence | sentences | hours, extrapolated | ratio", lines), end="")


if __name__ == "__main__":
    main()
