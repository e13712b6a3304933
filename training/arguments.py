"""The arguments of a training run; each key of a recipe is also a flag."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg

from st_prompteol.failures import check_whole

Precision = Literal["auto", "float32", "bf16", "fp16"]
DEV_METRIC = "eval_sts-dev_spearman_cosine"
# Values of the paper and this project that replace upstream's defaults; recipes and flags override them.
DEFAULTS = {
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 64,
    "learning_rate": 5e-4,  # with 100 warm-up steps, then linear to 0
    "warmup_steps": 100,
    "num_train_epochs": 1.0,
    "batch_sampler": "no_duplicates",  # a duplicate would be a false negative
    "eval_strategy": "steps",
    "eval_steps": 50,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 50,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": DEV_METRIC,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # the log shows a NaN loss
    "report_to": "none",
    "hub_strategy": "end",
}
# Arguments of a run that must be positive integers if given
_COUNTS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "mini_batch_size",
    "early_stopping_patience", "save_total_limit",
)  # fmt: skip


@dataclass
class ModelArguments:
    """Arguments of the model: the base LLM, the template and the adapter."""

    _argument_group_name = "model"

    model_name_or_path: str | None = HfArg(default=None, help="Base LLM: Hub id or folder.")
    revision: str | None = HfArg(default=None, help="Branch, tag or commit of the base LLM.")
    template: str | None = HfArg(
        default=None, help="Name or text of the template. None: that of a saved model, prompteol for a base LLM."
    )
    layer: int | None = HfArg(default=None, help="Hidden state to read; -1 is after the final norm.")
    max_seq_length: int | None = HfArg(default=None, help="Maximum tokens of a rendered sentence.")
    quantization: str | None = HfArg(
        default=None, help="nf4 (QLoRA: 4 bit, double quantization), int8, or none for the weights as dtype says."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = HfArg(
        default="auto",
        help="Of the frozen weights. auto: the checkpoint's own on an accelerator, float32 on a CPU. Adapters "
        "are always float32.",
    )
    attn_implementation: str | None = HfArg(default=None, help="eager, sdpa, flash_attention_2, …")
    adapter: str | None = HfArg(
        default=None, help="Adapter to train further, folder or Hub id; its configuration names its base LLM."
    )
    lora_r: int = HfArg(default=64, help="Rank of the adapter; 0 trains all weights instead.")
    lora_alpha: int = HfArg(default=16, help="Updates are scaled by lora_alpha / lora_r.")
    lora_dropout: float = HfArg(default=0.05, help="Dropout in front of the adapter.")
    lora_target_modules: list[str] = HfArg(
        default_factory=lambda: ["all-linear"], help="Layers to adapt: all-linear, or names such as q_proj v_proj."
    )

    def __post_init__(self) -> None:
        check_whole(lora_alpha=self.lora_alpha, max_seq_length=self.max_seq_length)
        check_whole(0, lora_r=self.lora_r)
        _check_between(0, 1, lora_dropout=self.lora_dropout)


@dataclass
class DataArguments:
    """Arguments of the data: training triplets, and STS-B dev for choosing the checkpoint."""

    _argument_group_name = "data"

    dataset_name: str = HfArg(default="sentence-transformers/all-nli", help="Hub dataset, if there is no train_file.")
    dataset_config: str | None = HfArg(
        default=None, help="Its configuration. None: triplet for all-nli, the only one for others."
    )
    dataset_split: str = HfArg(default="train", help="Its split.")
    train_file: str | None = HfArg(
        default=None, help="A .csv, .tsv, .jsonl, .json or .parquet file in place of the Hub dataset."
    )
    header: bool | None = HfArg(
        default=None,
        help="Whether a .csv or .tsv file has a header; its columns are 1, 2, … without one. None: found out by its "
        "content.",
    )
    columns: list[str] | None = HfArg(
        default=None,
        help="Names of the anchor, positive and (optional) negative columns. None: anchor positive negative, "
        "or SimCSE's sent0 sent1 hard_neg.",
    )
    streaming: bool = HfArg(default=False, help="Read while training; needs max_steps.")
    shuffle_buffer_size: int = HfArg(default=10_000, help="Buffer in which a stream is shuffled.")
    max_train_samples: int | None = HfArg(default=None, help="Use only the first rows.")
    strict: bool = HfArg(default=False, help="Stop at the first bad row instead of skipping it.")
    max_sentence_tokens: int = HfArg(default=32, help="Training sentences are cut to this many of their own tokens.")
    preprocessing: Literal["paper", "paper-train", "none"] = HfArg(
        default="paper",
        help="Of sentences. paper: the paper's for evaluation, in training too; paper-train: as the paper's "
        "code, in evaluation only; none: nowhere.",
    )
    sts_data_dir: str | None = HfArg(
        default=None, help="SentEval's data folder, for STS-B. None: sentence-transformers/stsb."
    )

    def __post_init__(self) -> None:
        check_whole(
            shuffle_buffer_size=self.shuffle_buffer_size,
            max_train_samples=self.max_train_samples,
            max_sentence_tokens=self.max_sentence_tokens,
        )


@dataclass
class RunArguments(SentenceTransformerTrainingArguments):
    """Arguments of the run: those of sentence-transformers' trainer, and additions of train.py."""

    output_dir: str | None = HfArg(default=None, help="Folder of checkpoints and of the result.")
    mini_batch_size: int | None = HfArg(
        default=None,
        help="Sentences per forward pass. A batch of any size then takes the memory of this many, with all its "
        "negatives (gradient caching). None: the whole batch at once.",
    )
    matryoshka_dims: list[int] | None = HfArg(
        default=None, help="Also train embeddings truncated to these dimensions, e.g. 768 256 64."
    )
    precision: Precision = HfArg(default="auto", help="Of the computation. auto: what the hardware supports natively.")
    early_stopping_patience: int | None = HfArg(
        default=None, help="Stop after this many evaluations without a better STS-B dev."
    )
    merge: bool = HfArg(default=False, help="Save a full model, the adapter added to the weights.")
    merge_dtype: Literal["auto", "float16"] = HfArg(
        default="auto", help="How the full model's weights are stored; float16 halves its file."
    )
    merge_layer: int = HfArg(default=-1, help="Cut the full model above this layer, which becomes its last one.")
    gradient_checkpointing: bool = HfArg(default=False, help="Compute activations twice instead of keeping them.")
    dry_run: bool = HfArg(default=False, help="Two steps, then a forecast of time and memory.")

    precision_reason: str = field(default="", init=False)
    push_result: bool = field(default=False, init=False)
    checkpoint_activations: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_whole(**{name: getattr(self, name) for name in _COUNTS})
        check_whole(0, seed=self.seed, data_seed=self.data_seed)
        for dimension in self.matryoshka_dims or ():
            check_whole(matryoshka_dims=dimension)
        _check_between(0, math.inf, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps)
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} leaves nothing to train: raise it above 0.")
        self.precision_reason = prepare_arguments(self)
        # the trainer would push every file in the folder; train.py only pushes the model
        self.push_result, self.push_to_hub = self.push_to_hub, False
        if self.push_result and (self.hub_strategy != "end" or self.hub_always_push):
            raise ValueError(
                f"hub_strategy={str(self.hub_strategy)!r} and hub_always_push={self.hub_always_push} would publish "
                "checkpoints unchecked: leave them out, and --push_to_hub publishes the checked result at the end."
            )
        if self.push_result and self.sharded:
            raise ValueError(
                "push_to_hub does not work with sharded weights, which are not whole in any process: leave it out, "
                "and run `st-prompteol push` on the output_dir afterwards."
            )
        # enabled in build.py, because newer versions of transformers deprecate this flag
        self.checkpoint_activations, self.gradient_checkpointing = self.gradient_checkpointing, None
        if self.dry_run:
            self.save_strategy = "no"
        if self.dry_run or self.sharded:  # an evaluator cannot access the weights of other processes
            self.eval_strategy = "no"
        if self.eval_strategy == "no":
            self.eval_on_start = self.load_best_model_at_end = False
        super().__post_init__()

    @property
    def sharded(self) -> bool:
        """Whether accelerate shards the weights over processes (FSDP)."""
        return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def prepare_arguments(args: TrainingArguments) -> str:
    """Sets the hardware options for `args.precision`, and returns the reason for the chosen precision.

    Raises:
        ValueError: If `output_dir` is missing.
    """
    if not args.output_dir:
        raise ValueError("A run needs an output_dir: pass --output_dir, or write the key into the recipe.")
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()  # otherwise upstream rejects bf16 on a CPU
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
    if args.bf16 or args.fp16:
        return ""
    precision, reason = choose_precision(args.precision, args.use_cpu)
    args.bf16, args.fp16 = precision == "bf16", precision == "fp16"
    return reason


