"""Real weights on real data: a short form of the tiny recipe for every day, the whole of it among the slow tests."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_prompteol import PromptEOL

from .conftest import PlainProcess
from .test_training_loss import ROOT

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from training import train as script
from training.data import Pairs, load_sts_benchmark

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


def spearman(encode: Any, pairs: Pairs) -> float:
    """The score x 100 by definition: the correlation of the ranks of cosines and of people's scores."""
    first, second = (np.asarray(encode(list(side))) for side in (pairs.first, pairs.second))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    ranks = []
    for values in (cosines, np.asarray(pairs.scores)):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])  # ties share their mean rank
    return float(np.corrcoef(*ranks)[0, 1] * 100)


def test_a_few_steps_on_real_data_raise_the_score(shared: Path, stories: str, tmp_path: Path) -> None:
    lines = {}
    for split in ("dev", "test"):
        source = shared / f"senteval/STS/STSBenchmark/sts-{split}.csv"
        lines[split] = source.read_text(encoding="utf-8").splitlines()[::5]
        target = tmp_path / f"STS/STSBenchmark/sts-{split}.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines[split]) + "\n", encoding="utf-8")
    before = spearman(PromptEOL(stories).encode, load_sts_benchmark("dev", str(tmp_path)))
    argv = words(shared, stories, tmp_path / "run", f"--sts_data_dir={tmp_path}", "--max_train_samples=1000")
    script.main(
        [
            *argv,
            "--max_steps=20",
            "--per_device_train_batch_size=32",
            "--warmup_steps=5",
            "--eval_steps=20",
            "--save_steps=20",
        ]
    )
    after = spearman(PromptEOL(str(tmp_path / "run")).encode, load_sts_benchmark("dev", str(tmp_path)))
    assert before < 30
    assert after > before + 15


@pytest.mark.slow
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
    started = time.monotonic()
    script.main(words(shared, stories, tmp_path / "run", f"--quantization={quantization}"))
    taken, found = time.monotonic() - started, scores(capsys.readouterr().out)
    assert found["dev"][0] < 25
    assert found["dev"][1] >= dev
    assert found["test"][1] >= 48
    assert taken < 15 * 60
    pairs = load_sts_benchmark("dev", str(shared / "senteval"))
    by_us = spearman(PromptEOL(str(tmp_path / "run")).encode, pairs)
    by_plain = spearman(lambda sentences: plain.encode(tmp_path / "run", sentences), pairs)
    assert by_plain == pytest.approx(by_us, abs=0.01)
    if quantization == "none":
        assert by_plain == pytest.approx(found["dev"][1], abs=0.01)
    else:  # trained on rounded weights, opened on exact ones
        assert by_plain == pytest.approx(found["dev"][1], abs=2)
