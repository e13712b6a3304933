"""Every private part of other packages that this one overrides or reads: each is there, in every version allowed."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import peft.utils
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from . import ROOT


class Private(NamedTuple):
    owner: Any  # an object that has it
    name: str
    used_in: str  # a file of ours, or several
    why: str  # and what happens without it


def body() -> LlamaModel:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaModel(LlamaConfig(vocab_size=8, **sizes))


BODY = body()
_LLAMA = sys.modules[LlamaModel.__module__]
_PLAIN = SentenceTransformer(modules=[torch.nn.Identity()])
TABLE = [
    Private(Transformer, "_load_config", "llm/body.py", "a pinned commit of an adapter's base; the newest is taken"),
    Private(Transformer, "_load_model", "llm/body.py", "adapters with every tensor accounted for; nf4 on a CPU"),
    Private(SentenceTransformer, "_load_default_modules", "model.py", "opens a base LLM as this module"),
    Private(SentenceTransformer, "_load_config_modules", "model.py", "opens a saved model with this pooling"),
    Private(SentenceTransformer, "_load_module_class_from_ref", "model.py", "opens a Transformer as this module"),
    Private(SentenceTransformer, "_get_module_init_defaults", "model.py", "hands template and layer to it"),
    Private(SentenceTransformer, "_get_model_config", "model.py", "saves which versions read an inner layer"),
    Private(SentenceTransformer, "_create_model_card", "model.py", "signs the card that a save writes"),
    Private(_PLAIN, "_model_card_text", "card/data.py", "what a saved card says about the training"),
    Private(_PLAIN.model_card_data, "_cached_dict", "card/data.py", "a save embeds the card's sentences once"),
    Private(BODY.config, "_attn_implementation", "fast/attention.py", "which attention a model is set to"),
    Private(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        "_tokenizer",
        "prompt/tokenizer.py",
        "added words are listed otherwise inside a template",
    ),
    Private(BODY, "_hf_peft_config_loaded", "llm/adapters.py", "a merged model is saved as a full one"),
    Private(_LLAMA, "eager_attention_forward", "fast/attention.py", "eager, as each family has it"),
    Private(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", "fast/attention.py", "speed; guarded"),
    Private(torch.ops.mkldnn, "_linear_pointwise", "fast/linear.py", "speed; guarded"),
    Private(torch.ones(1), "_version", "llm/fingerprint.py", "sees changes of single weights"),
    Private(torch.nn.Module(), "_parameters", "llm/fingerprint.py", "all weights, without names"),
    Private(torch.nn.Module(), "_buffers", "llm/fingerprint.py", "likewise"),
    Private(torch.nn.Module(), "_apply", "llm/body.py", "a cast keeps rotary frequencies in float32"),
    Private(torch.nn.Module(), "_modules", "model.py", "poolings are made anew when the layer changes"),
    Private(torch.nn.Module(), "_compiled_call_impl", "model.py", "a compiled model encodes itself, not a copy"),
    Private(torch.cpu, "_is_avx512_bf16_supported", "training/arguments.py", "which precision a CPU trains in"),
    Private(torch.cpu, "_is_amx_tile_supported", "training/arguments.py", "likewise"),
    Private(SentenceTransformerTrainer, "_save_checkpoint", "training/trainer.py", "none of NaN, none in halves"),
    Private(SentenceTransformerTrainer, "_save", "training/trainer.py", "FSDP's gathered weights"),
    Private(SentenceTransformerTrainer, "_load_from_checkpoint", "training/trainer.py", "resumes an adapter"),
    Private(SentenceTransformerTrainer, "_load_best_model", "training/trainer.py", "likewise"),
]
# Public by their names, but not in every version: modules that moved, and what lies outside of `__all__`
PLACES = [
    ("peft.utils.error", "NoMatchingPeftModuleError"),
    ("peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING"),
    ("peft.tuners.tuners_utils", "BaseTunerLayer"),
    ("peft.tuners.tuners_utils", "check_target_module_exists"),
    ("peft.utils.other", "get_pattern_key"),
    ("peft.utils.other", "AuxiliaryTrainingWrapper"),
    ("sentence_transformers.util.decorators", "deprecated_kwargs"),
    ("transformers.masking_utils", "AttentionMaskInterface"),
    ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS"),
    ("transformers.tokenization_utils_base", "VERY_LARGE_INTEGER"),
]


@pytest.mark.parametrize("private", TABLE, ids=lambda private: private.name)
def test_it_is_there_and_used(private: Private) -> None:
    assert hasattr(private.owner, private.name), f"{private.name} is gone: {private.why}"
    for name in private.used_in.split():
        path = ROOT / name if name.startswith("training/") else ROOT / "st_prompteol" / name
        assert re.search(rf"\b{private.name}\b", path.read_text(encoding="utf-8")), f"{name} no longer uses it"


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_it_is_where_it_is_imported_from(module: str, name: str) -> None:
    assert hasattr(__import__(module, fromlist=[name]), name)


def test_what_a_model_is_asked_for_is_there() -> None:
    assert BODY.is_backend_compatible() is True
    assert {"active_adapters", "disable_adapters", "merged_adapters"} <= set(dir(BaseTunerLayer))
    assert hasattr(transformers.DynamicCache(), "layers")
    assert callable(peft.utils.load_peft_weights)


def test_the_table_has_every_private_method_that_is_called_of_a_base_class() -> None:
    listed = {private.name for private in TABLE}
    for folder in ("st_prompteol", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            code = path.read_text(encoding="utf-8")
            found = set(re.findall(r"(?:super\(\)|torch\.ops\.\w+)\.(_[a-z]\w*)", code))
            assert found <= listed, f"{path.name}: {found - listed} have no row in the table"
