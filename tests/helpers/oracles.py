"""What a model must compute, by upstream's own way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from st_prompteol import PromptEOL

from .models import features_of
from .sentences import SENTENCES


def assert_alike(one: Any, other: Any, atol: float = 1e-5) -> None:
    """That numbers differ by no more than a share of the largest."""
    np.testing.assert_allclose(one, other, rtol=0, atol=atol * np.abs(other).max())


def peft_oracle(base: str, adapter: str, texts: list[str]) -> np.ndarray[Any, Any]:
    """peft's own way: the adapter on the causal LM, one text at a time, the last hidden state of the last token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    causal_lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(causal_lm, adapter).eval()
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0, -1]
            for text in texts
        ]
    return torch.stack(rows).numpy()


def oracle(model: PromptEOL, sentences: list[str], name: str = "eager") -> np.ndarray[Any, Any]:
    """Each sentence alone: its last token's hidden state by transformers' own forward pass over all of its tokens."""
    body = copy.deepcopy(model[0].model).eval()
    body.set_attn_implementation(name)
    rows = []
    for sentence in sentences:
        features = features_of(model, [sentence])
        inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = body(**inputs, use_cache=False, output_hidden_states=True).hidden_states[model.layer]
        rows.append(hidden[0, -1].float().cpu().numpy())
    return np.stack(rows)


def assert_right(model: PromptEOL, sentences: list[str] = SENTENCES, atol: float = 1e-4) -> None:
    expected = oracle(model, sentences)
    assert_alike(model.encode(sentences), expected, atol)


def dequantized(base: str, quantized: PromptEOL) -> PromptEOL:
    """The base in float32 with the weights that the quantized ones stand for: what quantized inference means."""
    model = PromptEOL(base, device=str(quantized.device))
    for name, module in quantized[0].model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(getattr(module, "in_features", None), int) or weight is None:
            continue
        if hasattr(weight, "quant_state"):  # bitsandbytes nf4
            from bitsandbytes.functional import dequantize_4bit

            exact = dequantize_4bit(weight.data, weight.quant_state)
        elif hasattr(weight, "SCB"):  # bitsandbytes int8
            exact = weight.data.float() * weight.SCB[:, None] / 127
        else:
            exact = weight.dequantize() if is_traceable_wrapper_subclass(weight) else weight.detach()
        values = exact.float().reshape(module.out_features, module.in_features).clone()
        model[0].model.get_submodule(name).weight.data = values
    return model
