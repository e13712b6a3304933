"""Builds the model to train (base LLM, quantization, adapter or all weights) and checks the saved files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file

from st_prompteol import PromptEOL, lora_config, quantization_config
from st_prompteol.llm.adapters import linear_layers, load_adapter_weights
from st_prompteol.llm.cut import PROBES
from st_prompteol.llm.finite import NotFiniteError
from st_prompteol.llm.loaded import is_quantized
from training.arguments import ModelArguments, RunArguments


def build_model(model_args: ModelArguments, run_args: RunArguments) -> PromptEOL:
    """Returns the frozen base LLM with its template and a trainable adapter in float32.

    With `lora_r` 0 there is no adapter, and all weights are trained in float32.

    Raises:
        ValueError: If there is no base LLM; if the adapter or a target module does not fit it; if all weights are to
            be trained but are quantized or have an adapter; or as for `PromptEOL`.
        ImportError: If the base LLM is quantized (GPTQ, AWQ) and the package that transformers requires is missing.
    """
    name = model_args.adapter or model_args.model_name_or_path
    if name is None:
        raise ValueError("A run needs a base LLM: pass --model_name_or_path, or --adapter to train one further.")
    model = _open(name, model_args, run_args)
    body = model.body
    quantized, train_all = is_quantized(body), model_args.lora_r == 0
    if train_all and (model.adapters or quantized):
        raise ValueError("lora_r=0 trains all weights, which are then neither quantized nor adapted: raise lora_r.")
    if quantized:
        prepare_model_for_kbit_training(body, use_gradient_checkpointing=False)
    if run_args.checkpoint_activations:
        enable = getattr(body, "activation_checkpointing_enable", body.gradient_checkpointing_enable)
        enable({"use_reentrant": False})  # the reentrant variant requires inputs with gradients
    if not train_all and not model.adapters:
        _add_adapter(model, model_args)
    body.requires_grad_(train_all)
    if not train_all:
        body.set_adapter(body.active_adapters())  # peft marks the trainable parameters of this adapter type
    for parameter in body.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _open(name: str, model_args: ModelArguments, run_args: RunArguments) -> PromptEOL:
    model_kwargs: dict[str, Any] = {}
    if model_args.dtype != "auto":
        model_kwargs["dtype"] = getattr(torch, model_args.dtype)
    if model_args.attn_implementation:
        model_kwargs["attn_implementation"] = model_args.attn_implementation
    quantization = None if model_args.quantization == "none" else model_args.quantization
    if run_args.sharded and quantization == "nf4":  # FSDP only shards weights stored as floats
        config = quantization_config("nf4", compute_dtype=torch.bfloat16)
        config.bnb_4bit_quant_storage = torch.bfloat16
        model_kwargs |= {"quantization_config": config, "dtype": torch.bfloat16}
        quantization = None
    return PromptEOL(
        name,
        template=model_args.template,
        layer=model_args.layer,
        quantization=quantization,
        max_seq_length=model_args.max_seq_length,
        revision=model_args.revision,
        device="cpu" if run_args.sharded else str(run_args.device),
        model_kwargs=model_kwargs,
    )


def _add_adapter(model: PromptEOL, args: ModelArguments) -> None:
    targets: str | list[str] = args.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    else:  # peft ignores a name without matches if another one matches
        layers = linear_layers(model.body)
        if unknown := [target for target in targets if target.split(".")[-1] not in layers]:
            raise ValueError(
                f"lora_target_modules {', '.join(unknown)} match no layer of {model.describe()['model']!r}: choose "
                f"among {', '.join(sorted(layers))}, or all-linear."
            )
    model.add_adapter(
        lora_config(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=targets)
    )


@contextmanager
def before_training(model: PromptEOL, model_args: ModelArguments, run_args: RunArguments) -> Iterator[PromptEOL]:
    """Yields the model before training: with its adapter disabled, or loaded again if it has none."""
    if not model.adapters:
        base = _open(str(model_args.model_name_or_path), model_args, run_args)
        base.template = model.template
        yield base
        return
    model.disable_adapters()
    try:
        yield model
    finally:
        model.enable_adapters()


def _embed(model: PromptEOL) -> torch.Tensor:
    return model.encode(PROBES, convert_to_tensor=True).float()


def check_finite(model: PromptEOL) -> None:
    """Raises FloatingPointError if a model's embeddings contain NaN or infinity."""
    try:
        _embed(model)
    except NotFiniteError as error:
        raise FloatingPointError(
            "The trained model embeds sentences by NaN or infinite numbers, so it is not saved: lower learning_rate, "
            "raise warmup_steps, or compute with --precision float32 or bf16."
        ) from error


def check_saved(model: PromptEOL, path: str, model_args: ModelArguments, run_args: RunArguments) -> None:
    """Loads all saved tensors back into the model and compares embeddings.

    Raises:
        ValueError: If the embeddings differ from those of the trained model, or equal those of the base LLM.
    """
    expected = _embed(model)
    load_weights(model, path)
    saved = _embed(model)
    with before_training(model, model_args, run_args) as before:
        base = _embed(before)
    scale = expected.abs().max()
    if not (saved - expected).abs().max() <= 1e-3 * scale:
        raise ValueError(f"What was saved in {path!r} is not what was trained: do not use it, train again.")
    if (saved - base).abs().max() <= 1e-5 * scale:
        raise ValueError(
            f"Training changed nothing, the embeddings of {path!r} are those of the base LLM: raise learning_rate or "
            "max_steps."
        )


def load_weights(model: PromptEOL, path: str) -> None:
    """Loads the adapter in a folder into the model, or all weights if the model has no adapter."""
    body = model.body
    if model.adapters:
        load_adapter_weights(body, path)
        return
    tensors: dict[str, torch.Tensor] = {}
    for file in Path(path).glob("model*.safetensors"):
        tensors |= load_file(file)
    body.load_state_dict({name: tensors[name] for name in body.state_dict()})  # Qwen2 is saved with additional biases


def save_merged(model: PromptEOL, output_dir: str, dtype: str = "auto", layer: int = -1) -> str:
    """Saves a full model with the adapter merged into its weights, and returns its folder.

    The weights must not be quantized. The blocks above `layer` are removed if it is an inner layer. All changes are
    made to `model`. With `dtype="float16"` the file is half as large; the model still loads in its compute dtype,
    which `config.json` states.
    """
    path = str(Path(output_dir) / "merged")
    if is_quantized(model.body):
        model = PromptEOL(output_dir, device="cpu")  # the same adapter on the published base
    if model.adapters:
        model.merge_adapter()
    if layer != -1:
        model.layer = layer
        model.cut()
        model.model_card_data.change = (
            f"the blocks above hidden state {layer} were removed, which made that the last one"
        )
    if dtype == "float16":  # tensors that are exact in float16 are stored in it
        for parameter in model.body.parameters():
            parameter.data = parameter.data.half().to(parameter.dtype)
    model.save_pretrained(path)
    return path


@contextmanager
def saving(body: torch.nn.Module, tensors: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Makes `save_pretrained` of a body save the given tensors instead of its own, if there are any."""
    if tensors is not None:
        body.save_pretrained = partial(body.save_pretrained, state_dict=tensors)
    try:
        yield
    finally:
        vars(body).pop("save_pretrained", None)
