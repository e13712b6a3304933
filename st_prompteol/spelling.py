"""A saved `config.json` that transformers 4 and 5 read alike, or that the ones which cannot refuse to open.

transformers 5 writes `rope_parameters` and `dtype` where transformers 4 reads `rope_theta`, `rope_scaling` and
`torch_dtype`; what transformers 4 does not find it silently takes from its defaults, and every embedding is wrong.
"""

from __future__ import annotations

from typing import Any

# What a key must hold for an older transformers to stop with these words in its error. `pruned_heads` has whole
# numbers as keys in transformers 4 and is unknown to 5; `torch_dtype` is not looked at by 4.56 and later if there is
# a `dtype`, and is the name of something in torch before.
_FAILS_BELOW_5: dict[str, Any] = {"pruned_heads": {"this model needs transformers 5 or later": []}}
_FAILS_BELOW_4_56: dict[str, Any] = {"torch_dtype": "this model needs transformers 4.56 or later"}

# For what the default attention leaves out in transformers 4 and 5 up to 5.20, under the names that they read: 4 and
# 5.0 the second one, later ones the first.
_EAGER = {"attn_implementation": "eager", "_attn_implementation_internal": "eager"}

# The model types that `benchmarks/old_transformers.py` compared; Gemma 3 and GPT-NeoX have words of their own.
_WITHOUT_ROPE = set("bloom gpt2 gpt_neo gptj opt".split())
_WITH_ROPE = set("falcon gemma gemma2 granite llama mistral olmo olmo2 qwen2 qwen3 smollm3 starcoder2".split())
_WITH_PARTIAL_ROPE = set("glm4 nemotron phi phi3 stablelm".split())

_OLD_ROPE_KEYS = {
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rotary_emb_base",
    "rotary_pct",
    "rope_local_base_freq",
    "sliding_window_pattern",
}
_SCALING_KEYS = {  # of the rope types that transformers 4 computes as 5 does
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"},
}
_PHI3_SCALING_KEYS = {"short_factor", "long_factor"}


class _OnlyInFive(Exception):
    """A configuration that transformers 4 has no words for, computes otherwise, or that was never compared."""


def spell_for_all(config: dict[str, Any]) -> dict[str, Any]:
    """Adds to a configuration saved by transformers 5 the keys that transformers 4 reads in their place.

    What was compared, by hidden states, opens in transformers 4.48 and later (or the first one that knows the model
    type) and in 5. Where 4.48 would compute something else and 4.56 would not, opening fails below 4.56; everything
    else fails below 5: a model type that was never compared, a rope type or per-layer rope without old words.

    The result is the same for a configuration that has both spellings already: the old keys are made anew from the
    new ones. One that differs from its result was edited in one spelling only. Of such a file transformers 5 takes
    `rope_scaling` and `rope_theta` if it has a `rope_scaling` (Gemma 3: that, but no `rope_theta`), and
    `rope_parameters` otherwise; 4 takes the old keys.

    Args:
        config: The `config.json` that `save_pretrained` of transformers 5 wrote, as a dict; it stays as it is.

    Returns:
        The dict to write in its place.
    """
    spelled = {key: value for key, value in config.items() if key not in {"pruned_heads", *_EAGER}}
    if isinstance(config.get("rope_parameters"), dict):
        spelled = {key: value for key, value in spelled.items() if key not in _OLD_ROPE_KEYS}
    if spelled.get("dtype") is not None:
        spelled["torch_dtype"] = spelled["dtype"]
    try:
        old = _old_keys(spelled)
    except _OnlyInFive:
        return spelled | _FAILS_BELOW_5
    if not _same_before_4_56(spelled):
        old |= _FAILS_BELOW_4_56
    return spelled | old


