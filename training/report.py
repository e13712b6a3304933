"""What a run tells: what will be trained, curves beside the checkpoints, memory and speed, a forecast."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from st_prompteol.files import replacing_file

DEV_METRIC = "eval_sts-dev_spearman_cosine"


def describe_run(model: torch.nn.Module, args: Any, has_negatives: bool) -> str:
    """Returns what is trained: its share, the batch, the negatives of each anchor, and what is computed in."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(_count(parameter) for parameter in model.parameters())
    batch = args.per_device_train_batch_size * args.world_size
    negatives = batch * (2 if has_negatives else 1) - 1
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    accumulation = args.gradient_accumulation_steps
    lines = [
        f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%})",
        f"batch: {batch:,} triplets ({args.per_device_train_batch_size:,} on each of {args.world_size} processes)"
        + (f", in passes of {args.mini_batch_size} sentences" if args.mini_batch_size else ""),
        f"negatives: {negatives:,} for each anchor",
        f"computing in: {precision}" + (f", because {args.precision_reason}" if args.precision_reason else ""),
    ]
    if accumulation > 1:
        lines.append(f"accumulation: {accumulation} batches per step, which adds no negatives; mini_batch_size does")
    return "\n".join(lines)


def _count(parameter: torch.nn.Parameter) -> int:
    """The numbers in a parameter, of which bitsandbytes packs two into a byte in 4 bit."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def peak_memory() -> tuple[int, str]:
    """Returns the most memory that was in use, in bytes, and where."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of this process"


class Speed(TrainerCallback):
    """Measures steps without the first one, which warms up, and without evaluations and saves."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._started = 0.0, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it; the first step counts only while there is no other."""
        taken = time.perf_counter() - self._started
        if self.steps == 1 and self._first:
            self.seconds, self.steps = 0.0, 0
        self._first = self.steps == 0 and not self.seconds
        self.seconds, self.steps = self.seconds + taken, self.steps + 1

    _first = False

    @property
    def seconds_per_step(self) -> float:
        """The mean."""
        return self.seconds / max(self.steps, 1)


class Curves(TrainerCallback):
    """Draws `curves.png` in the run's folder: the training loss and STS-B dev over steps."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws anew what is known, where an evaluation or the end added to it."""
        if state.is_world_process_zero and state.log_history and "loss" not in state.log_history[-1]:
            draw_curves(state.log_history, Path(args.output_dir) / "curves.png")


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draws a trainer's log history as PNG; without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    series = {name: [(row["step"], row[name]) for row in history if name in row] for name in ("loss", DEV_METRIC)}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 2), series.items(), strict=True):
        axes.plot([step for step, _ in points], [value for _, value in points], marker=".")
        axes.set(xlabel="step", title={"loss": "training loss"}.get(name, "STS-B dev, Spearman"))
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as staged:
        figure.savefig(staged, format="png", dpi=120)


def describe_speed(speed: Speed, trainer: Any) -> str:
    """Returns speed and memory of the steps that were run."""
    memory, where = peak_memory()
    steps = max(trainer.state.global_step - trainer._initial_global_step, 1)
    tokens = trainer.tokens_seen / steps * trainer.args.world_size
    batch = trainer.args.per_device_train_batch_size * trainer.args.world_size
    second = max(speed.seconds_per_step, 1e-9)
    return (
        f"speed: {speed.seconds_per_step:.3g} s a step, {batch / second:,.1f} triplets/s, {tokens / second:,.0f} "
        f"tokens/s\npeak memory: {memory / 2**30:.2f} GiB {where}"
    )


def forecast(speed: Speed, total_steps: int) -> str:
    """Returns how long a whole run will take, evaluations aside."""
    seconds = speed.seconds_per_step * total_steps
    return f"forecast: {total_steps:,} steps in {seconds / 3600:.2f} h ({seconds:,.0f} s), evaluations aside"


def judge(scores: dict[str, tuple[float, float]]) -> list[str]:
    """Returns a sentence for each evaluation on which training made the model worse than its base.

    Args:
        scores: What was evaluated -> Spearman before and after training.

    Raises:
        FloatingPointError: If there is no score after training, as all embeddings are alike or are no numbers.
    """
    for name, (_, after) in scores.items():
        if math.isnan(after):
            raise FloatingPointError(
                f"After training there is no score on {name}, because all sentences are embedded alike or by NaN: "
                "lower learning_rate, and begin anew."
            )
    return [
        f"WARNING: on {name} the trained model is worse than its base, {100 * after:.2f} where that has "
        f"{100 * before:.2f}: lower learning_rate, or look at the data."
        for name, (before, after) in scores.items()
        if after < before
    ]


def format_table(scores: dict[str, tuple[float, float]]) -> str:
    """Returns base and trained scores as a Markdown table, Spearman x 100."""
    rows = [f"| {name} | {base * 100:.2f} | {trained * 100:.2f} |" for name, (base, trained) in scores.items()]
    return "\n".join(["| Spearman x 100 | base | trained |", "|---|---|---|", *rows])