def choose_precision(precision: str, use_cpu: bool) -> tuple[str, str]:
    """Returns the compute precision (`float32`, `bf16`, `fp16`) and the reason for it, as a clause."""
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
    """Parses the recipe and the flags of a training run; see `parse_recipe`."""
    model, data, run = parse_recipe((ModelArguments, DataArguments, RunArguments), argv, DEFAULTS)
    return model, data, run


def parse_recipe(
    kinds: Sequence[type], argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Parses `--config recipe.yaml` and flags, which override it, into dataclasses.

    Args:
        kinds: The dataclasses.
        argv: The command line arguments. Defaults to None: those of the process.
        defaults: Defaults that replace those of the dataclasses.

    Raises:
        ValueError: If a key or flag does not exist (the message names the closest one), or values contradict each
            other.
        FileNotFoundError: If the recipe does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(tuple(kinds), allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", help="Recipe: a YAML file whose keys are the names of these flags.")
    parser.set_defaults(**(defaults or {}))
    known = {action.dest for action in parser._actions} - {"config", "help"}
    try:
        options, unknown = parser.parse_known_args(argv)
        for flag in unknown:
            raise ValueError(_unknown("flag", flag, {f"--{name}" for name in known}))
        flags = _recipe_flags(options.config, known) if options.config else []
        return tuple(parser.parse_args_into_dataclasses([*flags, *argv])[: len(kinds)])
    except argparse.ArgumentError as error:  # omits the very long usage
        parser.exit(2, f"train.py: {error}; run with --help for what it takes\n")


def _recipe_flags(path: str, known: set[str]) -> list[str]:
    """Converts a recipe to flags, so that both are validated in the same way."""
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path!r} is not YAML ({' '.join(str(error).split())}): mend it.") from None
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


def _check_between(least: float, limit: float, **given: float) -> None:
    """Raises ValueError unless `least <= number < limit`, also for NaN."""
    for name, value in given.items():
        if not least <= value < limit:
            raise ValueError(f"{name}={value!r} is out of range: give {least} or more, below {limit}.")


def _unknown(kind: str, name: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(name.partition("=")[0], known, n=1)
    remedy = f"did you mean {nearest[0]!r}?" if nearest else "run with --help for all of them."
    return f"Unknown {kind} {name!r}: {remedy}"
