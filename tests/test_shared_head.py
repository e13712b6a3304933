"""The shared head: the same embeddings as without it, whatever happened to the model in between."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    MiniMaxConfig,
    MistralConfig,
    RecurrentGemmaConfig,
)

from st_prompteol import PromptEOL, PromptTemplate
from st_prompteol.fast.passes import SharedHead
from st_prompteol.fast.rows import PackedRows
from st_prompteol.modules import LastTokenPooling, PromptEOLTransformer

from .helpers.models import ARCHITECTURES, build_causal_lm, features_of, grouped, publish_adapter, quick, sized
from .helpers.oracles import assert_alike, assert_right
from .helpers.sentences import SENTENCES, SHOTS

SAME = {"rtol": 1e-4, "atol": 1e-5}


def without_head(model: PromptEOL, sentences: list[str] = SENTENCES, **options: Any) -> Any:
    """The embeddings of upstream's forward pass over all tokens of every row, with all hidden states kept."""
    twin = copy.deepcopy(model)
    twin.fast = False
    return twin.encode(sentences, **options)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many sentences and tokens were computed together."""
    found, build = [], PackedRows.__init__

    def note(rows: PackedRows, ids: Any, *args: Any, **kw: Any) -> None:
        build(rows, ids, *args, **kw)
        found.append((len(ids), len(rows.tokens)))

    monkeypatch.setattr(PackedRows, "__init__", note)
    return found


def with_head(model: PromptEOL, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The embeddings, and how many tokens of each batch were not computed."""
    lengths = []
    cut = SharedHead.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(SharedHead, "__getitem__", lambda head, length: lengths.append(length) or cut(head, length))
        return model.encode(SENTENCES, batch_size=3), lengths


# windows that all rows fit into
_WIDE = {"head_dim": 8, "sliding_window": 256}
WIDE = {
    "mistral-wide": grouped(MistralConfig, **_WIDE),
    "gemma2-wide": grouped(Gemma2Config, **_WIDE),
    "gemma3-wide": grouped(Gemma3TextConfig, **_WIDE),
}


@pytest.fixture
def lms(causal_lms: dict[str, str], tmp_path: Path) -> Callable[[str], str]:
    return lambda name: build_causal_lm(tmp_path, WIDE[name]) if name in WIDE else causal_lms[name]


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize(
    "architecture", quick([*ARCHITECTURES, *WIDE], "opt", "opt-350m", "llama", "gpt2", "gemma2-wide")
)
def test_embeddings_are_those_without_it(
    lms: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, architecture: str, layer: int
) -> None:
    model = PromptEOL(lms(architecture), layer=layer, demonstrations=SHOTS)
    embeddings, lengths = with_head(model, monkeypatch)
    expected = without_head(model)
    assert_alike(embeddings, expected)
    if architecture in ("mistral", "gemma2", "gemma3"):
        assert lengths == []  # the window of 8 tokens is shorter than the prompt
    else:
        assert len(lengths) == 3
        assert min(lengths) > 40
    sides = (
        encode(SENTENCES[:2], output_value="token_embeddings")
        for encode in (model.encode, partial(without_head, model))
    )
    for ours, theirs in zip(*sides, strict=True):
        np.testing.assert_allclose(ours.cpu(), theirs.cpu(), atol=1e-5 * np.abs(expected).max())


# Families whose tokens meet otherwise than by plain attention to all tokens before them
ELSEWISE = {
    # attention sinks
    "gpt-oss": grouped(GptOssConfig, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
    # convolutions over neighbouring tokens
    "lfm2": grouped(Lfm2Config, layer_types=["conv", "full_attention", "conv"]),
    # linear attention, in a cache of its own
    "minimax": grouped(MiniMaxConfig, head_dim=8, num_local_experts=2),
    "recurrent-gemma": sized(RecurrentGemmaConfig, intermediate_size=64),
}


@pytest.mark.parametrize("family", ELSEWISE)
def test_families_that_cannot_share_a_head_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = PromptEOL(build_causal_lm(tmp_path, ELSEWISE[family]), demonstrations=SHOTS)
    expected = without_head(model)
    embeddings, lengths = with_head(model, monkeypatch)
    np.testing.assert_allclose(embeddings, expected, **SAME)
    assert lengths == []


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma2-wide"])
def test_long_sentences_and_large_batches(
    lms: Callable[[str], str], packed: list[tuple[int, int]], architecture: str
) -> None:
    model = PromptEOL(lms(architecture))
    sentences = [" ".join([*SENTENCES * 4][:count]) for count in range(1, 26)]
    model.encode("checked")
    packed.clear()
    embeddings = model.encode(sentences, batch_size=25)
    assert (len(packed) > 1) is (model.device.type == "cpu")  # others compute a batch at once
    assert max(packed)[0] > 1
    np.testing.assert_allclose(embeddings, without_head(model, sentences, batch_size=1), **SAME)


@pytest.mark.parametrize("words", [2, 40])
def test_on_a_cpu_numbers_of_tokens_are_few(
    causal_lms: dict[str, str], packed: list[tuple[int, int]], words: int
) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=SHOTS, device="cpu")
    sentences = [" ".join(["horse"] * (words + number % 3)) + f" {number}" for number in range(50)]
    one_by_one = model.encode(sentences, batch_size=1)
    packed.clear()
    for batch_size in (7, 16, 50):
        np.testing.assert_allclose(model.encode(sentences, batch_size=batch_size), one_by_one, **SAME)
    assert packed
    assert all(tokens % 32 == 0 or tokens <= 64 for _, tokens in packed)


