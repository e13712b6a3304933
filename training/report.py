"""Reports of a run: trainable parameters, training curves, memory, speed and a forecast."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from transformers import PreTrainedModel, TrainerCallback

from st_prompteol import PromptEOL
from st_prompteol.files.atomic import replacing_file
from st_prompteol.files.output import duration
from training.arguments import DEV_METRIC, RunArguments

_DRY_STEPS = 2


def describe_run(body: PreTrainedModel, args: RunArguments, has_negatives: bool) -> str:
    """Returns a description of the training: trainable share, batch, negatives per anchor and precision."""
    trained, total = body.num_parameters(only_trainable=True), body.num_parameters()
    batch = args.per_device_train_batch_size * args.world_size
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    accumulation = args.gradient_accumulation_steps
    lines = [
        f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%})",
        f"batch: {batch:,} triplets ({args.per_device_train_batch_size:,} on each of {args.world_size} processes)"
        + (f", in passes of {args.mini_batch_size} sentences" if args.mini_batch_size else ""),
        f"negatives: {batch * (2 if has_negatives else 1) - 1:,} for each anchor",
        f"computing in: {precision}" + (f", because {args.precision_reason}" if args.precision_reason else ""),
    ]
    if accumulation > 1:
        lines.append(f"accumulation: {accumulation} batches per step, which adds no negatives; mini_batch_size does")
    return "\n".join(lines)


class Speed(TrainerCallback):
    """Measures the time of steps, without evaluations and saves; ends a dry run after two steps."""

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run, self.durations, self._started = dry_run, list[float](), 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        self.durations.append(time.perf_counter() - self._started)
        if self.dry_run and len(self.durations) == _DRY_STEPS:
            control.should_training_stop = True

    @property
    def seconds_per_step(self) -> float:
        """The mean duration of a step, without the first one (warm-up) if there are others."""
        durations = self.durations[1:] or self.durations
        return sum(durations) / max(len(durations), 1)

    def describe(self, trainer: Any) -> str:
        """Returns the speed and the peak memory of a trainer's steps."""
        seconds = max(self.seconds_per_step, 1e-9)
        tokens = trainer.tokens_seen / max(len(self.durations), 1) * trainer.args.world_size
        batch = trainer.args.per_device_train_batch_size * trainer.args.world_size
        if torch.cuda.is_available():
            memory, where = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            memory, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of this process"
        return (
            f"speed: {seconds:.3g} s a step, {batch / seconds:,.1f} triplets/s, {tokens / seconds:,.0f} tokens/s\n"
            f"peak memory: {memory / 2**30:.2f} GiB {where}"
        )

    def forecast(self, steps: int) -> str:
        """Returns the expected duration of a run with this number of steps, without evaluations."""
        seconds = self.seconds_per_step * steps
        return f"forecast: {steps:,} steps in {seconds / 3600:.2f} h ({seconds:,.0f} s), without evaluations"


class Console(TrainerCallback):
    """Prints a line per log in the first process: step, loss, learning rate, STS-B dev, elapsed and remaining time."""

    def __init__(self) -> None:
        self._began, self._first_step = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock, and announces an evaluation before the first step."""
        self._began, self._first_step = time.perf_counter(), state.global_step
        if state.is_world_process_zero and args.eval_on_start:
            step = "first" if state.global_step == 0 else "next"
            print(f"step {state.global_step:,} of {state.max_steps:,}: evaluating before the {step} step", flush=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Prints a log; the totals at the end are described by `Speed`."""
        description = _describe_log(logs or {}, state.log_history)
        if description and state.is_world_process_zero:
            line = f"step {state.global_step:,} of {state.max_steps:,}: {description}; {self._times(state)}"
            print(line, flush=True)

    def _times(self, state: Any) -> str:
        elapsed = time.perf_counter() - self._began
        done = state.global_step - self._first_step
        times = f"{duration(elapsed)} elapsed"
        return times + (f", {duration(elapsed / done * (state.max_steps - state.global_step))} left" if done else "")


