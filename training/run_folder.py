"""The folder of a run: a lock for one run at a time, clean-up of killed runs, and checks for resuming."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from st_prompteol.files.atomic import digest_of_files, remove_staged, replacing_file
from st_prompteol.saved.identity import differences
from st_prompteol.saved.saving import finish_saving, remove_left_behind
from training.arguments import DataArguments, ModelArguments, RunArguments
from training.data import files_of

try:
    import fcntl
except ImportError:  # missing on Windows, where two runs in one folder are not detected
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RECORD, _LOCK = "run.json", ".run.lock"
_WEIGHTS_NAMES = (SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_NAME)  # of an adapter and a full model
# The arguments of model and data that do not affect the result, and those of the run that do
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
    """Locks a folder against other runs until the process ends, and removes unfinished files of a killed run.

    Raises:
        ValueError: If another run is using the folder.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another run is using {output_dir!r}: wait for it, or pass another --output_dir."
                ) from None
        remove_staged(folder, ".")
        for each in (folder, *folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
            remove_left_behind(each)
        yield


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is complete, i.e. has the trainer's state, its last file."""
    finish_saving(checkpoint)
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(Path(checkpoint, name).is_file() for name in _WEIGHTS_NAMES)


def last_state(checkpoint: str | Path) -> TrainerState | None:
    """Returns the trainer's state in a complete checkpoint of the last step, None for an earlier checkpoint."""
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})  # stopped early, or by max_steps
    return state if state.global_step >= state.max_steps or control.get("should_training_stop") else None


def is_finished(output_dir: str, checkpoint: str | None) -> bool:
    """Whether the run in a folder is finished; the checkpoint of the last step alone is not enough.

    Args:
        output_dir: The run's folder. A finished run has the trainer's state in it, like a checkpoint.
        checkpoint: The checkpoint to resume from. After an earlier one than the last, steps are trained again.
    """
    return is_complete(output_dir) and (checkpoint is None or last_state(checkpoint) is not None)


def find_checkpoint(output_dir: str, resume_from_checkpoint: str | None) -> str | None:
    """Returns the checkpoint to resume from: the given one, for `"auto"` the last complete one, or None to start anew.

    Raises:
        ValueError: If `output_dir` already has a run but resuming was not requested, or the given checkpoint is
            incomplete.
    """
    entries = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    names = [name for name in entries if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", name)]
    if resume_from_checkpoint == "auto":
        latest_first = sorted(names, key=lambda name: int(name.rpartition("-")[2]), reverse=True)
        return next(filter(is_complete, (os.path.join(output_dir, name) for name in latest_first)), None)
    if resume_from_checkpoint and not is_complete(resume_from_checkpoint):
        raise ValueError(
            f"The checkpoint {resume_from_checkpoint!r} is incomplete: name another one, or pass "
            "--resume_from_checkpoint auto for the last complete one."
        )
    if not resume_from_checkpoint and (names or {"modules.json", "config.json"} & set(entries)):
        raise ValueError(
            f"{output_dir!r} has a run already: pass --resume_from_checkpoint auto to resume it, or another "
            "--output_dir."
        )
    return resume_from_checkpoint


def check_record(
    model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments, checkpoint: str | None
) -> None:
    """Records the arguments that affect a run's result, and checks that a resumed run has the same ones.

    Raises:
        ValueError: If an argument has changed; the message names it.
    """
    arguments = {
        name: value for name, value in {**asdict(model_args), **asdict(data_args)}.items() if name not in _FREE
    }
    arguments |= {name: getattr(run_args, name) for name in _DECIDING}
    if data_args.train_file is not None:  # compared by content, not by name
        files = [file for file in files_of(data_args.train_file) if file.is_file()]
        arguments["train_file"] = digest_of_files(files)[:16]
    now = json.loads(json.dumps(arguments, default=str))
    if checkpoint is not None:
        record = Path(checkpoint).parent / RECORD
        try:
            before = dict(json.loads(record.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError):
            logger.warning("%r has no record of the arguments its run began with: not checked.", str(record.parent))
            before = now
        if diff := differences(before, now, "{name} was {before} and is {now}"):
            raise ValueError(
                f"{checkpoint!r} is of a run that began with other arguments ({diff}): resume it with the same ones, "
                f"or begin a run in another --output_dir. If the change is intended, remove {str(record)!r}."
            )
    with replacing_file(Path(str(run_args.output_dir)) / RECORD) as staged:
        staged.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
