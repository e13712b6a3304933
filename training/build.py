"""The model that is trained and what becomes of it: base LLM, quantisation, adapter; a check; a merged copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training

from st_prompteol import PromptEOL, lora_config, quantization_config
from st_prompteol.adapters import load_adapter_weights
from training.arguments import ModelArguments, RunArguments

_PROBES = ["A man is playing a guitar.", "The cat sat on the mat.", "Interest rates go up again.", "It rains."]


def build_model(model_args: ModelArguments, run_args: RunArguments) -> PromptEOL:
    """Returns the base LLM in its template, frozen, with an adapter that is trained in float32.

    Raises:
        ValueError: If there is no base LLM, the adapter or a target module does not fit it, or as `PromptEOL`.
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
    if not model.adapters:
        _add_adapter(model, model_args)
    for part, parameter in body.named_parameters():
        parameter.requires_grad_("lora_" in part)
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


def check_adapter(model: PromptEOL, path: str) -> None:
    """Reads a saved adapter back, every tensor of it, and compares embeddings.

    Raises:
        ValueError: If the saved adapter embeds otherwise than the trained one, or as the base LLM does.
    """
    expected = model.encode(_PROBES, convert_to_tensor=True).float()
    load_adapter_weights(model[0].model, path)
    saved = model.encode(_PROBES, convert_to_tensor=True).float()
    model.disable_adapters()
    base = model.encode(_PROBES, convert_to_tensor=True).float()
    model.enable_adapters()
    scale = expected.abs().max()
    if (saved - expected).abs().max() > 1e-3 * scale:
        raise ValueError(f"The adapter saved in {path!r} is not the one that was trained: do not use it, train again.")
    if (saved - base).abs().max() <= 1e-5 * scale:
        raise ValueError(
            f"The adapter saved in {path!r} changes nothing, embeddings are those of the base LLM: raise "
            "learning_rate or max_steps."
        )


def save_merged(model: PromptEOL, output_dir: str) -> str:
    """Saves a full model with the adapter in its weights, which must not be quantised, and returns its folder."""
    path = str(Path(output_dir) / "merged")
    if getattr(model[0].model, "is_quantized", False):
        model = PromptEOL(output_dir, device="cpu")  # the same adapter on the base as it was published
    model.merge_adapter()
    model.save_pretrained(path)
    return path
