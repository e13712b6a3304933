"""The language model of a multimodal model, against the whole model reading text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from st_prompteol import PromptEOL

from .helpers.models import SIZES
from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES
from .helpers.tokenizers import build_tokenizer

_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_CLIP = {**_VISION, "image_size": 28, "patch_size": 14}
_QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mistral3": ({"model_type": "mistral", "head_dim": 8}, {"model_type": "pixtral", **_CLIP, "head_dim": 16}),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model", **_CLIP, "projection_dim": 32}),
    "gemma3": (_GEMMA, {"model_type": "siglip_vision_model", **_CLIP}),
    "qwen2_5_vl": (_ROPE, {**_QWEN, "fullatt_block_indexes": [0]}),
    "qwen3_vl": ({**_ROPE, "head_dim": 8}, {**_QWEN, "deepstack_visual_indexes": []}),
    "idefics3": ({"model_type": "llama"}, _CLIP),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_model_of_a_multimodal_one_is_opened_and_saved(
    family: str, tmp_path: Path, plain: PlainProcess
) -> None:
    tokenizer = build_tokenizer(tmp_path / "whole")
    text, vision = FAMILIES[family]
    rows = len(tokenizer) + 8
    sizes = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "vocab_size": rows}
    config = AutoConfig.for_model(family, text_config={**sizes, **text}, vision_config=vision)
    for place, name in enumerate(("image_token_id", "image_token_index", "video_token_id"), start=1):
        if hasattr(config, name):
            setattr(config, name, rows - place)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in whole.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(tmp_path / "whole")
    model = PromptEOL(str(tmp_path / "whole"))
    with torch.no_grad():
        states = [
            whole(**tokenizer(model.template.render(sentence), return_tensors="pt"), output_hidden_states=True)
            for sentence in SENTENCES
        ]
    expected = torch.stack([state.hidden_states[-1][0, -1] for state in states]).numpy()
    assert_alike(model.encode(SENTENCES), expected)
    model.save_pretrained(str(tmp_path / "saved"))
    assert_alike(plain.encode(tmp_path / "saved", SENTENCES), expected)
    assert_alike(PromptEOL(str(tmp_path / "saved")).encode(SENTENCES), expected)
