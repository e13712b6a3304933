"""Compares models of any kind: loads each appropriately and evaluates one or all methods, with a row for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers import AutoConfig

from st_prompteol.evaluation.data import senteval_folder
from st_prompteol.evaluation.methods import apply_decoder_methods, apply_encoder_methods, apply_ensembles
from st_prompteol.evaluation.mteb import evaluate_mteb
from st_prompteol.evaluation.results import Run
from st_prompteol.evaluation.runner import expand_tasks, run_tasks
from st_prompteol.evaluation.score_table import ScoreRow
from st_prompteol.evaluation.senteval import (
    STS_DEV_TASK,
    STS_TASKS,
    TRANSFER_TASKS,
    TaskResult,
    check_names,
    check_tasks,
)
from st_prompteol.failures import check_whole, explain_opening
from st_prompteol.files.output import FIGURES, TABLES, check_output, duration
from st_prompteol.llm.decoders import has_file, is_decoder, split_gguf
from st_prompteol.llm.quantization import quantization_config
from st_prompteol.model import PromptEOL
from st_prompteol.saved.released import find_released

_OWN = {"template", "demonstrations", "layer", "max_seq_length"}  # options that only `PromptEOL` takes


@dataclass(frozen=True)
class Comparison:
    """The evaluation that every model of a comparison goes through.

    Args:
        tasks: SentEval tasks, or groups of them: `"sts"`, `"transfer"`, `"all"`.
        mteb: MTEB tasks or benchmarks. Defaults to none.
        data_dir: A folder in SentEval's layout. Defaults to None: downloaded once.
        results_dir: Folder of the results. Defaults to `"results"`.
        methods: Whether to compare the paper's embedding methods instead of the model as it is. Defaults to False.
        layers: The hidden states to read with `methods`. Defaults to the last.
        ensembles: Groups of templates whose embeddings are averaged with `methods`. Defaults to none.
        rerun: Whether to run finished tasks again. Defaults to False.
        batch_size: The models' batch size. Defaults to 32.

    Example:
        >>> comparison = Comparison(tasks=("STSBenchmark",), data_dir="senteval", methods=True)
        >>> [row.method for row in comparison.run("tiny", {})][:2]
        ['mean of tokens', 'last token']
    """

    tasks: tuple[str, ...] = ("all",)
    mteb: tuple[str, ...] = ()
    data_dir: str | None = None
    results_dir: str = "results"
    methods: bool = False
    layers: tuple[int, ...] = (-1,)
    ensembles: tuple[tuple[str, ...], ...] = ()
    rerun: bool = False
    batch_size: int = 32

    def check(self, output: str | None = None, plot: str | None = None) -> None:
        """Raises ValueError or FileNotFoundError for problems that would otherwise appear after hours of work."""
        check_whole(batch_size=self.batch_size)
        if self.tasks:
            known = (*STS_TASKS, STS_DEV_TASK, *TRANSFER_TASKS)
            tasks = check_names(expand_tasks(self.tasks), known)  # before data is downloaded for them
            check_tasks(senteval_folder(self.data_dir), tasks, known)
        if output is not None:
            check_output(output, TABLES)
        if plot is not None:
            check_output(plot, FIGURES)

    def run(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        show: Callable[[str], None] = lambda line: None,
        show_progress_bar: bool = False,
    ) -> Iterator[ScoreRow]:
        """Evaluates one model and yields a row per method.

        Args:
            name: Repository or folder of a decoder LLM, an adapter, any sentence-transformers model, or an encoder.
            options: Arguments of `PromptEOL` to load the model with; None values are ignored.
            show: Called with a line of text per finished task. Defaults to ignoring it.
            show_progress_bar: Whether to show progress bars. Defaults to False.
        """
        given = {key: value for key, value in options.items() if value is not None}
        source = find_released(name) or name
        for method, model in self._models(source, given):
            run = Run.of(model, source, method, revision=given.get("revision"))
            scores: dict[str, float] = {}
            begun = time.perf_counter()

            def note(result: TaskResult, finished: bool, method: str = method) -> None:
                nonlocal begun
                took = "finished before" if finished else f"in {duration(time.perf_counter() - begun)}"
                show(f"{name}, {method}: {result.task} {result.score:.2f} ({took})")
                begun = time.perf_counter()

            if self.tasks:
                results = run_tasks(
                    model,
                    run,
                    senteval_folder(self.data_dir),
                    expand_tasks(self.tasks),
                    results_dir=self.results_dir,
                    rerun=self.rerun,
                    batch_size=self.batch_size,
                    show_progress_bar=show_progress_bar,
                    callback=note,
                )
                scores |= {task: result.score for task, result in results.items()}
            if self.mteb:
                result = evaluate_mteb(
                    model,
                    self.mteb,
                    name=source,
                    revision=given.get("revision"),
                    results_dir=Path(self.results_dir, "mteb"),
                    batch_size=self.batch_size,
                    rerun=self.rerun,
                    show_progress_bar=show_progress_bar,
                )
                for task in result.task_results:
                    scores[f"{task.task_name} (MTEB)"] = 100 * task.get_score()
                    took = f" (in {duration(task.evaluation_time)})" if task.evaluation_time else ""
                    show(f"{name}, {method}: {task.task_name} (MTEB) {100 * task.get_score():.2f}{took}")
            yield ScoreRow(name, method, scores, run.parameters)

    def _models(self, name: str, options: dict[str, Any]) -> Iterator[tuple[str, SentenceTransformer]]:
        """Yields the name of each method, with a model for it."""
        _, gguf_file = split_gguf(name)
        is_saved = gguf_file is None and has_file(name, "modules.json", _hub_kwargs(options))
        is_llm = gguf_file is not None or _is_llm(name, _hub_kwargs(options))
        if self.methods and is_llm:
            decoder = PromptEOL(name, **{"template": "prompteol", **options})
            yield from apply_decoder_methods(decoder, name, self.layers)
            yield from apply_ensembles(decoder, self.ensembles, self.layers)
            return
        if self.methods and not is_saved:
            yield from apply_encoder_methods(name, **_upstream_options(options))
            return
        if is_llm:
            try:
                model = PromptEOL(name, **options)
            except ValueError:
                if not is_saved or _OWN & options.keys():
                    raise  # otherwise a sentence-transformers model of an LLM with other modules than ours
            else:
                yield model.method_name(), model
                return
        yield "as it is", SentenceTransformer(name, **_upstream_options(options))


def _hub_kwargs(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"revision": options["revision"]} if "revision" in options else {}


def _is_llm(name: str, hub_kwargs: dict[str, Any]) -> bool:
    if has_file(name, "adapter_config.json", hub_kwargs):
        return True
    with explain_opening(name):
        if not has_file(name, "config.json", hub_kwargs) and has_file(name, "modules.json", hub_kwargs):
            return False  # a sentence-transformers model without a language model
        return is_decoder(AutoConfig.from_pretrained(name, **hub_kwargs))


def _upstream_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options as arguments of `SentenceTransformer`; ValueError for options only PromptEOL has."""
    if own := _OWN & options.keys():
        raise ValueError(f"{', '.join(sorted(own))} is for decoder LLMs: leave it out for encoders and saved models.")
    others = {key: value for key, value in options.items() if key not in ("quantization", "device_map")}
    model_kwargs = dict(options.get("model_kwargs", {}))
    if "quantization" in options:
        model_kwargs["quantization_config"] = quantization_config(options["quantization"])
    if "device_map" in options:
        model_kwargs["device_map"] = options["device_map"]
    return {**others, "model_kwargs": model_kwargs}