def test_identical_sentences_are_computed_once(causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = PromptEOL(causal_lms["llama"])
    many = [*SENTENCES, *reversed(SENTENCES), SENTENCES[0]]
    single = model.encode(SENTENCES)
    expected = np.concatenate([single, single[::-1], single[:1]])
    rows = []
    preprocess = model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda inputs, **kw: rows.extend(inputs) or preprocess(inputs, **kw))
    np.testing.assert_allclose(model.encode(many, batch_size=4), expected, **SAME)
    assert sorted(rows) == sorted(set(SENTENCES))
    np.testing.assert_allclose(model.encode(many, convert_to_tensor=True).cpu(), expected, **SAME)
    listed = model.encode(many, convert_to_numpy=False)
    np.testing.assert_allclose(torch.stack(listed).cpu(), expected, **SAME)
    tokens = model.encode(many, output_value="token_embeddings")
    np.testing.assert_allclose(torch.stack([row[-1] for row in tokens]).cpu(), expected, **SAME)
    assert model.encode(many, precision="ubinary").shape == (len(many), 4)
    assert model.encode(np.array(many)).shape == expected.shape
    assert model.encode([]).shape == (0,)


def test_the_last_block_computes_last_tokens_only_where_nothing_reads_others(causal_lms: dict[str, str]) -> None:
    seen: list[int] = []
    for behind, only_last in (
        ([LastTokenPooling(32)], True),
        ([LastTokenPooling(32), Normalize()], True),
        ([LastTokenPooling(32), Dense(32, 4), Normalize()], True),
        ([Pooling(32, "mean")], False),
    ):
        model = PromptEOL(modules=[PromptEOLTransformer(causal_lms["llama"]), *behind], device="cpu")
        model.encode(SENTENCES)
        hook = model[0].model.layers[-1].mlp.register_forward_hook(lambda *args: seen.append(args[2].shape[1]))
        tokens = sum(len(ids) for ids in model[0].tokenizer(SENTENCES, add_special_tokens=False)["input_ids"])
        model.encode(SENTENCES)
        assert (seen[-1] < tokens) is only_last
        model.encode(SENTENCES, output_value="token_embeddings")
        assert seen[-1] >= tokens
        hook.remove()
        np.testing.assert_allclose(model.encode(SENTENCES), without_head(model), **SAME)


def take_step(model: PromptEOL, *, fused: bool) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused).step()


