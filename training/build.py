"""The model that is trained: base LLM, quantisation, adapter or all weights; a check; a merged copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file

from st_prompteol import PromptEOL, lora_config, quantization_config
from st_prompteol.adapters import load_adapter_weights
from st_prompteol.files import replacing_file
from st_prompteol.spelling import spell_for_all
from training.arguments import ModelArguments, RunArguments

_PROBES = ["A man is playing a guitar.", "The cat sat on the mat.", "Interest rates go up again.", "It rains."]


def build_model(model_args: ModelArguments, run_args: RunArguments) -> PromptEOL:
    """Returns the base LLM in its template, frozen, with an adapter that is trained in float32.

    With `lora_r` 0 there is no adapter, and all weights are trained in float32.

    Raises:
        ValueError: If there is no base LLM, the adapter or a target module does not fit it, all weights are to be
            trained but are quantised or have an adapter, or as `PromptEOL`.
        ImportError: If the base LLM comes quantised (GPTQ, AWQ) and the package that transformers reads it with is
            missing.
    """
    name = model_args.adapter or model_args.model_name_or_path
    if name is None:
        raise ValueError("A run needs a base LLM: pass --model_name_or_path, or --adapter to train one further.")
    model = _open(name, model_args, run_args)
    body = model[0].model
    if getattr(body, "is_quantized", False):
        prepare_model_for_kbit_training(body, use_gradient_checkpointing=False)  # the trainer turns that on
    if run_args.checkpoint_activations:
        enable = getattr(body, "activation_checkpointing_enable", body.gradient_checkpointing_enable)
        enable({"use_reentrant": False})  # the other kind needs inputs that ask for gradients
    full = model_args.lora_r == 0
    if full and (model.adapters or getattr(body, "is_quantized", False)):
        raise ValueError("lora_r=0 trains all weights, which are then neither quantised nor adapted: raise lora_r.")
    if not full and not model.adapters:
        _add_adapter(model, model_args)
    for part, parameter in body.named_parameters():
        parameter.requires_grad_(full or "lora_" in part)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _open(name: str, model_args: ModelArguments, run_args: RunArguments) -> PromptEOL:
    model_kwargs: dict[str, Any] = {}
    if model_args.dtype != "auto":
        model_kwargs["dtype"] = getattr(torch, model_args.dtype)
    if model_args.attn_implementation:
        model_kwargs["attn_implementation"] = model_args.attn_implementation
    quantization = None if model_args.quantization in (None, "none") else model_args.quantization
    if run_args.sharded and quantization == "nf4":  # FSDP shards what is stored as floats only
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


def _add_adapter(model: PromptEOL, model_args: ModelArguments) -> None:
    targets = model_args.lora_target_modules
    config = lora_config(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
    )
    layers = {
        part.rpartition(".")[2] for part, layer in model[0].model.named_modules() if hasattr(layer, "in_features")
    }
    unknown = (
        [] if targets == ["all-linear"] else [target for target in targets if target.split(".")[-1] not in layers]
    )
    if unknown:
        raise ValueError(
            f"lora_target_modules {', '.join(unknown)} match no layer of {model.describe()['model']!r}: choose among "
            f"{', '.join(sorted(layers))}, or all-linear."
        )
    model.add_adapter(config)


@contextmanager
def before_training(model: PromptEOL, model_args: ModelArguments, run_args: RunArguments) -> Iterator[PromptEOL]:
    """Yields the model as it was: with its adapter off, or opened anew if there is none."""
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


def check_finite(model: PromptEOL) -> None:
    """Raises FloatingPointError if a model embeds a sentence by NaN or infinite numbers."""
    if not model.encode(_PROBES, convert_to_tensor=True).isfinite().all():
        raise FloatingPointError(
            "The trained model embeds sentences by NaN or infinite numbers, so it is not saved: lower learning_rate, "
            "raise warmup_steps, or compute with --precision float32 or bf16."
        )


def check_saved(model: PromptEOL, path: str, model_args: ModelArguments, run_args: RunArguments) -> None:
    """Reads what was saved back, every tensor of it, and compares embeddings.

    Raises:
        ValueError: If it embeds otherwise than what was trained, or as the base LLM does.
    """
    expected = model.encode(_PROBES, convert_to_tensor=True).float()
    load_weights(model, path)
    saved = model.encode(_PROBES, convert_to_tensor=True).float()
    with before_training(model, model_args, run_args) as before:
        base = before.encode(_PROBES, convert_to_tensor=True).float()
    scale = expected.abs().max()
    if not (saved - expected).abs().max() <= 1e-3 * scale:
        raise ValueError(f"What was saved in {path!r} is not what was trained: do not use it, train again.")
    if (saved - base).abs().max() <= 1e-5 * scale:
        raise ValueError(
            f"Training changed nothing, the embeddings of {path!r} are those of the base LLM: raise learning_rate or "
            "max_steps."
        )


def load_weights(model: PromptEOL, path: str) -> None:
    """Reads the adapter in a folder, or all weights if the model has none, into the model."""
    body = model[0].model
    if model.adapters:
        load_adapter_weights(body, path)
        return
    tensors = {
        name: tensor
        for file in sorted(Path(path).glob("model*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    body.load_state_dict({name: tensors[name] for name in body.state_dict()})  # a Qwen2 is saved with biases more


def save_merged(model: PromptEOL, output_dir: str, dtype: str = "auto") -> str:
    """Saves a full model with the adapter in its weights, which must not be quantised, and returns its folder.

    With `"float16"` the file is half as large, and the numbers in it are opened as float32, which is what a CPU
    computes in, unless another dtype is asked for.
    """
    path = str(Path(output_dir) / "merged")
    if getattr(model[0].model, "is_quantized", False):
        model = PromptEOL(output_dir, device="cpu")  # the same adapter on the base as it was published
    if model.adapters:
        model.merge_adapter()
    if dtype == "float16":
        model.half()
    model.save_pretrained(path)
    if dtype == "float16":
        config = Path(path) / "config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        with replacing_file(config) as staged:
            fields = spell_for_all({**fields, "dtype": "float32"})
            staged.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return path
