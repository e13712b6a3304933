"""Real weights on real data: the tiny recipe, and a run from Hub to Hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.stats import rankdata
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_prompteol import PromptEOL

from . import ROOT

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from training import train as script
from training.data import sts_benchmark

from .helpers.hub import Hub, hub_environment
from .helpers.processes import PlainProcess, Program

pytestmark = pytest.mark.shared


def words(shared: Path, stories: str, output_dir: Path, *more: str) -> list[str]:
    return [
        f"--config={ROOT / 'training/recipes/tiny.yaml'}",
        f"--model_name_or_path={stories}",
        f"--train_file={shared / 'hub/datasets/nli/snli-triplets'}",
        f"--sts_data_dir={shared / 'senteval'}",
        f"--output_dir={output_dir}",
        "--disable_tqdm=true",
        *more,
    ]


def scores(said: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"\| STS-B (dev|test) \| (\S+) \| (\S+) \|", said)
    return {split: (float(base), float(trained)) for split, base, trained in rows}


def spearman(encode: Any, pairs: EmbeddingSimilarityEvaluator) -> float:
    """The score x 100 by definition: the correlation of the ranks of cosines and of people's scores."""
    first, second = (np.asarray(encode(list(side))) for side in (pairs.sentences1, pairs.sentences2))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return float(np.corrcoef(rankdata(cosines), rankdata(pairs.scores))[0, 1] * 100)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("quantization", "dev"), [("none", 60.0), ("nf4", 58.0)])
def test_the_tiny_recipe_reaches_its_scores(
    shared: Path,
    stories: str,
    tmp_path: Path,
    plain: PlainProcess,
    capsys: pytest.CaptureFixture[str],
    quantization: str,
    dev: float,
) -> None:
    started = time.process_time()
    script.main(words(shared, stories, tmp_path / "run", f"--quantization={quantization}"))
    taken, found = time.process_time() - started, scores(capsys.readouterr().out)
    assert found["dev"][0] < 25
    assert found["dev"][1] >= dev
    assert found["test"][1] >= 48
    pairs = sts_benchmark("dev", str(shared / "senteval"), 64)
    by_us = spearman(PromptEOL(str(tmp_path / "run")).encode, pairs)
    by_plain = spearman(lambda sentences: plain.encode(tmp_path / "run", sentences), pairs)
    assert by_plain == pytest.approx(by_us, abs=0.01)
    # trained on rounded weights, opened on exact ones
    assert by_plain == pytest.approx(found["dev"][1], abs=0.01 if quantization == "none" else 2)
    assert quantization != "none" or taken < 15 * 60


@pytest.mark.slow
def test_a_run_from_hub_to_hub(shared: Path, tmp_path: Path) -> None:
    """Base LLM and triplets come from a Hub, the adapter goes there, and opens from there without this package."""
    sentences = ["A man rides a horse.", "It rains"]
    argv = ["--model_name_or_path=tinyllamas/stories260k", "--dataset_name=nli/snli-triplets", "--streaming"]
    argv += ["--max_steps=4", "--per_device_train_batch_size=8", "--shuffle_buffer_size=50", "--logging_steps=1"]
    argv += ["--eval_strategy=no", "--precision=float32", "--learning_rate=1e-2", "--warmup_steps=1"]
    argv += ["--push_to_hub", "--hub_model_id=alice/adapter"]
    hub = Hub(tokens={"hf_alice": "alice"})
    hub.seed_root(shared / "hub", json.loads((shared / "hub/revisions.json").read_text(encoding="utf-8")))
    with hub:
        environment = {**hub_environment(hub.url, tmp_path / "home"), "HF_TOKEN": "hf_alice"}
        trained, refused = (
            subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
            for command in (
                [str(ROOT / "training/train.py"), *argv, f"--output_dir={tmp_path / 'run'}"],
                [str(ROOT / "training/train.py"), *argv, f"--output_dir={tmp_path / 'b'}", "--hub_private_repo=true"],
            )
        )
        assert trained.returncode == 0, trained.stderr[-3000:]
        stranger = Program("stranger", env={**environment, "PYTHONPATH": str(ROOT)})
        embeddings = stranger.call("encode", "alice/adapter", sentences)
        stranger.close()
        with urllib.request.urlopen(f"{hub.url}/alice/adapter/resolve/main/README.md") as answer:
            card = answer.read().decode()
        with urllib.request.urlopen(f"{hub.url}/alice/adapter/resolve/main/curves.png") as answer:
            assert answer.read() == (tmp_path / "run/curves.png").read_bytes()
    assert "pushed: " in trained.stdout
    assert ModelCard(card).data.to_dict()["base_model_relation"] == "adapter"
    assert str(tmp_path) not in card
    for part in ("- `learning_rate`: 0.01", "### Training Logs", "![Training loss"):
        assert part in card
    assert refused.stderr.splitlines()[-1].startswith("train.py: 'alice/adapter' exists and is public: make")
    assert not (tmp_path / "b/checkpoint-4").exists()
    config = json.loads((tmp_path / "run/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tinyllamas/stories260k"
    config["base_model_name_or_path"] = str(shared / "hub/models/tinyllamas/stories260k")
    (tmp_path / "run/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = PromptEOL(str(tmp_path / "run")).encode(sentences)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-4)