def train(model: PromptEOL) -> None:
    model(features_of(model, SENTENCES[:3]))["sentence_embedding"].square().mean().backward()
    assert all(parameter.grad is not None for parameter in block(model, 0).parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def load_other_weights(model: PromptEOL) -> None:
    state = model.state_dict().items()
    model.load_state_dict({name: tensor * 1.1 if tensor.is_floating_point() else tensor for name, tensor in state})


def noise(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)


def block(model: PromptEOL, number: int) -> Any:
    return model[0].model.layers[number]


def replace_data(weight: torch.Tensor) -> None:
    weight.data = weight.data * 2


# Most leave no version behind; a fused optimizer does not either
CHANGES: dict[str, Callable[[PromptEOL], Any]] = {
    "training": lambda model: train(model.train()),
    "training in evaluation mode": lambda model: train(model.eval()),
    "a step": lambda model: take_step(model, fused=False),
    "a fused step": lambda model: take_step(model, fused=True),
    "a moving average": lambda model: [p.data.mul_(0.9).add_(noise(p), alpha=0.1) for p in model.parameters()],
    "a copy": lambda model: [p.data.copy_(p.data + 0.3 * noise(p)) for p in model.parameters()],
    "load_state_dict": load_other_weights,
    "one matrix": lambda model: block(model, 1).mlp.down_proj.weight.data.mul_(1.5),
    "one matrix in place": lambda model: block(model, 0).self_attn.k_proj.weight.requires_grad_(False).mul_(1.5),
    "half of a matrix": lambda model: block(model, 0).self_attn.v_proj.weight.data[8:].zero_(),
    "one norm": lambda model: block(model, 0).input_layernorm.weight.data.add_(0.5),
    "other data": lambda model: replace_data(block(model, 0).self_attn.v_proj.weight),
    "bfloat16 and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "template": lambda model: setattr(model, "template", "prompt"),
    "demonstrations": lambda model: setattr(model, "template", PromptTemplate(demonstrations=SHOTS)),
    "layer": lambda model: setattr(model, "layer", -2),
    "nothing": lambda model: model.float().double().float(),
}


@pytest.mark.parametrize("shots", [pytest.param(0, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_never_stale(
    causal_lms: dict[str, str], monkeypatch: pytest.MonkeyPatch, change: str, shots: int
) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=SHOTS[:1] * shots)
    before = model.encode(SENTENCES)
    CHANGES[change](model)
    after, lengths = with_head(model, monkeypatch)
    assert lengths
    np.testing.assert_allclose(after, without_head(model), **SAME)
    assert_right(model)
    assert change == "nothing" or np.abs(after - before).max() > 1e-3


def test_merging_in_place_by_peft_itself_is_noticed(causal_lms: dict[str, str], tmp_path: Path) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = PromptEOL(publish_adapter(causal_lms["llama"], tmp_path))
    expected = model.encode(SENTENCES)
    layers = [layer for layer in model[0].model.modules() if isinstance(layer, BaseTunerLayer)]
    for action in ("merge", "unmerge"):
        for layer in layers:
            getattr(layer, action)()
        np.testing.assert_allclose(model.encode(SENTENCES), expected, **SAME)


def test_it_is_off_where_gradients_are_asked_for(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"]).eval()
    model.encode(SENTENCES)
    features = features_of(model, SENTENCES[:2])
    with torch.enable_grad():
        model(features)["sentence_embedding"].sum().backward()
    assert model[0].model.embed_tokens.weight.grad is not None
    with torch.no_grad():
        mixed = model(features_of(model, SENTENCES))["sentence_embedding"].cpu()
    np.testing.assert_allclose(mixed, model.encode(SENTENCES), **SAME)


@pytest.mark.slow
def test_threads_with_different_batch_sizes_do_not_disturb_each_other(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], layer=-2, demonstrations=SHOTS)
    other = PromptEOL(causal_lms["opt"])
    expected = {id(model): without_head(model), id(other): without_head(other)}
    wrong: list[str] = []

    def encode(which: PromptEOL, batch_size: int) -> None:
        for _ in range(15):
            embeddings = which.encode(SENTENCES, batch_size=batch_size)
            difference = np.abs(embeddings - expected[id(which)]).max()
            if not difference <= 1e-5 * np.abs(embeddings).max():
                wrong.append(f"batch size {batch_size}: {difference}")

    threads = [threading.Thread(target=encode, args=(which, size)) for which in (model, other) for size in (1, 3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_many_single_calls_keep_nothing(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["opt"])
    model.encode("warm up")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    for number in range(100):
        model.encode(f"sentence {number}")
        if number % 50 == 0:
            model.template = "prompt" if number % 100 else "prompteol"
    assert tensors() - before < 10


@pytest.mark.slow
@pytest.mark.long
def test_ten_thousand_single_calls_do_not_grow(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"])
    process = psutil.Process()

    def call(count: int) -> int:
        for number in range(count):
            model.encode(f"sentence {number}")
        gc.collect()
        return int(process.memory_info().rss)

    before = call(1000)
    assert call(10_000) - before < 8 * 2**20


@pytest.mark.slow
def test_a_pool_of_processes_has_it_too(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], layer=-2)
    expected = model.encode(SENTENCES)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        embeddings = model.encode(SENTENCES, pool=pool, chunk_size=3)
        assert_alike(embeddings, expected)
    finally:
        model.stop_multi_process_pool(pool)


def test_the_saved_configuration_names_no_attention_of_ours(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model = PromptEOL(causal_lms["llama"])
    model.save_pretrained(str(tmp_path))
    for path in tmp_path.rglob("*.json"):
        assert "shared_head" not in path.read_text(encoding="utf-8"), path
    assert isinstance(model[0], PromptEOLTransformer)


@pytest.mark.slow
def test_a_compiled_model_embeds_the_same(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"], demonstrations=SHOTS)
    expected = without_head(model)
    model.compile(backend="eager")
    np.testing.assert_allclose(model.encode(SENTENCES), expected, **SAME)
    np.testing.assert_allclose(model.encode(SENTENCES[:1]), expected[:1], **SAME)


def test_under_autocast_every_sentence_is_computed_whole(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"])
    before = model.encode(SENTENCES)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        np.testing.assert_allclose(model.encode(SENTENCES), without_head(model), **SAME)
    np.testing.assert_allclose(model.encode(SENTENCES), before, **SAME)
