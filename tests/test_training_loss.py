"""The loss that training minimises against the reference's, written out; across processes; cached and uncached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from st_prompteol import PromptEOL, lora_config

pytest.importorskip("datasets")

from training.loss import build_loss

ROOT = Path(__file__).resolve().parents[1]
TRIPLETS = [
    [
        "A jockey riding a horse.",
        "The cat sat on the mat.",
        "It rains.",
        "A man is singing",
        "no",
        "a dog ran far away",
    ],
    ["Someone rides a horse.", "A cat is sitting.", "There is rain.", "A man makes music.", "not so", "a dog ran"],
    ["A jockey sleeps.", "There is no cat.", "The sun shines.", "A man is silent and sits there.", "yes", "a dog lay"],
]


@dataclass
class Run:
    mini_batch_size: int | None = None
    matryoshka_dims: list[int] | None = None
    world_size: int = 1


def adapted(base: str, *, dropout: float = 0.0, rank: int = 4) -> PromptEOL:
    """A model with a random adapter, whose gradients are not zero in either half."""
    model = PromptEOL(base)
    torch.manual_seed(1)
    model.add_adapter(lora_config(r=rank, lora_dropout=dropout, init_lora_weights=False))
    return model


def gradients(model: PromptEOL, columns: list[list[str]], run: Run) -> tuple[float, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(7)  # of dropout
    loss = build_loss(model, run)([model.preprocess(column) for column in columns], None)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


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
    features = [model.preprocess(column) for column in columns]
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
    if dropout:  # the uncached loss on embeddings that are drawn in the same mini-batches
        torch.manual_seed(7)
        model.zero_grad()
        parts = []
        for column in TRIPLETS:
            order = model.preprocess(column)["attention_mask"].sum(dim=1).argsort()
            halves = [model.preprocess([column[row] for row in order[start : start + 4]]) for start in (0, 4)]
            embedded = torch.cat([model(half)["sentence_embedding"] for half in halves])
            parts.append(embedded[order.argsort()])
        embeddings = torch.stack(parts)
        uncached_loss = torch.zeros(())
        for dim in dims or [embeddings.shape[-1]]:
            anchors, positives, negatives = torch.nn.functional.normalize(embeddings[..., :dim], dim=-1)
            scores = anchors @ torch.cat([positives, negatives]).T * 20
            uncached_loss = uncached_loss + torch.nn.functional.cross_entropy(scores, torch.arange(6))
        uncached_loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert cached_loss == pytest.approx(uncached_loss.item(), abs=1e-5)
    else:
        uncached, expected = gradients(model, TRIPLETS, Run(matryoshka_dims=dims))
        assert cached_loss == pytest.approx(uncached, abs=1e-5)
    assert_close(cached, expected)


WORKER = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from tests.test_training_loss import Run, TRIPLETS, adapted
from training.loss import build_loss
base, out, mini_batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = adapted(base).train()
loss = build_loss(model, Run(mini_batch_size=mini_batch_size, world_size=2))
wrapped = DistributedDataParallel(model)
for part in (loss, getattr(loss, "loss", loss)):
    part.model = wrapped
features = [model.preprocess(column[3 * rank : 3 * rank + 3]) for column in TRIPLETS]
loss(features, None).backward()
if rank == 0:
    torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, out)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_two(arguments: list[str]) -> None:
    """Starts two processes of one group, as torchrun does, and waits for both."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]


@pytest.mark.parametrize("mini_batch_size", [0, 2])
def test_two_processes_have_the_gradient_of_one_with_the_joined_batch(
    causal_lms: dict[str, str], tmp_path: Path, mini_batch_size: int
) -> None:
    base = causal_lms["llama"]
    run_two(["-c", WORKER, base, str(tmp_path / "gradients.pt"), str(mini_batch_size)])
    gathered: dict[str, Any] = torch.load(tmp_path / "gradients.pt")
    _, joined = gradients(adapted(base), TRIPLETS, Run())
    assert_close(joined, gathered)
