"""Configurations in both spellings: the old keys, written out here, and transformers 5, which must read no difference.

What older versions compute from them is compared by `benchmarks/families/old_transformers.py`.
"""

import json
import logging

import pytest
from transformers import AutoConfig, AutoModel

from st_prompteol.saved.spelling import spell_for_all

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 48, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES |= {"max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 3.0]}
SLIDING = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
FULL, SLIDES = "full_attention", "sliding_attention"
EAGER = {"attn_implementation": "eager", "_attn_implementation_internal": "eager"}


def plain(theta=5e5, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def gemma3(full, sliding):
    return {"rope_parameters": {FULL: full, SLIDES: sliding}, "num_hidden_layers": 4, "sliding_window": 16}


# model type, its configuration in transformers 5's words, the keys that transformers 4 needs beside them
SAME_SINCE_4_48 = {
    "opt-350m": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, {}),
    "gpt2": ("gpt2", {}, {}),
    "gpt2 by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, EAGER),
    "gpt_neox": (
        "gpt_neox",
        {"rope_parameters": plain(partial_rotary_factor=0.5)},
        {"rotary_emb_base": 5e5, "rotary_pct": 0.5},
    ),
    "llama 1": ("llama", {"rope_parameters": plain(1e4)}, {"rope_theta": 1e4}),
    "llama 3": ("llama", {"rope_parameters": plain()}, {"rope_theta": 5e5}),
    "llama 3.1": (
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "head_dim": 16},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "qwen2": ("qwen2", {"rope_parameters": plain(1e6)}, {"rope_theta": 1e6}),
    "qwen3": ("qwen3", {"rope_parameters": plain(1e6)}, {"rope_theta": 1e6}),
    "mistral": ("mistral", {"rope_parameters": plain(), "sliding_window": 16}, {"rope_theta": 5e5}),
    "gemma": (
        "gemma",
        {"rope_parameters": plain(), "hidden_act": "relu"},
        {"rope_theta": 5e5, "hidden_activation": "relu"},
    ),
    "gemma2": ("gemma2", {"rope_parameters": plain(), "sliding_window": 16}, {"rope_theta": 5e5, **EAGER}),
    "gemma3": (
        "gemma3_text",
        gemma3({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, plain(2e4))
        | {"layer_types": [SLIDES, FULL, SLIDES, FULL]},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 2e4,
            "sliding_window_pattern": 2,
        },
    ),
    "phi3": (
        "phi3",
        {
            "rope_parameters": {**FACTORS, **plain(partial_rotary_factor=0.75), "rope_type": "longrope"},
            "original_max_position_embeddings": 64,
        },
        {"rope_theta": 5e5, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", **FACTORS}},
    ),
}
SAME_SINCE_4_56 = {
    "yarn": (
        "qwen3",
        {"rope_parameters": {**YARN, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": YARN},
    ),
    "qwen2 sliding": ("qwen2", {"rope_parameters": plain(), **SLIDING}, {"rope_theta": 5e5}),
    "gemma2 reversed": (
        "gemma2",
        {"rope_parameters": plain(), "layer_types": [FULL, SLIDES]},
        {"rope_theta": 5e5, **EAGER},
    ),
    "gemma3 irregular": (
        "gemma3_text",
        gemma3(plain(), plain(2e4)) | {"layer_types": [FULL, SLIDES, SLIDES, FULL]},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "sliding_window_pattern": 1},
    ),
}
ONLY_IN_5 = {
    "never compared": ("cohere", {"rope_parameters": plain()}),
    "part of a rope": ("llama", {"rope_parameters": plain(partial_rotary_factor=0.5)}),
    "longrope": (
        "llama",
        {
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 5e5, "factor": 4.0}
            | {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
        },
    ),
    "scaled in sliding blocks": (
        "gemma3_text",
        gemma3(plain(), {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    ),
    "sliding": (
        "smollm3",
        {"rope_parameters": plain(), "use_sliding_window": True, "sliding_window": 16, "no_rope_layer_interval": 2},
    ),
}
EVERY = {**SAME_SINCE_4_48, **SAME_SINCE_4_56, **ONLY_IN_5}


def saved(tmp_path, model_type, options):
    """Saves the body that transformers 5 makes, and returns its folder and its configuration as a dict."""
    folder = tmp_path / "saved"
    config = AutoConfig.for_model(model_type, **json.loads(json.dumps({**SIZES, **options})))
    AutoModel.from_config(config).save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())


def rewritten(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", SAME_SINCE_4_48)
def test_the_keys_of_transformers_4_are_added(tmp_path, name):
    model_type, options, old_keys = SAME_SINCE_4_48[name]
    _, config = saved(tmp_path, model_type, options)
    assert spell_for_all(config) == {**config, "torch_dtype": "float32", **old_keys}


@pytest.mark.parametrize("name", SAME_SINCE_4_56)
def test_what_early_versions_compute_otherwise_does_not_open_there(tmp_path, name):
    model_type, options, old_keys = SAME_SINCE_4_56[name]
    _, config = saved(tmp_path, model_type, options)
    spelled = spell_for_all(config)

    # read before 4.56 as `getattr(torch, torch_dtype)`; later the `dtype` beside it counts
    assert "needs transformers 4.56" in spelled["torch_dtype"]
    assert spelled == {**config, "torch_dtype": spelled["torch_dtype"], **old_keys}


@pytest.mark.parametrize("name", ONLY_IN_5)
def test_what_transformers_4_computes_otherwise_does_not_open_there(tmp_path, name):
    _, config = saved(tmp_path, *ONLY_IN_5[name])
    spelled = spell_for_all(config)
    (words,) = spelled["pruned_heads"]
    assert "needs transformers 5" in words
    with pytest.raises(ValueError, match="needs transformers 5"):  # what transformers 4 does with it
        {int(head) for head in spelled["pruned_heads"]}
    assert spelled == {**config, "torch_dtype": "float32", "pruned_heads": spelled["pruned_heads"]}


@pytest.mark.parametrize("name", EVERY)
def test_transformers_5_reads_the_same_without_a_word(tmp_path, caplog, monkeypatch, name):
    folder, config = saved(tmp_path, *EVERY[name][:2])
    before = AutoConfig.from_pretrained(folder).to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.clear()
    # a warning that is given once was given above
    after = AutoConfig.from_pretrained(rewritten(folder, spell_for_all(config))).to_dict()
    ropes = [rope.pop("type", None) for rope in [after.get("rope_parameters") or {}]]
    assert ropes in ([None], ["longrope"])
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() <= {
        "pruned_heads",
        "hidden_activation",
        "partial_rotary_factor",
        "sliding_window_pattern",
    }
    assert not caplog.records


@pytest.mark.parametrize("name", EVERY)
def test_saving_again_and_again_changes_nothing(tmp_path, name):
    folder, config = saved(tmp_path, *EVERY[name][:2])
    spelled = spell_for_all(config)
    assert spell_for_all(spelled) == spelled
    AutoModel.from_pretrained(rewritten(folder, spelled)).save_pretrained(tmp_path / "again")
    again = spell_for_all(json.loads((tmp_path / "again" / "config.json").read_text()))
    AutoModel.from_pretrained(rewritten(tmp_path / "again", again)).save_pretrained(tmp_path / "third")
    third = spell_for_all(json.loads((tmp_path / "third" / "config.json").read_text()))
    assert third == again
    again.get("rope_parameters", {}).pop("type", None)
    assert {key: again[key] for key in spelled} == spelled


@pytest.mark.parametrize(
    ("name", "edit", "theta"),
    [
        ("llama 3", {"rope_theta": 1.0}, 5e5),
        ("llama 3", {"rope_parameters": plain(2.0)}, 2.0),
        ("llama 3.1", {"rope_theta": 1.0}, 1.0),
        ("llama 3.1", {"rope_parameters": plain(2.0)}, 5e5),
    ],
)
def test_an_edit_in_one_spelling_shows(tmp_path, name, edit, theta):
    folder, config = saved(tmp_path, *SAME_SINCE_4_48[name][:2])
    edited = {**spell_for_all(config), **edit}
    assert spell_for_all(edited) != edited
    assert AutoConfig.from_pretrained(rewritten(folder, edited)).rope_parameters["rope_theta"] == theta


def test_the_dict_that_was_passed_stays_as_it_is(tmp_path):
    _, config = saved(tmp_path, *SAME_SINCE_4_48["phi3"][:2])
    copy = json.loads(json.dumps(config))
    spell_for_all(config)
    assert config == copy


def test_a_checkpoint_keeps_its_dtype():
    config = {"model_type": "opt", "dtype": "float16"}
    assert spell_for_all(config) == {**config, "torch_dtype": "float16"}
