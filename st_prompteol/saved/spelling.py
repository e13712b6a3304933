"""Rewrites `config.json` so that transformers 4 and 5 read the same values, or incompatible versions fail to load it.

transformers 5 writes `rope_parameters` and `dtype`, but transformers 4 reads `rope_theta`, `rope_scaling` and
`torch_dtype`. For missing keys transformers 4 silently uses its defaults, and every embedding is wrong.
"""

from __future__ import annotations

from typing import Any

# Values that make older versions of transformers fail with this text in the error. transformers 4 expects integer keys
# in `pruned_heads`, which 5 ignores; 4.56 and later ignore `torch_dtype` if there is a `dtype`, and earlier versions
# look up its value in torch.
_FAILS_BELOW_5: dict[str, Any] = {"pruned_heads": {"this model needs transformers 5 or later": []}}
_FAILS_BELOW_4_56: dict[str, Any] = {"torch_dtype": "this model needs transformers 4.56 or later"}

# For features that the default attention ignores in transformers 4 and 5 up to 5.20. Versions 4 and 5.0 read the
# second key, later ones the first.
_EAGER = {"attn_implementation": "eager", "_attn_implementation_internal": "eager"}

# The model types that `benchmarks/families/old_transformers.py` compared; Gemma 3 and GPT-NeoX have their own keys.
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
_SCALING_KEYS = {  # for the rope types that transformers 4 and 5 compute alike
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"},
}
_PHI3_SCALING_KEYS = {"short_factor", "long_factor"}


class _OnlyInFive(Exception):
    """A configuration that transformers 4 cannot express or computes differently, or that was never compared."""


def spell_for_all(config: dict[str, Any]) -> dict[str, Any]:
    """Adds the corresponding keys of transformers 4 to a configuration saved by transformers 5.

    Model types whose hidden states were compared load in transformers 4.48 and later (or the first version that knows
    the model type) and in 5. If 4.48 would compute different values but 4.56 would not, loading fails below 4.56.
    Everything else fails below 5: model types that were never compared, and rope types or per-layer ropes that old
    keys cannot express.

    A configuration with both sets of keys gives the same result, because the old keys are recomputed from the new
    ones. If the result differs from the input, only one set was edited. From such a file transformers 5 reads
    `rope_scaling` and `rope_theta` if there is a `rope_scaling` (Gemma 3: that, but no `rope_theta`), and
    `rope_parameters` otherwise; 4 reads the old keys.

    Args:
        config: The content of the `config.json` written by `save_pretrained` of transformers 5; it is not changed.

    Returns:
        The new content of the file.
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
    """Returns the keys that transformers 4 reads and 5 does not write.

    Raises:
        _OnlyInFive: If old keys cannot express the configuration.
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
    if family == "gemma":  # without this key some implementations of Gemma 1 use another activation
        old["hidden_activation"] = config["hidden_act"]
    if family == "gemma2":  # for `attn_logit_softcapping`
        old |= _EAGER
    if family not in {"gemma2", "qwen2", "qwen3"} and "sliding_attention" in (config.get("layer_types") or ()):
        raise _OnlyInFive
    return old | (_old_phi3_scaling(rope) if family == "phi3" else _old_scaling(rope))


def _old_gemma3_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the old keys of Gemma 3: one rope for sliding blocks, another, possibly scaled one for the others."""
    ropes = config.get("rope_parameters") or {}
    full, sliding = (dict(ropes.get(kind) or {}) for kind in ("full_attention", "sliding_attention"))
    old = {"rope_theta": _take(full, "rope_theta"), "rope_local_base_freq": _take(sliding, "rope_theta")}
    if _old_scaling(sliding) or config.get("attn_logit_softcapping") is not None:
        raise _OnlyInFive
    return old | _old_scaling(full) | {"sliding_window_pattern": _gemma3_pattern(config["layer_types"])}


def _gemma3_pattern(layer_types: list[str]) -> int:
    """Returns n if every n-th block is not sliding; before 4.56 the pattern must be regular."""
    return [*layer_types, "full_attention"].index("full_attention") + 1


def _old_scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """Returns the `rope_scaling` for the remaining `rope_parameters`; empty for the default rope."""
    rope = {key: value for key, value in rope.items() if key != "type" and value is not None}
    kind = rope.pop("rope_type", "default")
    if kind == "default" and not rope:
        return {}
    if not rope.keys() <= _SCALING_KEYS.get(kind, set()):
        raise _OnlyInFive
    return {"rope_scaling": {"rope_type": kind, **rope}}


def _old_phi3_scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """Returns the `rope_scaling` of Phi-3, which allows exactly three keys in transformers 4."""
    rope.pop("original_max_position_embeddings", None)  # also a key of the configuration itself
    if rope.get("rope_type") != "longrope":
        return _old_scaling(rope)
    if rope.keys() - {"type", "rope_type"} != _PHI3_SCALING_KEYS:
        raise _OnlyInFive
    return {"rope_scaling": {"type": "longrope", **{key: rope[key] for key in sorted(_PHI3_SCALING_KEYS)}}}


def _same_before_4_56(config: dict[str, Any]) -> bool:
    """Returns whether transformers 4.48 to 4.55 compute the same as 4.56."""
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
