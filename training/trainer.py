"""sentence-transformers' trainer for an adapter or all weights: resuming, NaN, checkpoints that are whole."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from sentence_transformers import SentenceTransformerTrainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from training.build import load_weights

_WEIGHTS_NAMES = (SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_NAME)  # of an adapter, of a full model


class AdapterTrainer(SentenceTransformerTrainer):
    """Trains the adapter of a `PromptEOL`, or all its weights if it has none.

    Upstream opens a checkpoint as a second model and copies all weights, which neither fits beside a large base nor
    into a quantised one; here what is trained is copied. It hides a NaN loss, or trains on; here it ends the
    run. It leaves half a checkpoint behind when a save fails; here nothing.
    """

    tokens_seen: int = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes upstream's loss, counts tokens, and ends the run where the loss is no number.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        masks = [value for key, value in inputs.items() if key.endswith("attention_mask")]
        self.tokens_seen += int(sum(mask.sum() for mask in masks))
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()}: lower learning_rate, raise "
                "warmup_steps, or compute with --precision float32 or bf16; checkpoints up to here are good, and "
                "--resume_from_checkpoint auto goes on from the last one."
            )
        return result

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as upstream; what is computed afterwards is computed as the model will be used."""
        try:
            return super().train(*args, **kwargs)
        finally:
            vars(self.model).pop("forward", None)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as upstream, but as the model will be used: not in the precision of training."""
        forward = vars(self.model).pop("forward", None)  # accelerate's, which is that of the class within autocast
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if forward is not None:
                self.model.forward = forward

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = os.path.join(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not all(torch.isfinite(parameter).all() for parameter in trained):
            raise FloatingPointError(
                f"Weights are NaN or infinite after step {self.state.global_step}, which is not saved: lower "
                "learning_rate, then go on with --resume_from_checkpoint auto."
            )
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        body = self.accelerator.unwrap_model(self.model)[0].model
        if state_dict is not None:  # what FSDP gathered: the parameters themselves are one process's shards
            tensors = {name.removeprefix("0.model."): tensor for name, tensor in state_dict.items()}
            body.save_pretrained = partial(body.save_pretrained, state_dict=tensors)
        try:
            if self.args.should_save:  # upstream saves in every process, and those after the first without weights
                super()._save(output_dir)
        finally:
            vars(body).pop("save_pretrained", None)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            raise ValueError("A run with sharded weights cannot be resumed: start anew with --adapter CHECKPOINT.")
        load_weights(self.accelerator.unwrap_model(self.model), checkpoint_path)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rsplit("-", 1)[-1]))


def is_complete(checkpoint: str) -> bool:
    """Whether a checkpoint was written to its end: the trainer's state is the last file of it."""
    try:
        with open(os.path.join(checkpoint, TRAINER_STATE_NAME), encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return any(os.path.isfile(os.path.join(checkpoint, name)) for name in _WEIGHTS_NAMES)


def find_checkpoint(output_dir: str, resume_from_checkpoint: str | None) -> str | None:
    """Returns the checkpoint to go on from: the one named, for `"auto"` the last whole one, or None to start.

    Raises:
        ValueError: If `output_dir` holds a run already and nothing says to go on with it, or the checkpoint named is
            not whole.
    """
    entries = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = [
        int(name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
        for name in entries
        if name.startswith(PREFIX_CHECKPOINT_DIR) and name.rpartition("-")[2].isdigit()
    ]
    folders = [os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}") for step in sorted(steps, reverse=True)]
    if resume_from_checkpoint == "auto":
        return next(filter(is_complete, folders), None)
    if resume_from_checkpoint:
        if not is_complete(resume_from_checkpoint):
            raise ValueError(
                f"{resume_from_checkpoint!r} is no whole checkpoint: name another one, or pass "
                "--resume_from_checkpoint auto for the last whole one."
            )
        return resume_from_checkpoint
    if folders or {"modules.json", "config.json"} & set(entries):
        raise ValueError(
            f"{output_dir!r} holds a run already: pass --resume_from_checkpoint auto to go on with it, or another "
            "--output_dir."
        )
    return None
