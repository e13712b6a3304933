"""What a run is made of: a recipe's keys, each also a flag, and the nearest name for one that does not exist."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import HfArgumentParser

Preprocessing = Literal["paper-train", "paper", "none"]


@dataclass
class ModelArguments:
    """The model: a decoder LLM behind a template, and what is trained on it."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(default=None, metadata={"help": "Base LLM: Hub id or folder."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the base LLM."})
    template: str | None = field(
        default=None,
        metadata={"help": "Name or text of the template. None: that of a saved model, prompteol for a base LLM."},
    )
    layer: int | None = field(default=None, metadata={"help": "Hidden state that is read; -1 is after the last norm."})
    max_seq_length: int | None = field(default=None, metadata={"help": "Most tokens of a rendered sentence."})
    quantization: str | None = field(
        default=None,
        metadata={"help": "nf4 (QLoRA: 4 bit, double quantisation), int8, or none for the weights as dtype says."},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={
            "help": "Of the frozen weights. auto: the checkpoint's own on an accelerator, float32 on a CPU. Adapters "
            "are always float32."
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, …"})
    adapter: str | None = field(
        default=None,
        metadata={"help": "Adapter to train further, folder or Hub id; it names its base LLM itself."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapter; 0 trains all weights instead."})
    lora_alpha: int = field(default=16, metadata={"help": "Updates are scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapter."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Layers to adapt: all-linear, or names such as q_proj v_proj."},
    )


@dataclass
class DataArguments:
    """The data: triplets to train on and STS-B dev to choose the checkpoint by."""

    _argument_group_name = "data"

    dataset_name: str = field(
        default="sentence-transformers/all-nli", metadata={"help": "Hub dataset, if there is no train_file."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Its configuration. None: triplet for all-nli, the only one for others."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Its split."})
    train_file: str | None = field(
        default=None, metadata={"help": "A .csv, .tsv, .jsonl or .parquet file in place of the Hub dataset."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the anchor, positive and (optional) negative columns. None: anchor positive negative, "
            "or SimCSE's sent0 sent1 hard_neg."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs max_steps."})
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Rows a stream is shuffled among."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first rows."})
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad row instead of skipping it."})
    max_sentence_tokens: int = field(
        default=32, metadata={"help": "Training sentences are cut to this many of their own tokens."}
    )
    preprocessing: Preprocessing = field(
        default="paper",
        metadata={
            "help": "Of sentences. paper: the paper's for evaluation, in training too; paper-train: as the paper's "
            "code, in evaluation only; none: nowhere."
        },
    )
    sts_data_dir: str | None = field(
        default=None, metadata={"help": "SentEval's data folder, for STS-B. None: sentence-transformers/stsb."}
    )


@dataclass
class RunArguments(SentenceTransformerTrainingArguments):
    """The run: everything that sentence-transformers' trainer takes, with the paper's values as defaults."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of checkpoints and of the result."})
    mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Sentences per forward pass. A batch of any size then takes the memory of this many, with all its "
            "negatives (gradient caching). None: the whole batch at once."
        },
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Train the first so many numbers of an embedding too, e.g. 768 256 64."}
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "Of computing. auto: what the hardware is made for."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice instead of keeping them."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better STS-B dev."}
    )
    merge: bool = field(default=False, metadata={"help": "Save a full model, the adapter added to the weights."})
    merge_dtype: Literal["auto", "float16"] = field(
        default="auto", metadata={"help": "How the full model's weights are stored; float16 halves its file."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Two steps, then a forecast of time and memory."})
    # the paper's values in place of upstream's
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Triplets per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sentences per step of an evaluation."})
    learning_rate: float = field(
        default=5e-4, metadata={"help": "Peak, reached after warmup_steps, then linear to 0."}
    )
    warmup_steps: float = field(default=100, metadata={"help": "Steps, or below 1 a share of all steps."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    batch_sampler: str = field(default="no_duplicates", metadata={"help": "No sentence twice in a batch."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float | None = field(default=50, metadata={"help": "Steps between evaluations."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before the first step."})
    save_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    save_steps: float = field(default=50, metadata={"help": "Steps between checkpoints; a multiple of eval_steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the checkpoint of the best STS-B dev."})
    metric_for_best_model: str | None = field(
        default="eval_sts-dev_spearman_cosine", metadata={"help": "What best means."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Upstream's: hides NaN losses in logs."})
    report_to: str | None = field(default="none", metadata={"help": "wandb, tensorboard, mlflow, …, all or none."})
    hub_strategy: str = field(default="end", metadata={"help": "Only end: the result is pushed, checkpoints are not."})

    precision_reason: str = field(default="", init=False)
    planned_steps: int = field(default=-1, init=False)
    push_result: bool = field(default=False, init=False)
    sharded: bool = field(default=False, init=False)
    checkpoint_activations: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("A run needs an output_dir: pass --output_dir, or write the key into the recipe.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} must be at least 1, or left out.")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or upstream refuses bf16 there
        if not (self.bf16 or self.fp16):
            precision, self.precision_reason = choose_precision(self.precision, self.use_cpu)
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        # the trainer would push every file in the folder; train.py pushes the model
        self.push_result, self.push_to_hub = self.push_to_hub, False
        self.planned_steps = self.max_steps
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if self.hub_strategy != "end" or self.hub_always_push:
            raise ValueError(
                f"hub_strategy={str(self.hub_strategy)!r} and hub_always_push={self.hub_always_push} would publish "
                "checkpoints unchecked: leave them out, and --push_to_hub publishes the checked result at the end."
            )
        if self.push_result and self.sharded:
            raise ValueError(
                "push_to_hub does not work with sharded weights, which are not whole in any process: leave it out, "
                "and run `st-prompteol push` on the output_dir afterwards."
            )
        if self.sharded:  # an evaluator does not see the weights that other processes hold
            self.eval_strategy = "no"
        if self.eval_strategy == "no":
            self.eval_on_start = self.load_best_model_at_end = False
        self.checkpoint_activations = bool(self.gradient_checkpointing)  # which build.py does, under either of the
        self.gradient_checkpointing = None  # type: ignore[assignment] - names that transformers has for it
        if self.dry_run:
            self.max_steps, self.logging_steps = 2, 1
            self.eval_strategy = self.save_strategy = "no"
            self.eval_on_start = self.load_best_model_at_end = False
        super().__post_init__()


def choose_precision(precision: str, use_cpu: bool) -> tuple[str, str]:
    """Returns what to compute in (`float32`, `bf16`, `fp16`) and the reason, as a clause."""
    if precision != "auto":
        return precision, "as asked"
    if not use_cpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} multiplies bfloat16 natively"
        return "fp16", f"{name} has no native bfloat16"
    if not use_cpu and torch.accelerator.is_available():
        return "float32", f"autocast on {torch.accelerator.current_accelerator()} is not tested here"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "this CPU multiplies bfloat16 natively"
    return "float32", "this CPU has no native bfloat16"


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """Reads `--config recipe.yaml` and the flags, which win over it.

    Raises:
        ValueError: If a key or flag does not exist (the message names the nearest), or a value contradicts another.
        FileNotFoundError: If there is no such recipe.
    """
    model, data, run = parse_recipe((ModelArguments, DataArguments, RunArguments), argv)
    return model, data, run


def parse_recipe(kinds: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads `--config recipe.yaml` and the flags into dataclasses of these kinds; as `parse_arguments`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(tuple(kinds), allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file whose keys are the names of these flags.")
    known = {action.dest for action in parser._actions} - {"config", "help"}
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    recipe = early.parse_known_args(argv)[0].config
    flags = [*(_recipe_flags(recipe, known) if recipe else []), *argv]
    for flag in parser.parse_known_args(flags)[1]:
        raise ValueError(_unknown("flag", flag, {f"--{name}" for name in known}))
    return tuple(parser.parse_args_into_dataclasses(flags)[: len(kinds)])


def _recipe_flags(path: str, known: set[str]) -> list[str]:
    """Reads a recipe as the flags it stands for, so that both are checked alike."""
    import yaml

    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path!r} must be a list of `key: value` lines, got {recipe!r}.")
    flags = []
    for key, value in recipe.items():
        if key not in known:
            raise ValueError(_unknown(f"key in the recipe {path!r},", str(key), known))
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _unknown(kind: str, name: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(name.partition("=")[0], known, n=1)
    remedy = f"did you mean {nearest[0]!r}?" if nearest else "run with --help for all of them."
    return f"Unknown {kind} {name!r}: {remedy}"
