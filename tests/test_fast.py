"""The fast path against transformers' own forward pass: never stale, never wrong, whatever threads and PyTorch do."""

from __future__ import annotations

import copy
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    DeepseekV32Config,
    DogeConfig,
    Gemma3TextConfig,
    GlmMoeDsaConfig,
    LlamaConfig,
    LlamaModel,
    Phi3Config,
    PretrainedConfig,
)

from st_prompteol import PromptEOL, PromptEOLTransformer
from st_prompteol.fast import attention, check, linear
from st_prompteol.fast.passes import SharedHead
from st_prompteol.llm.reading import Reading

from .helpers.models import build_causal_lm, features_of, grouped, sized
from .helpers.oracles import assert_alike, assert_right, oracle
from .helpers.processes import PlainProcess
from .helpers.sentences import JOCKEY, SENTENCES

LONG = [*SENTENCES, " ".join(SENTENCES * 2)]


@pytest.mark.parametrize("shots", [0, 1])
def test_another_attention_takes_effect(causal_lms: dict[str, str], shots: int) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY] * shots)
    expected = model.encode(SENTENCES)
    for name in ("eager", "sdpa", "eager"):
        model[0].model.set_attn_implementation(name)
        np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=1e-4, atol=1e-4)
        assert_right(model)


_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MOE = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32}
_DSA = {**_MLA, **_MOE, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 12, "first_k_dense_replace": 3}
# Families that do something else from some length on, which the sentences here reach
_LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 48}
LENGTHS = {
    "phi3 with longrope": grouped(
        Phi3Config,
        pad_token_id=0,
        original_max_position_embeddings=48,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **_LONGROPE},
    ),
    "doge": grouped(DogeConfig, keep_window_size=16),
    "deepseek-v3.2": sized(DeepseekV32Config, intermediate_size=64, **_DSA),
    "glm-moe-dsa": sized(GlmMoeDsaConfig, intermediate_size=64, **_DSA),
}


@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("family", LENGTHS)
def test_lengths_at_which_a_family_changes_end_the_sharing(tmp_path: Path, family: str, shots: int) -> None:
    model = PromptEOL(build_causal_lm(tmp_path, LENGTHS[family]), demonstrations=[JOCKEY] * shots)
    expected = oracle(model, LONG, AutoModel.from_pretrained(tmp_path).config._attn_implementation)
    # one by one, as some families compute a whole batch as they do its longest row
    assert_alike(model.encode(LONG, batch_size=1), expected, 1e-4)


@pytest.mark.parametrize(
    ("name", "values", "threads"), [("layer", (-1, -2), 3), ("template", ("prompt", "prompteol"), 1)]
)
def test_what_other_threads_set_never_gives_a_wrong_row(
    causal_lms: dict[str, str], name: str, values: tuple[Any, Any], threads: int
) -> None:
    model = PromptEOL(causal_lms["llama"])
    right = []
    for value in values:
        setattr(model, name, value)
        right.append(model.encode(SENTENCES))
    stop, wrong = threading.Event(), []

    def change() -> None:
        while not stop.is_set():
            for value in values:
                setattr(model, name, value)

    def encode() -> None:
        for _ in range(10):
            try:
                embeddings = model.encode(SENTENCES, batch_size=2)
            except Exception as error:
                wrong.append(repr(error))
            else:
                if not any(np.allclose(embeddings, expected, atol=1e-3) for expected in right):
                    wrong.append("a wrong row")

    changing = threading.Thread(target=change)
    encoding = [threading.Thread(target=encode) for _ in range(threads)]
    for thread in [changing, *encoding]:
        thread.start()
    for thread in encoding:
        thread.join()
    stop.set()
    changing.join()
    assert wrong == []


def test_a_folder_with_a_weighted_mean_over_layers_embeds_right(
    causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    transformer = PromptEOLTransformer(causal_lms["llama"])
    transformer.model.config.output_hidden_states = True
    mean = WeightedLayerPooling(32, num_hidden_layers=3, layer_start=1)
    with torch.no_grad():
        mean.layer_weights.copy_(torch.tensor([1.0, 3.0, 0.5]))
    PromptEOL(modules=[transformer, mean, Pooling(32, "lasttoken")]).save_pretrained(str(tmp_path))
    embeddings = PromptEOL(str(tmp_path)).encode(SENTENCES)
    np.testing.assert_allclose(embeddings, plain.encode(tmp_path, SENTENCES), atol=1e-4)


def test_without_private_operators_everything_is_computed_by_public_ones(
    causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", missing)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", missing)
    monkeypatch.setattr(linear, "_SMALL", 0)
    caches = [linear._is_faster, attention._has_flash_attention]
    for found in caches:
        found.cache_clear()
    try:
        model = PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY], device="cpu")
        assert_right(model, LONG)
    finally:
        for found in caches:
            found.cache_clear()


