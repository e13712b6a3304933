"""Checkpoints that come quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
)

BLOCK = 32  # numbers that share a scale


def save_quantized(base: Path, folder: Path, config: Any) -> None:
    options = {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": torch.float32}
    AutoModelForCausalLM.from_pretrained(base, **options).save_pretrained(folder)


def save_bitsandbytes(base: Path, folder: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    save_quantized(base, folder, BitsAndBytesConfig(**(nf4 if kind == "nf4" else {"load_in_8bit": True})))


def save_compressed(base: Path, folder: Path, kind: str) -> None:
    """As llm-compressor does it, rounding to the nearest."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import ModelCompressor

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    scheme = quantization.preset_name_to_scheme(kind, targets=["Linear"])
    if scheme.weights.strategy == "group":
        scheme.weights.group_size = BLOCK
    forms = {"W4A16": "pack-quantized", "W8A8": "int-quantized", "FP8_DYNAMIC": "float-quantized"}
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format=forms[kind], quantization_status="frozen"
    )
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.detach().reshape(len(module.weight), -1, BLOCK if kind == "W4A16" else 64)
            if kind != "W4A16":
                groups = groups.reshape(len(module.weight), 1, -1)
            low, high = groups.amin(-1), groups.amax(-1)
            scale, zero = quantization.utils.calculate_qparams(low, high, scheme.weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
