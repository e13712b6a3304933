"""Fine-tunes PromptEOL on triplets with LoRA or QLoRA, and saves an adapter that `SentenceTransformer` opens.

python training/train.py --config training/recipes/opt-125m.yaml
accelerate launch --num_processes 4 training/train.py --config training/recipes/opt-6.7b.yaml
torchrun --nproc_per_node 4 training/train.py --config training/recipes/opt-6.7b.yaml

Every key of a recipe is also a flag, and flags win: `--learning_rate 3e-4`. `--help` lists them.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `training` is run from a checkout, not installed

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers import EarlyStoppingCallback, set_seed

from st_prompteol import PromptEOL, push_to_hub
from st_prompteol.hub.push import check_push
from training.arguments import DataArguments, ModelArguments, Preprocessing, RunArguments, parse_arguments
from training.build import before_training, build_model, check_finite, check_saved, save_merged
from training.data import load_sts_benchmark, load_triplets, training_preprocessing
from training.failures import explained
from training.loss import build_loss
from training.report import DEV_METRIC, Curves, Speed, describe_run, describe_speed, forecast, format_table, judge
from training.run_folder import check_record, claimed
from training.trainer import AdapterTrainer, find_checkpoint


def train(model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments) -> PromptEOL:
    """Runs a recipe from the base LLM to the saved adapter, and returns the model."""
    say = print if run_args.process_index == 0 else lambda *_: None
    checkpoint = find_checkpoint(run_args.output_dir, run_args.resume_from_checkpoint)
    if run_args.resume_from_checkpoint:
        say(f"going on from: {checkpoint or 'the start, there is no whole checkpoint yet'}")

    if run_args.process_index == 0 and not run_args.dry_run:
        check_record(model_args, data_args, run_args, checkpoint)

    # 1. the model: a base LLM, quantised or not, with an adapter on every linear layer
    set_seed(run_args.seed)
    model = build_model(model_args, run_args)
    model.template = replace(model.template, preprocessing=training_preprocessing(data_args.preprocessing)[1])
    repository = {
        "repo_id": run_args.hub_model_id or Path(run_args.output_dir).name,
        "token": run_args.hub_token,
        "private": run_args.hub_private_repo,
        "branch": run_args.hub_revision,
    }
    if run_args.push_result:
        check_push(model, **repository)

    # 2. the data: triplets, and STS-B dev to choose the checkpoint by
    triplets = load_triplets(data_args, model.tokenizer.plain, run_args.seed)
    has_rows = hasattr(triplets, "__len__")
    batch_size = run_args.per_device_train_batch_size * run_args.world_size
    if has_rows and len(triplets) < batch_size:
        raise ValueError(
            f"{len(triplets)} rows do not fill a batch of {batch_size}: lower per_device_train_batch_size."
        )
    if not has_rows and run_args.max_steps <= 0:
        raise ValueError("A stream has no end that is known: pass --max_steps, or drop --streaming.")
    eval_batch_size = run_args.per_device_eval_batch_size
    dev = None
    if run_args.eval_strategy != "no":
        dev = load_sts_benchmark("dev", data_args.sts_data_dir).evaluator("sts-dev", eval_batch_size)

    # 3. the loss: each anchor against the positives and hard negatives of the global batch
    loss = build_loss(model, run_args)

    # 4. the trainer
    speed = Speed()
    trainer = AdapterTrainer(
        model=model,
        args=run_args,
        train_dataset=triplets,
        loss=loss,
        evaluator=dev,
        data_collator=SentenceTransformerDataCollator(preprocess_for_training(model, data_args.preprocessing)),
        callbacks=[speed, Curves()],
    )
    if run_args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(run_args.early_stopping_patience))
    say(describe_run(model, run_args, "negative" in triplets.column_names))

    # 5. training, from the best checkpoint of which the model is taken
    trainer.train(resume_from_checkpoint=checkpoint)
    say(describe_speed(speed, trainer))
    if run_args.dry_run:
        epochs = math.ceil(len(triplets) / batch_size) * run_args.num_train_epochs if has_rows else 0
        say(forecast(speed, run_args.planned_steps if run_args.planned_steps > 0 else math.ceil(epochs)))
        return model

    # 6. the result: adapter with tokenizer and template, read back to see that it is used
    check_finite(model)
    trainer.save_model(run_args.output_dir)
    if not trainer.is_world_process_zero() or run_args.sharded:
        return model
    check_saved(model, run_args.output_dir, model_args, run_args)
    say(f"saved: {run_args.output_dir}")
    if dev is not None:
        test = load_sts_benchmark("test", data_args.sts_data_dir).evaluator("sts-test", eval_batch_size)
        trained = test(model)[test.primary_metric]
        with before_training(model, model_args, run_args) as before:
            base = test(before)[test.primary_metric]
        scores = {"STS-B dev": dev_scores(trainer), "STS-B test": (base, trained)}
        say(format_table(scores))
        for warning in judge(scores):
            say(warning)

    # 7. what else was asked for
    if run_args.merge:
        say(f"saved: {save_merged(model, run_args.output_dir, run_args.merge_dtype)}")
    if run_args.push_result:
        report = push_to_hub(model, source=run_args.output_dir, **repository)
        say(f"pushed: {report.url}")
    return model


def preprocess_for_training(model: PromptEOL, preprocessing: Preprocessing) -> Callable[..., dict[str, Any]]:
    """Returns `model.preprocess` with sentences prepared as in training, which may differ from evaluation."""
    template = replace(model.template, preprocessing=training_preprocessing(preprocessing)[0])
    if template == model.template:
        return model.preprocess
    transformer = copy.copy(model[0])  # the same weights, another tokenizer
    transformer.processor = copy.deepcopy(model.tokenizer)
    transformer.template = template
    return transformer.preprocess


def dev_scores(trainer: AdapterTrainer) -> tuple[float, float]:
    """Returns STS-B dev of the base LLM and of the adapter that was kept, as they were measured on the way."""
    measured = [(row["step"], row[DEV_METRIC]) for row in trainer.state.log_history if DEV_METRIC in row]
    kept = trainer.state.best_metric if trainer.args.load_best_model_at_end else measured[-1][1]
    return next((score for step, score in measured if step == 0), math.nan), kept


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and trains; a mistake in it ends in one sentence."""
    level = logging.WARNING if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)  # a line per multiplication in int8
    with explained():
        model_args, data_args, run_args = parse_arguments(argv)
        is_alone = run_args.process_index == 0 and not run_args.dry_run  # which of several processes writes
        with claimed(run_args.output_dir) if is_alone else nullcontext():
            train(model_args, data_args, run_args)


if __name__ == "__main__":
    main()
