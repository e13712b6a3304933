"""Evaluates every template at every layer, plain and standardized, on STS-B dev and the 7 STS tasks.

    python -m benchmarks.recipes MODEL --data-dir SENTEVAL

Each sentence is encoded once per template. For all tasks, the statistics are those of the distinct sentences of STS-B
dev, like in a search on these pairs. Prints averages; `--output` writes all tasks.
"""

from __future__ import annotations

import argparse

import numpy as np

from st_prompteol import TEMPLATES, PromptEOL
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, read_task
from st_prompteol.evaluation.sts import cosine_similarities, spearman
from st_prompteol.files.output import save_table, to_markdown
from st_prompteol.recipes.measure import encode_layers
from st_prompteol.standardization import METHODS, Standardization


def main() -> None:
    """Evaluates and prints the averages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a decoder LLM")
    parser.add_argument("--data-dir", required=True, help="folder in SentEval's layout")
    parser.add_argument("--tasks", nargs="+", choices=STS_TASKS, default=STS_TASKS, help="beside STS-B dev")
    parser.add_argument("--output", help="table of all tasks to write: .md, .csv or .json")
    arguments = parser.parse_args()

    tasks = (STS_DEV_TASK, *arguments.tasks)
    columns: dict[str, list[list[str]]] = {}  # task -> first sentences, second sentences of all subsets
    gold = {}
    for task in tasks:
        subsets = read_task(arguments.data_dir, task).values()
        columns[task] = [[text for subset in subsets for text in subset.columns[side]] for side in (0, 1)]
        gold[task] = np.concatenate([subset.labels for subset in subsets])
    place: dict[str, int] = {}  # sentence -> index, those of STS-B dev first
    for task in tasks:
        for text in [*columns[task][0], *columns[task][1]]:
            place.setdefault(text, len(place))
    pairs = {task: [[place[text] for text in side] for side in columns[task]] for task in tasks}
    of_dev = 1 + max(map(max, pairs[STS_DEV_TASK]))

    model = PromptEOL(arguments.model)
    model = PromptEOL(modules=[model[0], model[1]])  # without a standardization of its own
    layers = range(-1, -model[0].config.get_text_config().num_hidden_layers - 1, -1)
    lines = [["template", "layer", "standardization", *tasks, "STS avg"]]
    averages = [["template", "layer", "STS-B dev", *METHODS, "STS avg", *METHODS]]
    for name in (name for name in TEMPLATES if name != "none"):
        vectors = encode_layers(model, TEMPLATES[name], layers, list(place))
        for layer in layers:
            rows: list[list[str]] = []
            for method in (None, *METHODS):
                embeddings = vectors[layer]
                if method is not None:
                    embeddings = Standardization.fit(embeddings[:of_dev], method).apply(embeddings)
                scores = [
                    spearman(cosine_similarities(*(embeddings[side] for side in pairs[task])), gold[task])
                    for task in tasks
                ]
                average = sum(round(one, 2) for one in scores[1:]) / len(arguments.tasks)
                rows.append([f"{score:.2f}" for score in [*scores, average]])
                lines.append([name, str(layer), method or "plain", *rows[-1]])
            averages.append([name, str(layer), *(row[0] for row in rows), *(row[-1] for row in rows)])
    print(to_markdown(averages, text_columns=("template",)), end="")
    if arguments.output:
        save_table(lines, arguments.output, text_columns=("template", "standardization"))


if __name__ == "__main__":
    main()
