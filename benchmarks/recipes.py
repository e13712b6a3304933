"""Evaluates templates, layers and standardizations on STS-B dev and the 7 STS tasks.

    python -m benchmarks.recipes MODEL --data-dir SENTEVAL --statistics SENTENCES

Each sentence is encoded once per template, at all layers. Standardizations use statistics of the sentences of a file,
which should be other text than that of the tasks, as a user's is. Prints, per template, the last layer and those that
are best on STS-B dev, plain or standardized; `--every-layer` prints all, `--output` writes the scores of all tasks.
`--folder` keeps the embeddings, so that a stopped run continues and a run with more tasks encodes only those.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from st_prompteol import TEMPLATES, PromptEOL, PromptTemplate
from st_prompteol.corpus.formats import read_all_sentences
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, read_task
from st_prompteol.evaluation.sts import cosine_similarities, spearman
from st_prompteol.files.atomic import replacing_file
from st_prompteol.files.output import save_table, to_markdown
from st_prompteol.prompt.template import get_template
from st_prompteol.recipes.log import model_key
from st_prompteol.recipes.measure import encode_layers
from st_prompteol.recipes.recipe import template_name
from st_prompteol.saved.identity import digest
from st_prompteol.standardization import METHODS, Standardization

Embeddings = npt.NDArray[np.float32]
_TEXT = ("template", "statistics", "standardization")


class StsTask:
    """The pairs of one STS task, which scores any way of embedding its distinct sentences.

    Args:
        data_dir: Folder in SentEval's layout.
        name: The task.
    """

    def __init__(self, data_dir: str, name: str) -> None:
        subsets = read_task(data_dir, name).values()
        columns = [[text for subset in subsets for text in subset.columns[side]] for side in (0, 1)]
        places: dict[str, int] = {}
        self._sides = [[places.setdefault(text, len(places)) for text in column] for column in columns]
        self._gold = np.concatenate([subset.labels for subset in subsets])
        self.name, self.sentences = name, list(places)

    def score(self, embeddings: Embeddings) -> float:
        """Returns the Spearman correlation, x100, of the embeddings of `sentences`."""
        return spearman(cosine_similarities(*(embeddings[side] for side in self._sides)), self._gold)


class LayerEmbeddings:
    """Embeddings of sentences at all layers, `(sentences, layers, hidden_size)`, kept in a folder.

    Args:
        model: The model, a transformer with last-token pooling.
        folder: The folder; None keeps nothing.
    """

    def __init__(self, model: PromptEOL, folder: str | None) -> None:
        self.model, self._folder, self._model_key = model, folder, model_key(model)
        self.layers = list(range(-1, -model[0].config.get_text_config().num_hidden_layers - 1, -1))

    def encode(self, template: PromptTemplate, sentences: Sequence[str]) -> Embeddings:
        """Encodes sentences with a template, or reads the embeddings of an earlier run of the same model."""
        key = digest([self._model_key, template.to_dict(), list(sentences)])
        path = Path(self._folder or "", f"{key}.npy")
        if self._folder and path.exists():
            kept: Embeddings = np.load(path, mmap_mode="r")
            return kept
        vectors = encode_layers(self.model, template, self.layers, sentences)
        embeddings = np.stack([vectors[layer] for layer in self.layers], axis=1)
        if self._folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as staged, open(staged, "wb") as file:
                np.save(file, embeddings)
        return embeddings


def fit_all(statistics: Embeddings) -> dict[str, Callable[[Embeddings], Embeddings]]:
    """Returns what is compared: embeddings as they are, and each standardization fitted to the statistics."""
    return {"plain": np.asarray, **{method: Standardization.fit(statistics, method).apply for method in METHODS}}


def measure_template(
    embeddings: LayerEmbeddings,
    template: PromptTemplate,
    statistics: Sequence[str],
    tasks: Sequence[StsTask],
    every_layer: bool,
) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """Yields a layer and, per standardization, the scores of the tasks, the first of which chooses the layer."""
    dev, *others = tasks
    sample, on_dev = (embeddings.encode(template, texts) for texts in (statistics, dev.sentences))
    places = range(len(embeddings.layers))
    maps = [fit_all(sample[:, place]) for place in places]
    scores = [{how: [dev.score(apply(on_dev[:, place]))] for how, apply in maps[place].items()} for place in places]
    best = {max(places, key=lambda place: scores[place][how]) for how in scores[0]}
    on_others = [(task, embeddings.encode(template, task.sentences)) for task in others]
    for place in places if every_layer else sorted({0, *best}):
        for how, apply in maps[place].items():
            scores[place][how] += [task.score(apply(rows[:, place])) for task, rows in on_others]
        yield embeddings.layers[place], scores[place]


def to_cells(scores: Sequence[float]) -> list[str]:
    """Returns the scores of STS-B dev and of tasks, and the average of the tasks, as the paper rounds it."""
    average = [sum(round(score, 2) for score in scores[1:]) / len(scores[1:])] if len(scores) > 1 else []
    return [f"{score:.2f}" for score in [*scores, *average]]


def main() -> None:
    """Evaluates and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a decoder LLM")
    parser.add_argument("--data-dir", required=True, help="folder in SentEval's layout")
    parser.add_argument("--statistics", required=True, nargs="+", metavar="FILE", help="sentences to standardize by")
    parser.add_argument("--templates", nargs="+", default=list(TEMPLATES), help="names, or texts with {sentence}")
    parser.add_argument("--tasks", nargs="*", choices=STS_TASKS, default=STS_TASKS, help="beside STS-B dev")
    parser.add_argument("--every-layer", action="store_true", help="print all layers")
    parser.add_argument("--folder", help="folder that keeps the embeddings")
    parser.add_argument("--output", help="table to write: .md, .csv or .json")
    arguments = parser.parse_args()

    tasks = [StsTask(arguments.data_dir, name) for name in (STS_DEV_TASK, *arguments.tasks)]
    model = PromptEOL(arguments.model)
    del model[2:]  # without the model's own standardization
    embeddings = LayerEmbeddings(model, arguments.folder)
    hows = ["plain", *METHODS]
    averages = ["STS avg"] if arguments.tasks else []
    lines = [[*_TEXT, "layer", *(task.name for task in tasks), *averages]]
    summary = [[*_TEXT[:2], "layer", *(f"{column}, {how}" for column in ("STS-B dev", *averages) for how in hows)]]
    ends = (0, -1) if averages else (0,)
    for template, file in product(map(get_template, arguments.templates), arguments.statistics):
        statistics = list(dict.fromkeys(read_all_sentences(file)))
        for layer, scores in measure_template(embeddings, template, statistics, tasks, arguments.every_layer):
            cells = {how: to_cells(scores[how]) for how in hows}
            about = [template_name(template), Path(file).name]
            lines += [[*about, how, str(layer), *cells[how]] for how in hows]
            summary.append([*about, str(layer), *(cells[how][end] for end in ends for how in hows)])
    print(to_markdown(summary, text_columns=_TEXT), end="")
    if arguments.output:
        save_table(lines, arguments.output, text_columns=_TEXT)


if __name__ == "__main__":
    main()
