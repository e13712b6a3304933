"""sentence-transformers' trainer for an adapter or all weights, with checks for resuming, NaN and checkpoints."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training.build import load_weights, saving
from training.run_folder import is_complete, last_state


class AdapterTrainer(SentenceTransformerTrainer):
    """Trains the adapter of a `PromptEOL`, or all its weights if it has none.

    - Upstream loads a checkpoint as a second model and copies all weights, which takes too much memory with a large
      base and fails with a quantized one; here only the trained weights are loaded.
    - Upstream ignores a NaN loss and an error in loading the best checkpoint; here they end the run.
    - Upstream leaves an incomplete checkpoint if saving fails; here it is removed.
    - Upstream continues training when resumed after the last step; here the trained weights are loaded.
    """

    tokens_seen: int = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss like upstream and counts tokens.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        self.tokens_seen += sum(int(mask.sum()) for key, mask in inputs.items() if key.endswith("attention_mask"))
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()}: lower learning_rate, raise "
                "warmup_steps, or compute with --precision float32 or bf16; checkpoints up to here are good, and "
                "--resume_from_checkpoint auto goes on from the last one."
            )
        return result

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Trains like upstream, and removes the autocast of training from the model afterwards.

        Resumed from the checkpoint of the last step, no step is trained, while upstream would start another epoch.
        """
        if resume_from_checkpoint is not None and (state := last_state(resume_from_checkpoint)):
            self.state = state
            if self.args.load_best_model_at_end and state.best_model_checkpoint:
                self._load_best_model()
            else:
                self._load_from_checkpoint(resume_from_checkpoint)
            return None
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        finally:
            vars(self.model).pop("forward", None)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates like upstream, but without the autocast of training, as in later use."""
        forward = vars(self.model).pop("forward", None)  # accelerate's wrapper: the class's method in autocast
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if forward is not None:
                self.model.forward = forward

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = os.path.join(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if not all(p.isfinite().all() for p in self.model.parameters() if p.requires_grad):
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
        if state_dict is not None:  # gathered by FSDP; the parameters are shards of one process
            state_dict = {name.removeprefix("0.model."): tensor for name, tensor in state_dict.items()}
        if self.args.should_save:  # upstream saves in every process, without weights except in the first
            with saving(self.accelerator.unwrap_model(self.model).body, state_dict):
                super()._save(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            raise ValueError("A run with sharded weights cannot be resumed: start anew with --adapter CHECKPOINT.")
        load_weights(self.accelerator.unwrap_model(self.model), checkpoint_path)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rsplit("-", 1)[-1]))
