"""Trains a tokenizer and a small Llama from nothing, on a CPU too: the base LLM of `prompteol-tiny`.

python training/pretrain_tiny.py --config training/recipes/pretrain-tiny.yaml

Every key of a recipe is also a flag, and flags win. `--resume_from_checkpoint auto` goes on after a stop; with a lower
`--max_steps` it goes on into the decay of the learning rate, so that a run can end well at any time.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `training` is run from a checkout, not installed

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from training.arguments import choose_precision, parse_recipe
from training.failures import explained
from training.run_folder import claimed
from training.text import pack, read_text, render_documents
from training.trainer import find_checkpoint

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_IGNORED = -100  # the label of what the loss leaves out


@dataclass
class TextArguments:
    """The text; every folder is one that its owner publishes."""

    _argument_group_name = "text"

    senteval_dir: str = field(default="data", metadata={"help": "SentEval's data folder."})
    nli_dir: str = field(default="nli", metadata={"help": "Folder of Parquet files with sentences: SNLI, MNLI."})
    wordnet_dir: str = field(default="/usr/share/wordnet", metadata={"help": "Folder of WordNet's data files."})
    held_out_every: int = field(default=200, metadata={"help": "One sentence in so many measures perplexity."})


@dataclass
class ArchitectureArguments:
    """The model: a Llama whose input and output embeddings are one."""

    _argument_group_name = "model"

    vocab_size: int = field(default=6144, metadata={"help": "Tokens, of which 256 are bytes and 3 special."})
    hidden_size: int = field(default=256, metadata={"help": "Numbers of an embedding."})
    intermediate_size: int = field(default=512, metadata={"help": "Width of the feed-forward layers."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Blocks."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of attention."})
    num_key_value_heads: int = field(default=2, metadata={"help": "Heads whose keys and values are computed."})
    max_position_embeddings: int = field(default=512, metadata={"help": "Most tokens of a text."})
    row_length: int = field(default=128, metadata={"help": "Tokens of a row, which holds several texts."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """The run: everything that transformers' trainer takes, with values for a small model."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of checkpoints and of the result."})
    precision: Literal["auto", "float32", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "Of computing. auto: what the hardware is made for."}
    )
    decay_share: float = field(default=0.25, metadata={"help": "Share of the steps, the last, in which it decays."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per process and step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Rows per step of an evaluation."})
    learning_rate: float = field(default=2e-3, metadata={"help": "After warmup_steps; constant until it decays."})
    warmup_steps: float = field(default=200, metadata={"help": "Steps of a linear rise."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Of AdamW."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float | None = field(default=1000, metadata={"help": "Steps between perplexities."})
    save_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    save_steps: float = field(default=1000, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between logs."})
    report_to: str | None = field(default="none", metadata={"help": "wandb, tensorboard, mlflow, …, all or none."})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("A run needs an output_dir: pass --output_dir, or write the key into the recipe.")
        if self.max_steps <= 0:
            raise ValueError(f"max_steps={self.max_steps} must be positive: the learning rate's decay counts from it.")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or upstream refuses bf16 there
        precision, _ = choose_precision(self.precision, self.use_cpu)
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.lr_scheduler_type = "warmup_stable_decay"
        self.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(self.decay_share * self.max_steps)}
        super().__post_init__()


def pretrain(text_args: TextArguments, model_args: ArchitectureArguments, run_args: PretrainingArguments) -> None:
    """Runs a recipe from text to a saved causal LM with its tokenizer."""
    checkpoint = find_checkpoint(run_args.output_dir, run_args.resume_from_checkpoint)
    if run_args.resume_from_checkpoint:
        print(f"going on from: {checkpoint or 'the start, there is no whole checkpoint yet'}")
    set_seed(run_args.seed)

    # 1. the text, of which some is held out
    text = read_text(text_args.senteval_dir, text_args.nli_dir, text_args.wordnet_dir)
    parts = [render_documents(part, run_args.seed) for part in text.split(text_args.held_out_every)]
    print(f"text: {len(text.sentences):,} sentences, {len(text.definitions):,} definitions of words")

    # 2. the tokenizer: byte-level BPE, which takes any text
    tokenizer = train_tokenizer(parts[0], model_args.vocab_size, model_args.max_position_embeddings)

    # 3. rows of whole texts, none of which sees another
    train, held_out = (Rows(tokenizer, part, model_args.row_length) for part in parts)
    print(f"rows of {model_args.row_length} tokens: {len(train):,} to train on, {len(held_out):,} held out")

    # 4. the model
    model = build_model(model_args, tokenizer)
    print(f"model: {model.num_parameters():,} parameters")

    # 5. training
    trainer = Trainer(
        model=model,
        args=run_args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=[Perplexity()],
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    # 6. the result
    trainer.save_model(run_args.output_dir)
    print(f"perplexity of held-out text: {math.exp(trainer.evaluate()['eval_loss']):.2f}")
    print(f"saved: {run_args.output_dir}")


def train_tokenizer(documents: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer that puts a BOS in front, as Llama's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_model(args: ArchitectureArguments, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns the model with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        max_position_embeddings=args.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of several texts each. Positions that start anew tell the model where one ends: no text sees another."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: list[str], length: int) -> None:
        encoded = tokenizer(documents, return_attention_mask=False)["input_ids"]
        rows = pack(([*ids, tokenizer.eos_token_id] for ids in encoded), length)
        shape = len(rows), length
        self.input_ids = torch.full(shape, tokenizer.pad_token_id, dtype=torch.int16)
        self.position_ids = torch.zeros(shape, dtype=torch.int16)
        for row, texts in enumerate(rows):
            start = 0
            for ids in texts:
                self.input_ids[row, start : start + len(ids)] = torch.tensor(ids)
                self.position_ids[row, start : start + len(ids)] = torch.arange(len(ids))
                start += len(ids)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        input_ids, position_ids = self.input_ids[index].long(), self.position_ids[index].long()
        labels = input_ids.masked_fill(position_ids == 0, _IGNORED)  # a BOS, or what fills the row
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


class Perplexity(TrainerCallback):
    """Adds perplexity to what an evaluation logs."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Says it."""
        if state.is_world_process_zero:
            print(f"step {state.global_step}: perplexity of held-out text {math.exp(metrics['eval_loss']):.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and trains; a mistake in it ends in one sentence."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with explained("pretrain_tiny.py"):
        *others, run_args = parse_recipe((TextArguments, ArchitectureArguments, PretrainingArguments), argv)
        with claimed(run_args.output_dir):
            pretrain(*others, run_args)


if __name__ == "__main__":
    main()