def test_the_switch_turns_everything_off_and_on(causal_lms: dict[str, str]) -> None:
    def traces(model: PromptEOL) -> int:
        modules = list(model[0].model.modules())
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
        ours = "shared_head" in model[0].model.config._attn_implementation
        return hooks + ours + sum("forward" in vars(module) for module in modules)

    off = PromptEOL(causal_lms["llama"], fast=False, demonstrations=[JOCKEY])
    assert (off.fast, traces(off)) == (False, 0)
    expected = off.encode(SENTENCES)
    model = PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY])
    for fast in (True, False, True):
        model.fast = fast
        assert model.fast is fast
        np.testing.assert_allclose(model.encode([*SENTENCES, *SENTENCES])[: len(SENTENCES)], expected, atol=1e-4)
        assert (traces(model) > 0) is fast
    twin = copy.deepcopy(model)
    twin.fast = False
    assert (traces(twin), traces(model) > 0) == (0, True)
    assert PromptEOL(modules=list(model), fast=False).fast is False


@pytest.mark.parametrize("fault", ["of many queries", "of a head apart"])
def test_the_check_sees_what_is_only_used_for_long_rows_and_heads(
    causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "of many queries":  # the kernel for rows beyond 64 tokens
        flash = attention._flash_attention
        monkeypatch.setattr(attention, "_flash_attention", lambda *args, **kw: (flash(*args, **kw)[0] * 1.1, None))
    else:  # the log-sum-exp by which long heads are merged
        plain = attention._attention
        monkeypatch.setattr(
            attention, "_attention", lambda *args: (plain(*args)[0], plain(*args)[1] + 0.1 * (len(args[0]) == 1))
        )
    model = PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY] * 2, device="cpu")  # which alone has that kernel
    assert_right(model, LONG)
    assert model[0].model.config._attn_implementation == "sdpa"


def test_a_check_takes_no_more_blocks_of_a_large_model_than_it_has_kinds() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    with torch.device("meta"):
        one_kind = LlamaModel(LlamaConfig(num_hidden_layers=32, **sizes))
        every_sixth = AutoModel.from_config(
            Gemma3TextConfig(num_hidden_layers=26, **{**sizes, "num_key_value_heads": 8})
        )
        small = LlamaModel(LlamaConfig(num_hidden_layers=4, **{**sizes, "hidden_size": 64, "intermediate_size": 64}))
    assert check._probed_layer(one_kind, -1) == check._probed_layer(one_kind, -2) == -32  # the first block's output
    assert check._probed_layer(every_sixth, -1) == -21  # the sixth's
    assert [check._probed_layer(small, layer) for layer in (-1, -3)] == [-1, -3]


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({"sliding_window": 12, "max_window_layers": 3}, 12),
        ({"attention_chunk_size": 20, "chunk_size_feed_forward": 4}, 20),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 30, "factor": 2.0}}, 30),
        ({"index_topk": 17, "sliding_window": None}, 17),
        ({"keep_window_size": 5, "mamba_chunk_size": 2}, 5),
        ({}, 99),
    ],
)
def test_lengths_are_found_in_a_configuration(settings: dict[str, Any], longest: int) -> None:
    assert check.longest_row(PretrainedConfig(max_position_embeddings=99, **settings)) == longest


def test_whoever_asks_for_all_hidden_states_gets_them(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"])
    model[0].model.config.output_hidden_states = True
    features = model(features_of(model, SENTENCES[:2]))
    assert len(features["all_layer_embeddings"]) == 4
    with torch.no_grad():
        assert len(model(features_of(model, SENTENCES[:2]))["all_layer_embeddings"]) == 4


class Reads(TorchDispatchMode):
    """Notes operations of ours for whose results a device makes Python wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
        indices = args[1] if operation.overloadpacket.__name__ in ("index", "index_put", "index_put_") else ()
        masks = any(index is not None and index.dtype == torch.bool for index in indices)
        caller = traceback.extract_stack(limit=2)[0]
        if (operation.overloadpacket.__name__ in waits or masks) and "st_prompteol" in caller.filename:
            self.found.append(f"{operation} at {caller.filename}:{caller.lineno}")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("shots", [0, 2])
def test_from_the_second_batch_on_nothing_waits_for_a_device(causal_lms: dict[str, str], shots: int) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=[JOCKEY] * shots).eval()
    reading = Reading(last_only=True)
    for batch in (LONG[:3], LONG[3:]):
        with torch.inference_mode():
            features = features_of(model, batch, reading=reading)
            with Reads() as reads:
                embeddings = model(features, reading=reading)["sentence_embedding"]
    assert reads.found == []
    np.testing.assert_allclose(embeddings.cpu().numpy(), oracle(model, LONG[3:]), atol=1e-3)


def test_each_token_is_compared_by_its_own_length(causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real LLMs have numbers of 10,000 at the first token: by these, no other token would be looked at."""
    body = PromptEOL(causal_lms["llama"], layer=-2)[0].model
    first = int(check._fit(body, 18, (66, 5), 256)[0][0, 0])
    body.embed_tokens.weight.data[first, 0] = 10_000.0
    assert check.is_exact(body, -2)
    compute_head = check.compute_head

    def slightly_wrong(*arguments: Any) -> SharedHead:
        head = compute_head(*arguments)
        return SharedHead(head.keys, [value * 1.02 for value in head.values], head.hidden)

    # of the largest number it is 6e-5, of a token's own length 4e-2
    monkeypatch.setattr(check, "compute_head", slightly_wrong)
    assert not check.is_exact(body, -2)