def _old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers 4 reads and 5 did not write.

    Raises:
        _OnlyInFive: If there is no such thing.
    """
    family = config.get("model_type")
    if config.get("dtype") is None or config.get("per_layer_config") or config.get("use_bidirectional_attention"):
        raise _OnlyInFive
    if family in _WITHOUT_ROPE:
        plain = config.get("scale_attn_weights", True) and not config.get("scale_attn_by_inverse_layer_idx", False)
        return {} if plain else dict(_EAGER)
    if family == "gemma3_text":
        return _old_gemma3_keys(config)
    rope = dict(config.get("rope_parameters") or {})
    if family == "gpt_neox":
        old = {"rotary_emb_base": _take(rope, "rope_theta"), "rotary_pct": _take(rope, "partial_rotary_factor")}
    elif family in _WITH_PARTIAL_ROPE:
        old = {key: _take(rope, key) for key in ("rope_theta", "partial_rotary_factor")}
    elif family in _WITH_ROPE and rope.pop("partial_rotary_factor", 1) == 1:
        old = {"rope_theta": _take(rope, "rope_theta")}
    else:
        raise _OnlyInFive
    if family == "gemma":  # some readers of Gemma 1 take another activation unless it stands under this name
        old["hidden_activation"] = config["hidden_act"]
    if family == "gemma2":  # for `attn_logit_softcapping`
        old |= _EAGER
    if family not in {"gemma2", "qwen2", "qwen3"} and "sliding_attention" in (config.get("layer_types") or ()):
        raise _OnlyInFive
    return old | (_old_phi3_scaling(rope) if family == "phi3" else _old_scaling(rope))


def _old_gemma3_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3 has one rope for its sliding blocks and another one, which may be scaled, for the others."""
    ropes = config.get("rope_parameters") or {}
    full, sliding = (dict(ropes.get(kind) or {}) for kind in ("full_attention", "sliding_attention"))
    old = {"rope_theta": _take(full, "rope_theta"), "rope_local_base_freq": _take(sliding, "rope_theta")}
    if _old_scaling(sliding) or config.get("attn_logit_softcapping") is not None:
        raise _OnlyInFive
    return old | _old_scaling(full) | {"sliding_window_pattern": _gemma3_pattern(config["layer_types"])}


def _gemma3_pattern(layer_types: list[str]) -> int:
    """Returns which blocks are not sliding: each n-th, if they are regular, as they must be before 4.56."""
    return [*layer_types, "full_attention"].index("full_attention") + 1


def _old_scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """Returns the `rope_scaling` for what is left of `rope_parameters`: nothing for the plain rope."""
    rope = {key: value for key, value in rope.items() if key != "type" and value is not None}
    kind = rope.pop("rope_type", "default")
    if kind == "default" and not rope:
        return {}
    if not rope.keys() <= _SCALING_KEYS.get(kind, set()):
        raise _OnlyInFive
    return {"rope_scaling": {"rope_type": kind, **rope}}


def _old_phi3_scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """Phi-3 has its own form of it in transformers 4, with these three keys and no other."""
    rope.pop("original_max_position_embeddings", None)  # stands in the configuration itself
    if rope.get("rope_type") != "longrope":
        return _old_scaling(rope)
    if rope.keys() - {"type", "rope_type"} != _PHI3_SCALING_KEYS:
        raise _OnlyInFive
    return {"rope_scaling": {"type": "longrope", **{key: rope[key] for key in sorted(_PHI3_SCALING_KEYS)}}}


def _same_before_4_56(config: dict[str, Any]) -> bool:
    """Says whether transformers 4.48 to 4.55 compute what 4.56 does."""
    family, layer_types = config["model_type"], config.get("layer_types") or []
    ropes = config.get("rope_parameters") or {}
    if "yarn" in {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}:
        return False
    if family in {"qwen2", "qwen3"}:
        return "sliding_attention" not in layer_types and config.get("sliding_window") is None
    period = {"gemma2": 2, "gemma3_text": _gemma3_pattern(layer_types)}.get(family)
    if period is None:
        return True
    return layer_types == [
        "sliding_attention" if block % period else "full_attention" for block in range(1, len(layer_types) + 1)
    ]


def _take(rope: dict[str, Any], key: str) -> Any:
    if rope.get(key) is None:
        raise _OnlyInFive
    return rope.pop(key)
