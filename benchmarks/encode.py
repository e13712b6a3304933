"""Encoding speed, in one run: the reference's way of computing, plain sentence-transformers, and PromptEOL.

    python benchmarks/encode.py --tokenizer TOKENIZER --sentences FILE --output benchmarks/encode

Random weights of the shape of OPT-125M, a real tokenizer, real sentences (one a line). The three ways take turns, so
that a machine that slows down slows them all. Medians and ratios are printed and written as JSON, Markdown and PNG.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, OPTConfig, PretrainedConfig

from st_prompteol import Demonstration, PromptEOL

JOCKEY = Demonstration("A jockey riding a horse.", "Equestrian")
SHAPES: dict[str, Callable[[int], PretrainedConfig]] = {
    "opt-125m": lambda vocabulary: OPTConfig(vocab_size=vocabulary),  # the configuration's own defaults
    "smollm2-135m": lambda vocabulary: LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}


class Reference:
    """The reference's way: the causal LM with logits and all hidden states, left padding, 16 at a time, unsorted."""

    def __init__(self, model: PromptEOL, folder: str, dtype: torch.dtype) -> None:
        self.template = model.template
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def encode(self, sentences: list[str]) -> torch.Tensor:
        """Returns embeddings `(len(sentences), hidden_size)`."""
        rows = []
        for start in range(0, len(sentences), 16):
            texts = [self.template.render(sentence) for sentence in sentences[start : start + 16]]
            batch = self.tokenizer(texts, padding=True, return_tensors="pt")
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            rows.append(self.model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1])
        return torch.cat(rows).float()


def measure(
    folder: str, sentences: list[str], shots: int, dtype: torch.dtype, rounds: int, reference_sentences: int
) -> dict[str, float]:
    """Returns sentences per second of each way, medians over interleaved rounds, and the largest difference."""
    options = {"demonstrations": [JOCKEY] * shots, "model_kwargs": {"dtype": dtype}}
    ours = PromptEOL(folder, **options)
    with tempfile.TemporaryDirectory() as saved:
        ours.save_pretrained(saved, create_model_card=False)
        plain = SentenceTransformer(saved, model_kwargs={"dtype": dtype})
    ways = {"reference": Reference(ours, folder, dtype).encode, "plain": plain.encode, "ours": ours.encode}
    counts = {"reference": reference_sentences, "plain": len(sentences), "ours": len(sentences)}
    expected = torch.as_tensor(plain.encode(sentences[:32])).float()
    difference = (torch.as_tensor(ours.encode(sentences[:32])).float() - expected).abs().max() / expected.abs().max()
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, encode in ways.items():
            start = time.perf_counter()
            encode(sentences[: counts[way]])
            speeds[way].append(counts[way] / (time.perf_counter() - start))
    return {way: statistics.median(values) for way, values in speeds.items()} | {"difference": float(difference)}


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Writes the rows as a Markdown table."""
    lines = [
        "| shape | dtype | demonstrations | reference | plain | PromptEOL | vs reference | vs plain | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        speeds = [row[way] for way in ("reference", "plain", "ours")]
        cells = [row["shape"], row["dtype"], str(row["demonstrations"]), *(f"{speed:.1f}" for speed in speeds)]
        cells += [f"{speeds[2] / speeds[0]:.1f}x", f"{speeds[2] / speeds[1]:.1f}x", f"{row['difference']:.0e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws sentences per second against demonstrations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape]
        for way, style in (("ours", "o-"), ("plain", "s--"), ("reference", "^:")):
            label = f"{shape}, {'PromptEOL' if way == 'ours' else way}"
            axes.plot([row["demonstrations"] for row in mine], [row[way] for row in mine], style, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("demonstrations")
    axes.set_ylabel("sentences per second (log scale)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or repository of a tokenizer")
    parser.add_argument("--sentences", required=True, help="text file, one sentence a line")
    parser.add_argument("--output", default="benchmarks/encode", help="where to write, without suffix")
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["opt-125m"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--demonstrations", nargs="+", type=int, default=[0, 1, 4, 16])
    parser.add_argument("--count", type=int, default=512, help="sentences per round")
    parser.add_argument("--reference-count", type=int, default=128, help="of them for the reference, which is slow")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sentences = Path(arguments.sentences).read_text(encoding="utf-8").splitlines()[: arguments.count]
    rows: list[dict[str, Any]] = []
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentences": len(sentences),
        "rows": rows,
    }
    for shape in arguments.shape:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
            tokenizer.save_pretrained(folder)
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(SHAPES[shape](len(tokenizer))).save_pretrained(folder)
            for dtype in arguments.dtype:
                for shots in arguments.demonstrations:
                    row = measure(
                        folder,
                        sentences,
                        shots,
                        getattr(torch, dtype),
                        arguments.rounds,
                        min(arguments.reference_count, len(sentences)),
                    )
                    rows.append({"shape": shape, "dtype": dtype, "demonstrations": shots, **row})
                    print(to_markdown(rows).splitlines()[-1], flush=True)
    output = Path(arguments.output)
    output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(to_markdown(rows), encoding="utf-8")
    plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
