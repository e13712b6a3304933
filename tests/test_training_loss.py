"""The loss that training minimises against the reference's, written out; across processes; cached and uncached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from st_prompteol import PromptEOL, lora_config

pytest.importorskip("datasets")

from training.loss import build_loss

from .helpers.models import features_of, gradients_of
from .helpers.training import run_two

TRIPLETS = [
    "A jockey riding a horse.|The cat sat on the mat.|It rains.|A man is singing|no|a dog ran far away".split("|"),
    "Someone rides a horse.|A cat is sitting.|There is rain.|A man makes music.|not so|a dog ran".split("|"),
    "A jockey sleeps.|There is no cat.|The sun shines.|A man is silent and sits there.|yes|a dog lay".split("|"),
]


@dataclass
class Run:
    mini_batch_size: int | None = None
    matryoshka_dims: list[int] | None = None
    world_size: int = 1


def adapted(base: str, *, dropout: float = 0.0, device: str | None = None) -> PromptEOL:
    """A model with a random adapter, whose gradients are not zero in either half."""
    model = PromptEOL(base, device=device)
    torch.manual_seed(1)
    model.add_adapter(lora_config(r=4, lora_dropout=dropout, init_lora_weights=False))
    return model


def gradients(model: PromptEOL, columns: list[list[str]], run: Run) -> tuple[float, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(7)  # of dropout
    loss = build_loss(model, run)([features_of(model, column) for column in columns], None)
    loss.backward()
    return loss.item(), gradients_of(model)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert one
    scale = max(gradient.abs().max().item() for gradient in one.values())
    assert scale > 1e-4
    for name, gradient in one.items():
        torch.testing.assert_close(gradient / scale, other[name] / scale, atol=1e-5, rtol=0)


def reference_loss(base: str, columns: list[list[str]]) -> float:
    """The reference's: causal LM, all hidden states, columns padded together on the left, cosine / 0.05."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    lm = AutoModelForCausalLM.from_pretrained(base)
    texts = [f'This sentence : "{sentence}" means in one word:"' for column in columns for sentence in column]
    batch = tokenizer(texts, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    with torch.no_grad():
        hidden = lm(**batch, output_hidden_states=True).hidden_states[-1][:, -1]
    anchors, *others = hidden.view(len(columns), len(columns[0]), -1)
    cosines = torch.cosine_similarity(anchors[:, None], torch.cat(others)[None], dim=-1)
    return torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(len(anchors))).item()


@pytest.mark.parametrize("negatives", [True, False], ids=["hard negatives", "in-batch only"])
@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_the_loss_is_the_reference_s(causal_lms: dict[str, str], architecture: str, negatives: bool) -> None:
    columns = TRIPLETS if negatives else TRIPLETS[:2]
    model = PromptEOL(causal_lms[architecture], template='This sentence : "{sentence}" means in one word:"')
    model.template = type(model.template)(model.template.text, preprocessing="none")
    model.eval()
    features = [features_of(model, column) for column in columns]
    with torch.no_grad():
        loss = build_loss(model, Run())(features, None).item()
    assert loss == pytest.approx(reference_loss(causal_lms[architecture], columns), abs=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dims", [None, [32, 8]], ids=["all", "matryoshka"])
def test_a_cached_loss_has_the_gradient_of_the_uncached(
    causal_lms: dict[str, str], dropout: float, dims: list[int] | None
) -> None:
    """With dropout, both passes of the cached loss must draw the same: the oracle replays its mini-batches."""
    model = adapted(causal_lms["llama"], dropout=dropout)
    cached_loss, cached = gradients(model, TRIPLETS, Run(mini_batch_size=4, matryoshka_dims=dims))
    model.zero_grad()
    torch.manual_seed(7)
    columns = []
    for column in TRIPLETS:
        order = features_of(model, column)["attention_mask"].sum(dim=1).argsort()
        halves = [features_of(model, [column[row] for row in order[start : start + 4]]) for start in (0, 4)]
        columns.append(torch.cat([model(half)["sentence_embedding"] for half in halves])[order.argsort()])
    embeddings, loss = torch.stack(columns), 0.0
    for dim in dims or [embeddings.shape[-1]]:
        anchors, positives, negatives = torch.nn.functional.normalize(embeddings[..., :dim], dim=-1)
        scores = anchors @ torch.cat([positives, negatives]).T * 20
        loss = loss + torch.nn.functional.cross_entropy(scores, torch.arange(6, device=scores.device))
    loss.backward()
    assert cached_loss == pytest.approx(loss.item(), abs=1e-5)
    assert_close(gradients_of(model), cached)
    if not dropout:
        uncached_loss, uncached = gradients(model, TRIPLETS, Run(matryoshka_dims=dims))
        assert cached_loss == pytest.approx(uncached_loss, abs=1e-5)
        assert_close(uncached, cached)


def save_gathered_gradients(base: str, path: Path) -> None:
    """Half a batch in this process; the first one saves the gradients, of the uncached and of the cached loss."""
    torch.distributed.init_process_group("gloo")
    rank, found = torch.distributed.get_rank(), []
    for mini_batch_size in (None, 2):
        model = adapted(base, device="cpu").train()  # there may be one GPU only
        loss = build_loss(model, Run(mini_batch_size=mini_batch_size, world_size=2))
        wrapped = DistributedDataParallel(model)
        for part in (loss, getattr(loss, "loss", loss)):
            part.model = wrapped
        loss([features_of(model, column[3 * rank : 3 * rank + 3]) for column in TRIPLETS], None).backward()
        found.append(gradients_of(model))
    if rank == 0:
        torch.save(found, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_the_joined_batch(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    base, path = causal_lms["llama"], tmp_path / "gradients.pt"
    run_two(save_gathered_gradients, base, path)
    _, joined = gradients(adapted(base), TRIPLETS, Run())
    for gathered in torch.load(path):
        assert_close(joined, gathered)