def _describe_log(logs: dict[str, Any], history: list[dict[str, Any]]) -> str | None:
    """Formats a log of training or evaluation; returns None for a log of totals."""
    if "loss" in logs:
        return f"loss {float(logs['loss']):.4f}, learning rate {float(logs['learning_rate']):.2e}"
    if DEV_METRIC not in logs:
        return None
    measured = [(row[DEV_METRIC], -row["step"]) for row in history if DEV_METRIC in row and row["step"]]
    score = f"STS-B dev {100 * logs[DEV_METRIC]:.2f}"
    if not measured:
        return f"{score} before training"
    best, step = max(measured)
    return f"{score}, best {100 * best:.2f} at step {-step:,}"


class Curves(TrainerCallback):
    """Plots training loss and STS-B dev over steps to `curves.png` in the run's folder, if matplotlib is installed."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Updates the plot after an evaluation and at the end."""
        if not state.is_world_process_zero or not state.log_history or "loss" in state.log_history[-1]:
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        titles = {"loss": "training loss", DEV_METRIC: "STS-B dev, Spearman"}
        for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            points = [(row["step"], row[name]) for row in state.log_history if name in row]
            axes.plot([step for step, _ in points], [value for _, value in points], marker=".")
            axes.set(xlabel="step", title=title)
            axes.grid(alpha=0.3)
        with replacing_file(Path(args.output_dir) / "curves.png") as staged:
            figure.savefig(staged, format="png", dpi=120)


def describe_scores(scores: dict[str, tuple[float, float]]) -> str:
    """Formats scores as a Markdown table, Spearman x 100, with a warning for each score that dropped in training.

    Args:
        scores: Name of the evaluation -> Spearman correlation before and after training.

    Raises:
        FloatingPointError: If a score after training is undefined, because all embeddings are equal or NaN.
    """
    warnings = []
    for name, (before, after) in scores.items():
        if math.isnan(after):
            raise FloatingPointError(
                f"After training there is no score on {name}, because all sentences have the same embedding or NaN: "
                "lower learning_rate, and begin anew."
            )
        if after < before:
            warnings.append(
                f"WARNING: on {name} the trained model is worse than its base, {100 * after:.2f} where that has "
                f"{100 * before:.2f}: lower learning_rate, or look at the data."
            )
    return "\n".join([_table(scores), *warnings])


def record_scores(model: PromptEOL, scores: dict[str, tuple[float, float]], chosen: bool, dataset: str) -> None:
    """Adds the scores before and after training to the model's card, replacing the trainer's last evaluation.

    Args:
        model: The trained model.
        scores: The scores, as in `describe_scores`.
        chosen: Whether the checkpoint was chosen by STS-B dev.
        dataset: The repository of the dataset.
    """
    layer = "the last hidden state" if model.layer == -1 else f"hidden state {model.layer}"
    text = (
        "### STS-B before and after training\n\n"
        f"Measured by the training script at {layer}, on the sentences of `{dataset}`: Spearman correlation of cosine "
        f"similarities, x100.{' STS-B dev chose the checkpoint.' if chosen else ''} STS-B test was measured once, at "
        f"the end.\n\n{_table(scores)}"
    )
    results = [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=dataset,
            dataset_name=f"{name}, by the training script",
            dataset_split=name.rpartition(" ")[2],
            metric_type="spearman_cosine",
            metric_name="Spearman cosine x100",
            metric_value=round(100 * after, 4),
        )
        for name, (_, after) in scores.items()
    ]
    model.model_card_data.eval_results_dict = {}
    model.model_card_data.measure("training_scores", text, results)


def _table(scores: dict[str, tuple[float, float]]) -> str:
    rows = [f"| {name} | {100 * before:.2f} | {100 * after:.2f} |" for name, (before, after) in scores.items()]
    return "\n".join(["| Spearman x 100 | base | trained |", "|---|---|---|", *rows])
