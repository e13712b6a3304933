"""Fine-tunes PromptEOL on triplets with LoRA or QLoRA, and saves an adapter that `SentenceTransformer` can load.

python training/train.py --config training/recipes/opt-125m.yaml
accelerate launch --num_processes 4 training/train.py --config training/recipes/opt-6.7b.yaml
torchrun --nproc_per_node 4 training/train.py --config training/recipes/opt-6.7b.yaml

Every key of a recipe is also a flag, and flags override the recipe: `--learning_rate 3e-4`. `--help` lists them.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `training` is not installed
if __name__ == "__main__" and not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's bars are unreadable in a log; tqdm reads it when imported

from st_prompteol import PromptEOL  # first, because it silences the import of bitsandbytes

# isort: split

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from st_prompteol.cli.options import quiet
from st_prompteol.cli.signals import ending_on_sigterm
from st_prompteol.evaluation.data import REPOSITORY
from st_prompteol.hub import PushOptions, check_push, push_to_hub
from st_prompteol.llm.decoders import check_layer
from training.arguments import DEV_METRIC, DataArguments, ModelArguments, RunArguments, parse_arguments
from training.build import before_training, build_model, check_finite, check_saved, save_merged
from training.data import PREPROCESSING, STS_BENCHMARK, load_triplets, sts_benchmark
from training.failures import explained
from training.loss import build_loss
from training.report import Console, Curves, Speed, describe_run, describe_scores, record_scores
from training.run_folder import check_record, claimed, find_checkpoint, is_finished
from training.trainer import AdapterTrainer


def train(model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments) -> PromptEOL | None:
    """Trains from the base LLM to the saved adapter; returns the model, None if the run is already finished."""
    say = print if run_args.process_index == 0 else lambda *_: None
    checkpoint = find_checkpoint(run_args.output_dir, run_args.resume_from_checkpoint)
    end = Path(run_args.output_dir, TRAINER_STATE_NAME)  # the last file of a run
    if run_args.resume_from_checkpoint and not run_args.dry_run and is_finished(run_args.output_dir, checkpoint):
        if run_args.process_index == 0:
            check_record(model_args, data_args, run_args, checkpoint or str(end))
        say(f"complete: {run_args.output_dir} holds the result of this run already, and nothing was changed")
        return None
    if run_args.resume_from_checkpoint:
        say(f"resuming from: {checkpoint or 'the start, there is no complete checkpoint yet'}")
    if run_args.process_index == 0 and not run_args.dry_run:
        check_record(model_args, data_args, run_args, checkpoint)
        end.unlink(missing_ok=True)

    # 1. the model: a base LLM, quantized or not, with an adapter on every linear layer
    set_seed(run_args.seed)
    in_training, in_evaluation = PREPROCESSING[data_args.preprocessing]
    model = build_model(model_args, run_args)
    model.template = replace(model.template, preprocessing=in_evaluation)
    repo_id = run_args.hub_model_id or Path(run_args.output_dir).name
    push = PushOptions(token=run_args.hub_token, private=run_args.hub_private_repo, revision=run_args.hub_revision)
    if run_args.merge:
        check_layer(run_args.merge_layer, model[0].config)
    if run_args.push_result:
        check_push(model, repo_id, push)

    # 2. the data: triplets, and STS-B dev for choosing the checkpoint
    triplets = load_triplets(data_args, model.tokenizer.plain, run_args.seed)
    batch_size = run_args.per_device_train_batch_size * run_args.world_size
    if data_args.streaming and run_args.max_steps <= 0:
        raise ValueError("A stream has no known end: pass --max_steps, or drop --streaming.")
    if not data_args.streaming and len(triplets) < batch_size:
        raise ValueError(
            f"{len(triplets)} rows do not fill a batch of {batch_size}: lower per_device_train_batch_size."
        )
    stsb = data_args.sts_data_dir, run_args.per_device_eval_batch_size
    dev = None if run_args.eval_strategy == "no" else sts_benchmark("dev", *stsb)

    source = Path(data_args.train_file).name if data_args.train_file else data_args.dataset_name
    model.model_card_data.train_datasets = [{"name": source}]
    if not data_args.train_file:
        model.model_card_data.datasets = [data_args.dataset_name]

    # 3. the trainer; its loss compares each anchor with the positives and hard negatives of the global batch
    speed = Speed(run_args.dry_run)
    trainer = AdapterTrainer(
        model=model,
        args=run_args,
        train_dataset=triplets,
        loss=build_loss(model, run_args),
        evaluator=dev,
        data_collator=SentenceTransformerDataCollator(preprocess_with(model, in_training)),
        callbacks=[speed, Curves(), Console()],
    )
    for upstream in (PrinterCallback, ProgressCallback):  # replaced by `Console`
        trainer.remove_callback(upstream)
    if run_args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(run_args.early_stopping_patience))
    say(describe_run(model.transformers_model, run_args, "negative" in triplets.column_names))

    # 4. training; afterwards the model has the weights of the best checkpoint
    trainer.train(resume_from_checkpoint=checkpoint)
    if speed.durations:
        say(speed.describe(trainer))
    if run_args.dry_run:
        say(speed.forecast(trainer.state.max_steps))
        return model

    # 5. the result: adapter with tokenizer and template, loaded again as a check
    check_finite(model)
    trainer.save_model(run_args.output_dir)
    if run_args.sharded:
        trainer.save_state()
    if not trainer.is_world_process_zero() or run_args.sharded:
        return model
    check_saved(model, run_args.output_dir, model_args, run_args)
    say(f"saved: {run_args.output_dir}")
    if dev is not None:
        test = sts_benchmark("test", *stsb)
        with before_training(model, model_args, run_args) as before:
            base = test(before)[test.primary_metric]
        scores = {"STS-B dev": dev_scores(trainer), "STS-B test": (base, test(model)[test.primary_metric])}
        say(describe_scores(scores))
        dataset = STS_BENCHMARK if data_args.sts_data_dir is None else REPOSITORY
        record_scores(model, scores, run_args.load_best_model_at_end, dataset)
    model.model_card_data.write(run_args.output_dir)

    # 6. optional: a push, a merged model
    if run_args.push_result:
        say(f"pushed: {push_to_hub(model, repo_id, options=push, source=run_args.output_dir)}")
    if run_args.merge:
        say(f"saved: {save_merged(model, run_args.output_dir, run_args.merge_dtype, run_args.merge_layer)}")
    trainer.save_state()
    return model


def preprocess_with(model: PromptEOL, preprocessing: str) -> Callable[..., dict[str, Any]]:
    """Returns `model.preprocess` with the given preprocessing of sentences instead of the model's own."""
    return model.view(replace(model.template, preprocessing=preprocessing)).preprocess


def dev_scores(trainer: AdapterTrainer) -> tuple[float, float]:
    """Returns the STS-B dev scores of the base LLM and of the kept checkpoint from the training log."""
    measured = [(row["step"], row[DEV_METRIC]) for row in trainer.state.log_history if DEV_METRIC in row]
    kept = trainer.state.best_metric if trainer.args.load_best_model_at_end else measured[-1][1]
    return next((score for step, score in measured if step == 0), math.nan), kept


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and trains; user errors end with a one-sentence message."""
    level = logging.WARNING if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    quiet()
    with ending_on_sigterm(), explained():
        model_args, data_args, run_args = parse_arguments(argv)
        writes = run_args.process_index == 0 and not run_args.dry_run
        with claimed(run_args.output_dir) if writes else nullcontext():
            train(model_args, data_args, run_args)


if __name__ == "__main__":
    main()
