"""A full example: encode, search, plot, fine-tune, save, and load with plain sentence-transformers.

`make demo` uses the small model that is included in the package; `make demo MODEL=facebook/opt-125m` any other decoder
LLM, from the Hub or a folder. The sentences next to this file were written for this example.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import PrinterCallback
from transformers.utils import logging

from st_prompteol import PromptEOL, lora_config

HERE, OUTPUT = Path(__file__).parent, Path("demo-output")
QUERIES = [
    "Borrowing costs are going up.",
    "Someone is making music.",
    "I cannot sign in.",
    "It was the best meal in years.",
    "A person on horseback.",
]
COLORS = {"news": "tab:blue", "caption": "tab:orange", "question": "tab:green", "review": "tab:red"}

# Plain sentence-transformers, in a process where this package cannot be imported.
PLAIN = """
import sys
sys.modules["st_prompteol"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device="cpu").encode(sys.argv[3:]))
"""


def read(name: str) -> dict[str, list[str]]:
    """Returns the columns of a table in this folder."""
    with open(HERE / name, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {column: [row[column] for row in rows] for column in rows[0]}


def show_neighbours(model: PromptEOL, sentences: list[str], embeddings: np.ndarray) -> None:
    """Prints the three sentences nearest to each query."""
    similarities = model.similarity(model.encode(QUERIES), embeddings)
    for query, row in zip(QUERIES, similarities, strict=True):
        print(f"  {query}")
        for value, index in zip(*row.topk(3), strict=True):
            print(f"    {value:5.2f}  {sentences[index]}")


def draw_map(kinds: list[str], sentences: list[str], embeddings: np.ndarray, path: Path) -> None:
    """Plots sentences along the first two principal components of their embeddings, some with labels."""
    points = torch.nn.functional.normalize(torch.from_numpy(embeddings).float(), dim=1)
    points = points - points.mean(dim=0)
    _, _, directions = torch.linalg.svd(points, full_matrices=False)
    x, y = (points @ directions[:2].T).T.numpy()
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots()
    for kind, color in COLORS.items():
        here = [index for index, other in enumerate(kinds) if other == kind]
        axes.scatter(x[here], y[here], s=14, color=color, label=kind)
    width, height, labeled = float(np.ptp(x)), float(np.ptp(y)), list[int]()
    for index, sentence in enumerate(sentences):
        if any(abs(x[index] - x[i]) < 0.3 * width and abs(y[index] - y[i]) < 0.028 * height for i in labeled):
            continue  # its label would overlap another
        labeled.append(index)
        right = x[index] > x.min() + 0.7 * width
        axes.annotate(
            sentence if len(sentence) <= 40 else sentence[:39] + "…",
            (x[index], y[index]),
            (-3 if right else 3, 2),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=7,
            color="0.25",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{len(sentences)} sentences, by what they are about and how they say it")
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=120)


def fine_tune(model: PromptEOL, folder: Path) -> None:
    """Trains an adapter on the triplets in this folder, then merges it into the weights."""
    model.add_adapter(lora_config())
    model.model_card_data.generate_widget_examples = False
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=20,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    trainer = SentenceTransformerTrainer(
        model, arguments, Dataset.from_dict(read("triplets.tsv")), loss=MultipleNegativesRankingLoss(model)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.merge_adapter()


def main() -> None:
    """Runs all steps, and prints the results and their location."""
    matplotlib.use("agg")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    OUTPUT.mkdir(exist_ok=True)
    name = os.environ.get("MODEL") or "tiny"
    table, pairs = read("sentences.tsv"), read("pairs.tsv")
    sentences = table["sentence"]

    model = PromptEOL(name)
    print(f"model       {name}: {sum(p.numel() for p in model.parameters()):,} parameters on {model.device}")
    print(f"prompt      {model.template.render(sentences[0])}")
    started = time.perf_counter()
    embeddings = model.encode(sentences)
    seconds = time.perf_counter() - started
    print(f"embeddings  {embeddings.shape} in {seconds:.1f} s\n")

    print("nearest sentences")
    show_neighbours(model, sentences, embeddings)
    draw_map(table["kind"], sentences, embeddings, OUTPUT / "map.png")

    scores = [float(score) for score in pairs["score"]]
    evaluator = EmbeddingSimilarityEvaluator(pairs["sentence1"], pairs["sentence2"], scores, write_csv=False)
    before = evaluator(model)[evaluator.primary_metric]
    started = time.perf_counter()
    fine_tune(model, OUTPUT / "run")
    seconds = time.perf_counter() - started
    after = evaluator(model)[evaluator.primary_metric]
    print(f"\nfine-tuned  in {seconds:.0f} s on {len(read('triplets.tsv')['anchor'])} triplets")
    print(f"Spearman    {100 * before:.1f} before, {100 * after:.1f} after, on {len(scores)} other pairs\n")

    folder, out = OUTPUT / "model", OUTPUT / "plain.npy"
    model.save_pretrained(str(folder))
    subprocess.run([sys.executable, "-c", PLAIN, str(folder), str(out), *sentences[:20]], check=True)
    expected = model.encode(sentences[:20])
    difference = np.abs(np.load(out) - expected).max() / np.abs(expected).max()
    print(f'opened      SentenceTransformer("{folder}") in another process, without st_prompteol')
    print(f"agreement   largest relative difference {difference:.1e}")
    print(f"map         {(OUTPUT / 'map.png').resolve()}")
    print(f"model       {folder.resolve()}")
    if difference > 1e-4:
        sys.exit("The saved model embeds differently: this is a bug.")


if __name__ == "__main__":
    main()
