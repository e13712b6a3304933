"""Searching a demonstration, in one run: the reference's way, ours by halving and ours exhaustively.

    python benchmarks/search.py --tokenizer TOKENIZER --data-dir SENTEVAL

Random weights of the shape of OPT-125M, a real tokenizer, STS-B dev. The reference encodes both sentences of every
pair from scratch for each candidate: causal LM with logits and all hidden states, 32 at a time, padded on the left,
unsorted. A whole search of 300 candidates takes it days of a CPU, so a part is measured and multiplied: some sentences
of each way for some candidates, the ways in turns. That assumes that every candidate and sentence takes as long as
those measured, which are drawn at random; ours computes a candidate's head once per measured part, as in a round of
halving.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from dataclasses import replace

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from st_prompteol import Demonstration, PromptEOL
from st_prompteol.demonstrations import sts_b_dev
from st_prompteol.demonstrations.encoder import ShotEncoder
from st_prompteol.demonstrations.search import ROUNDS

CANDIDATES = 300
SHOTS = [
    Demonstration("A jockey riding a horse.", "Equestrian"),
    Demonstration("relating to switzerland or its people.", "Swiss"),
    Demonstration("of or relating to tutors or tutoring.", "Tutorial"),
    Demonstration("A man is playing on a guitar and singing.", "Music"),
]


@torch.no_grad()
def encode_as_the_reference(model: torch.nn.Module, tokenizer: object, texts: list[str]) -> None:
    """Encodes texts 32 at a time from scratch."""
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        _ = model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]


def main() -> None:
    """Measures and prints."""
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

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, padding_side="left")
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(OPTConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
        model = PromptEOL(folder)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    start = time.perf_counter()
    encoder = ShotEncoder(model, distinct, [-1], batch_size=64)
    once = time.perf_counter() - start
    rng = random.Random(0)
    theirs, ours = [], []
    for shot in SHOTS[: arguments.candidates]:
        template = replace(encoder.template, demonstrations=(shot,))
        texts = [template.render(sentence) for sentence in rng.sample(every, arguments.reference_sentences)]
        start = time.perf_counter()
        encode_as_the_reference(reference, tokenizer, texts)
        theirs.append((time.perf_counter() - start) / len(texts))
        indices = rng.sample(range(len(distinct)), arguments.sentences)
        start = time.perf_counter()
        encoder.encode((shot,), indices)  # its head included
        ours.append((time.perf_counter() - start) / len(indices))
    reference_hours = statistics.median(theirs) * len(every) * CANDIDATES / 3600
    exhaustive_hours = (statistics.median(ours) * len(distinct) * CANDIDATES + once) / 3600
    halving_hours = (statistics.median(ours) * len(distinct) * CANDIDATES * halving + once) / 3600
    print(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "candidates measured": arguments.candidates,
            }
        )
    )
    print("| way | s a sentence | sentences | hours, extrapolated | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way, seconds, count, hours in (
        ("reference, exhaustive", theirs, len(every) * CANDIDATES, reference_hours),
        ("ours, exhaustive", ours, len(distinct) * CANDIDATES, exhaustive_hours),
        ("ours, halving", ours, round(len(distinct) * CANDIDATES * halving), halving_hours),
    ):
        ratio = reference_hours / hours
        print(f"| {way} | {statistics.median(seconds):.4f} | {count:,} | {hours:.2f} | {ratio:.1f}x |")


if __name__ == "__main__":
    main()
