"""Trains a tokenizer and a small Llama from nothing, also on a CPU: the base LLM of the packaged model.

python training/tiny/pretrain.py --config training/tiny/pretrain.yaml

Every key of a recipe is also a flag, and flags override it. `--resume_from_checkpoint auto` resumes a stopped run;
with a lower `--max_steps` it goes into the decay of the learning rate, so that a run can end well at any time.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `training` is run from a checkout, not installed

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
from transformers.hf_argparser import HfArg

from training.arguments import Precision, parse_recipe, prepare_arguments
from training.failures import explained
from training.run_folder import claimed, find_checkpoint
from training.tiny.text import read_text, render_documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
DEFAULTS = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 2e-3,  # after 200 steps of warm-up; constant until it decays
    "warmup_steps": 200,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_strategy": "steps",
    "save_steps": 1000,
    "save_total_limit": 2,
    "logging_steps": 100,
    "report_to": "none",
}
_IGNORED = -100  # the label of tokens that the loss leaves out


@dataclass
class TextArguments:
    """The text; every folder is one that its owner publishes."""

    _argument_group_name = "text"

    senteval_dir: str = HfArg(default="data", help="SentEval's data folder.")
    nli_dir: str = HfArg(default="nli", help="Folder of Parquet files with sentences: SNLI, MNLI.")
    wordnet_dir: str = HfArg(default="/usr/share/wordnet", help="Folder of WordNet's data files.")
    held_out_every: int = HfArg(default=200, help="One sentence in so many is for measuring perplexity.")
    row_length: int = HfArg(default=128, help="Tokens of a row, which holds several texts.")


@dataclass
class ArchitectureArguments:
    """The model: a Llama whose input and output embeddings are one; its configuration's own names."""

    _argument_group_name = "model"

    vocab_size: int = HfArg(default=6144, help="Tokens, of which 256 are bytes and 3 special.")
    hidden_size: int = HfArg(default=256, help="Dimension of an embedding.")
    intermediate_size: int = HfArg(default=512, help="Width of the feed-forward layers.")
    num_hidden_layers: int = HfArg(default=4, help="Blocks.")
    num_attention_heads: int = HfArg(default=4, help="Heads of attention.")
    num_key_value_heads: int = HfArg(default=2, help="Heads of keys and values.")
    max_position_embeddings: int = HfArg(default=512, help="Maximum tokens of a text.")


@dataclass
class PretrainingArguments(TrainingArguments):
    """The run: everything that transformers' trainer takes, and how the learning rate ends."""

    output_dir: str | None = HfArg(default=None, help="Folder of checkpoints and of the result.")
    precision: Precision = HfArg(default="auto", help="Of the computation. auto: what the hardware supports natively.")
    decay_share: float = HfArg(default=0.25, help="Share of the steps, the last, in which the learning rate decays.")

    def __post_init__(self) -> None:
        prepare_arguments(self)
        if self.max_steps <= 0:
            raise ValueError(f"max_steps={self.max_steps} must be positive: the learning rate's decay counts from it.")
        self.lr_scheduler_type = "warmup_stable_decay"
        self.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(self.decay_share * self.max_steps)}
        super().__post_init__()


def pretrain(text_args: TextArguments, model_args: ArchitectureArguments, run_args: PretrainingArguments) -> None:
    """Runs a recipe from text to a saved causal LM with its tokenizer."""
    checkpoint = find_checkpoint(run_args.output_dir, run_args.resume_from_checkpoint)
    if run_args.resume_from_checkpoint:
        print(f"resuming from: {checkpoint or 'the start, there is no complete checkpoint yet'}")
    set_seed(run_args.seed)

    # 1. the text, of which some is held out
    text = read_text(text_args.senteval_dir, text_args.nli_dir, text_args.wordnet_dir)
    parts = [render_documents(part, run_args.seed) for part in text.split(text_args.held_out_every)]
    print(f"text: {len(text.sentences):,} sentences, {len(text.definitions):,} definitions of words")

    # 2. the tokenizer: byte-level BPE, which takes any text
    tokenizer = train_tokenizer(parts[0], model_args.vocab_size, model_args.max_position_embeddings)

    # 3. rows of whole texts, none of which sees another
    train, held_out = (Rows(tokenizer, part, text_args.row_length) for part in parts)
    print(f"rows of {text_args.row_length} tokens: {len(train):,} to train on, {len(held_out):,} held out")

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
    trainer.evaluate()
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
        **{**asdict(args), "vocab_size": len(tokenizer)},
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


def pack(documents: Iterable[list[int]], length: int, open_rows: int = 32) -> list[list[list[int]]]:
    """Puts whole documents together into rows of at most `length` tokens; longer documents lose their end."""
    rows: list[list[list[int]]] = []
    waiting: list[tuple[int, list[list[int]]]] = []  # tokens that are left, documents
    for document in documents:
        document = document[:length]
        fitting = [place for place, (left, _) in enumerate(waiting) if left >= len(document)]
        if fitting:
            left, row = waiting.pop(min(fitting, key=lambda place: waiting[place][0]))
        else:
            left, row = length, []
            rows.append(row)
        row.append(document)
        waiting.append((left - len(document), row))
        if len(waiting) > open_rows:
            waiting.remove(min(waiting, key=lambda entry: entry[0]))
    return rows


class Perplexity(TrainerCallback):
    """Prints the perplexity of the held-out text at each evaluation."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Prints it."""
        if state.is_world_process_zero:
            print(f"step {state.global_step}: perplexity of held-out text {math.exp(metrics['eval_loss']):.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and trains; a mistake in it ends in one sentence."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with explained("pretrain.py"):
        kinds = TextArguments, ArchitectureArguments, PretrainingArguments
        text_args, model_args, run_args = parse_recipe(kinds, argv, DEFAULTS)
        with claimed(run_args.output_dir):
            pretrain(text_args, model_args, run_args)


if __name__ == "__main__":
    main()
