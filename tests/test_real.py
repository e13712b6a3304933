"""Real LLMs with real weights, against plain transformers with the template written out here, and on real pairs.

`../shared/real_llms.py` makes the LLMs; only SmolLM2 (93 MB) is downloaded for `.ci/run`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from st_prompteol import PromptEOL

from . import ROOT
from .helpers.models import publish_adapter
from .helpers.oracles import peft_oracle
from .helpers.processes import Forked, PlainProcess, command_line, run
from .helpers.real import find_real_llm
from .helpers.sentences import JOCKEY

pytestmark = [pytest.mark.real, pytest.mark.slow]

Array = np.ndarray[Any, Any]
EXACT = 2e-6  # of a row's length; measured: 1.2e-6
PLAIN = [line.split("\t")[1] for line in (ROOT / "examples/sentences.tsv").read_text(encoding="utf-8").splitlines()]
ODD = [
    "x",
    "?",
    "Is it raining?",
    'He said "no" twice',
    "une phrase en français, et une autre",
    "😀 emoji! ",
    "日本語の文です。",
    "Ünïcödé e\u0301 \u00a0",
    "<|im_start|>user\nhello<|im_end|>",
    "<|endoftext|><bos></s>",
    "a\r\nb\tc",
    "\ufeffbom",
    "word " * 60,
    'This sentence : "x" means in one word:"',
    "مرحبا بالعالم",
    "0.5 + 1/3 = 5/6",
    "...",
    '"',
    "\u200b",
    "\x00 nul",
]
SENTENCES = [*PLAIN[1::6], *ODD]  # 58
FEW = SENTENCES[::5]


def written_out(sentence: str, shot: str = "") -> str:
    """The paper's preprocessing and prompt, for sentences that are not blank."""
    sentence = sentence.strip()
    if sentence[-1] not in ".?\"'":
        sentence += "."
    sentence = sentence.replace('"', "'")
    if sentence[-1] == "?":
        sentence = sentence[:-1] + "."
    return f'{shot}This sentence : "{sentence}" means in one word:"'


