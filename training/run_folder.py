"""The folder of a run: one run at a time, nothing left of a killed one, resumed as it was begun."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from st_prompteol.files import digest_of_files, replacing_file
from st_prompteol.identity import differences
from training.arguments import DataArguments, ModelArguments, RunArguments

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RECORD, _LOCK = "run.json", ".run.lock"
# Of the model and the data, what does not change the result; of the run, what does
_FREE = ("attn_implementation", "sts_data_dir", "strict", "train_file")
_DECIDING = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps",
    "learning_rate", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args", "seed", "data_seed", "batch_sampler",
    "matryoshka_dims", "bf16", "fp16", "eval_strategy", "load_best_model_at_end", "metric_for_best_model",
    "early_stopping_patience",
)  # fmt: skip


@contextmanager
def claimed(output_dir: str) -> Iterator[None]:
    """Keeps other runs out of a folder, and removes what a killed run has left half written.

    The claim ends with the process, however that ends.

    Raises:
        ValueError: If another run has it.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{output_dir!r} is the folder of a run that is going on: wait, or pass another --output_dir."
                ) from None
        for place, name in ((folder, r".+"), (folder.resolve().parent, re.escape(folder.resolve().name))):
            for path in place.iterdir():
                if re.fullmatch(rf"\.{name}\.[0-9a-f]{{8}}\.tmp", path.name):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield


def check_record(
    model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments, checkpoint: str | None
) -> None:
    """Writes down what decides the result of a run, or compares it with that of the run that is gone on with.

    Args:
        model_args: The run's arguments.
        data_args: Likewise.
        run_args: Likewise.
        checkpoint: What it goes on from. None: it begins.

    Raises:
        ValueError: If it would go on with something else; the message names it.
    """
    now = json.loads(json.dumps(_deciding(model_args, data_args, run_args), default=str))
    if checkpoint is not None:
        record = Path(checkpoint).parent / RECORD
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("Nothing in %r says with what its run was begun: it goes on unchecked.", str(record.parent))
            before = now
        if told := differences(before, now, "{name} was {before} and is {now}"):
            raise ValueError(
                f"{checkpoint!r} is of a run that was begun otherwise ({told}): go on as it was begun, or begin a run "
                f"with --output_dir of its own. If it is meant, remove {str(record)!r}."
            )
    with replacing_file(Path(str(run_args.output_dir)) / RECORD) as staged:
        staged.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _deciding(model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments) -> dict[str, Any]:
    arguments = {**asdict(model_args), **asdict(data_args)}
    told = {name: value for name, value in arguments.items() if name not in _FREE}
    told |= {name: getattr(run_args, name) for name in _DECIDING}
    if data_args.train_file is not None:
        return {**told, "train_file": _digest(Path(data_args.train_file))}
    return told


def _digest(path: Path) -> str:
    """A hash of a file, or of a folder's Parquet files: another name for the same rows is no difference."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return digest_of_files(file for file in files if file.is_file())[:16]