SHOTS = ("", 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".')


@cache
def states(name: str, shot: str = "", sentences: tuple[str, ...] = tuple(SENTENCES)) -> dict[int, Array]:
    """By layer, the last token's hidden states of each sentence alone, by transformers in float32."""
    folder = find_real_llm(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)  # sentences are text only
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows: dict[int, list[Array]] = {-1: [], -2: []}
    for sentence in sentences:
        inputs = tokenizer(written_out(sentence, shot), return_tensors="pt")
        with torch.no_grad():
            hidden = body(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        for layer, found in rows.items():
            found.append(hidden[layer][0, -1].numpy())
    return {layer: np.stack(found) for layer, found in rows.items()}


def distance(one: Any, other: Any) -> float:
    """The largest distance of two rows, relative to the length of the second."""
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def cosine(one: Any, other: Any) -> Array:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.fixture
def smollm2() -> str:
    return find_real_llm("smollm2-135m")


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("shots", [0, 1])
def test_embeddings_are_those_of_plain_transformers(smollm2: str, shots: int, layer: int) -> None:
    model = PromptEOL(smollm2, demonstrations=[JOCKEY] * shots, layer=layer)
    expected = states("smollm2-135m", SHOTS[shots])[layer]
    assert distance(model.encode(SENTENCES), expected) < EXACT
    assert model[0]._fast_path._longest_row(layer) == 8192
    model.fast = False
    assert distance(model.encode(FEW), expected[::5]) < EXACT


def test_in_bfloat16_the_fast_path_is_as_near_to_float32_as_eager_attention(smollm2: str) -> None:
    expected = states("smollm2-135m")[-1][::5]
    model = PromptEOL(smollm2, model_kwargs={"dtype": torch.bfloat16})
    fast = cosine(model.encode(FEW, convert_to_tensor=True).float().numpy(), expected)
    model.fast = False
    model.body.set_attn_implementation("eager")
    eager = cosine(model.encode(FEW, convert_to_tensor=True).float().numpy(), expected)
    assert fast.min() > 0.9995
    assert (1 - fast).mean() < 1.5 * (1 - eager).mean()


def test_an_adapter_is_the_same_saved_and_merged_and_in_processes_of_their_own(
    smollm2: str, tmp_path: Path, plain: PlainProcess
) -> None:
    sentences = FEW[:5]
    adapter = publish_adapter(smollm2, tmp_path / "published", lora_alpha=1)
    expected = peft_oracle(smollm2, adapter, [written_out(sentence) for sentence in sentences])
    assert distance(states("smollm2-135m")[-1][:25:5], expected) > 0.05
    model = PromptEOL(adapter)
    assert distance(model.encode(sentences), expected) < EXACT
    saved, merged, source, out = (str(tmp_path / name) for name in ("saved", "merged", "in.txt", "out.npy"))
    model.save_pretrained(saved)
    assert distance(plain.encode(saved, sentences), expected) < EXACT
    Path(source).write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    process = Forked(command_line, "encode", saved, source, "-o", out)
    printed = process.communicate()
    assert process.returncode == 0, printed
    assert distance(np.load(out), expected) < EXACT

    code, _, told = run("export", saved, merged)
    assert code == 0, told
    assert not Path(merged, "adapter_config.json").exists()
    for embeddings in (plain.encode(merged, sentences), PromptEOL(merged).encode(sentences)):
        assert distance(embeddings, expected) < 2 * EXACT  # sums of weights are rounded once more


def test_saved_standardized_and_cut_models_open_elsewhere(smollm2: str, tmp_path: Path, plain: PlainProcess) -> None:
    last, inner = (states("smollm2-135m")[layer].astype(np.float64) for layer in (-1, -2))
    model = PromptEOL(smollm2)
    model.save_pretrained(str(tmp_path / "saved"))
    assert distance(plain.encode(tmp_path / "saved", FEW), last[::5]) < EXACT

    model.standardize(SENTENCES, "scale")
    model.save_pretrained(str(tmp_path / "standardized"))
    expected = ((last - last.mean(axis=0)) / last.std(axis=0))[::5]
    for embeddings in (plain.encode(tmp_path / "standardized", FEW), model.encode(FEW)):
        assert distance(embeddings, expected) < 5 * EXACT  # what all embeddings share is gone

    model = PromptEOL(smollm2, layer=-2)
    model.cut()
    model.save_pretrained(str(tmp_path / "cut"))
    for embeddings in (plain.encode(tmp_path / "cut", FEW), model.encode(FEW)):
        assert cosine(embeddings, inner[::5]).min() > 1 - 1e-6


def test_nf4_is_near_to_float32(smollm2: str) -> None:
    model = PromptEOL(smollm2, quantization="nf4", device="cpu")
    fast = model.encode(FEW)
    assert cosine(fast, states("smollm2-135m")[-1][::5]).min() > 0.95  # 0.967 of what is rounded to 4 bits twice
    model.fast = False
    assert distance(fast, model.encode(FEW)) < 1e-2  # some CPUs multiply nf4 in half precision; 1.2e-6 without


def read_pairs(shared: Path, split: str, every: int) -> tuple[list[str], list[str], list[float]]:
    """Of STS-B."""
    lines = (shared / f"senteval/STS/STSBenchmark/sts-{split}.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines[::every]]
    return [row[5] for row in rows], [row[6] for row in rows], [float(row[4]) for row in rows]


@pytest.mark.shared
def test_methods_come_in_the_papers_order(smollm2: str, shared: Path) -> None:
    """On all 1,500 pairs of STS-B dev 50.99, 58.01, 73.86; standardized 78.09."""
    left, right, gold = read_pairs(shared, "dev", 15)
    assert len(gold) == 100
    model = PromptEOL(smollm2)
    methods = {name: model.view(template=name) for name in ("none", "prompt", "prompteol")}
    methods["standardized"] = model.view()
    methods["standardized"].standardize(read_pairs(shared, "train", 115)[0])
    scores = [100 * spearmanr(cosine(one.encode(left), one.encode(right)), gold).statistic for one in methods.values()]
    assert np.diff(scores).min() > 2, dict(zip(methods, scores, strict=True))  # 37.2, 55.7, 79.8, 84.2


# the window of Gemma 3 270M is 512 tokens
LONG = [f"a dog sees {'the cat and ' * count}a horse" for count in (160, 260)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["gemma3-270m", "qwen2.5-coder-0.5b"])
def test_sliding_windows_and_biases_are_exact(name: str, tmp_path: Path, plain: PlainProcess) -> None:
    sentences = [*ODD[:9], *(LONG if name.startswith("gemma") else [])]
    expected = states(name, sentences=tuple(sentences))[-1]
    model = PromptEOL(find_real_llm(name))
    assert distance(model.encode(sentences, batch_size=4), expected) < 2 * EXACT
    model.save_pretrained(str(tmp_path))
    model.fast = False
    assert distance(model.encode(sentences, batch_size=4), expected) < 2 * EXACT
    assert distance(plain.encode(tmp_path, sentences), expected) < 2 * EXACT


@pytest.mark.long
def test_numbers_beyond_float16_are_told() -> None:
    model = PromptEOL(find_real_llm("gemma3-270m"), model_kwargs={"dtype": torch.float16})
    with pytest.raises(ValueError, match="Open the model in float32 or bfloat16, as float16 overflows at 65,504"):
        model.encode("It rains.")
