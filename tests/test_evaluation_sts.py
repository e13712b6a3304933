"""STS scores against scipy on the same embeddings, the cache between tasks and model, and the errors on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from st_prompteol.evaluation import STS_TASKS, EmbeddingCache, evaluate_sts, evaluate_transfer
from st_prompteol.evaluation.senteval import task_files
from st_prompteol.evaluation.sts import cosine_similarities

from .helpers.senteval import WordVectors, mean_pooled


def random_pairs(rng, n):
    """Pairs of which the second sentence repeats some words of the first, but never all: no ties."""
    words = [f"word{i}" for i in range(1000)]
    for _ in range(n):
        first = rng.choice(words, 4)
        kept = int(rng.integers(0, 4))
        second = [*first[:kept], *rng.choice(words, 4 - kept)]
        yield " ".join(first), " ".join(second), kept + float(rng.random())


@pytest.fixture
def sts13(tmp_path):
    """STS13 with subsets of different sizes; returns the folder and the pairs of each subset."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "STS/STS13-en-test"
    folder.mkdir(parents=True)
    pairs = {name: list(random_pairs(rng, n)) for name, n in (("FNWN", 10), ("headlines", 40), ("OnWN", 25))}
    for name, rows in pairs.items():
        (folder / f"STS.input.{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in rows))
        (folder / f"STS.gs.{name}.txt").write_text("".join(f"{score}\n" for *_, score in rows))
    return tmp_path, pairs


def cosine(u, v):
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


def test_all_mean_and_weighted_mean(sts13):
    folder, pairs = sts13
    model = WordVectors()
    result = evaluate_sts(model, folder, ["STS13"])["STS13"]
    predicted = {n: [cosine(model.vector(a), model.vector(b)) for a, b, _ in rows] for n, rows in pairs.items()}
    gold = {name: [score for *_, score in rows] for name, rows in pairs.items()}
    for kind, correlate in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        each = {name: 100 * correlate(predicted[name], gold[name])[0] for name in pairs}
        assert result.details[kind] == {
            name: pytest.approx(expected, abs=1e-3)
            for name, expected in {
                "all": 100 * correlate(np.concatenate([*predicted.values()]), np.concatenate([*gold.values()]))[0],
                "mean": sum(each.values()) / 3,
                "weighted_mean": (10 * each["FNWN"] + 40 * each["headlines"] + 25 * each["OnWN"]) / 75,
            }.items()
        }
        subsets = result.details["subsets"].items()
        assert {name: subset[kind] for name, subset in subsets} == pytest.approx(each, abs=1e-3)
    assert {name: subset["n"] for name, subset in subsets} == {name: len(rows) for name, rows in pairs.items()}
    assert (result.task, result.score, result.details["n"]) == ("STS13", result.details["spearman"]["all"], 75)


def test_similarities_of_16_bit_embeddings_do_not_overflow_and_those_to_zero_are_zero():
    u = np.full((3, 4096), 200, dtype=np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf((u * u).sum(axis=1)).all()
    v = u.copy()
    v[1, ::2] *= -1
    v[2] = 0
    similarities = cosine_similarities(u, v)
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, [1, 0, 0], atol=1e-6)


def test_each_distinct_sentence_is_encoded_once_across_tasks(sts13):
    folder, pairs = sts13
    rows = [*pairs["headlines"][:30], ("only", "here too", 1.5)]
    (folder / "STS/STSBenchmark").mkdir()
    text = "".join(f"g\tf\ty\t{i}\t{score}\t{a}\t{b}\n" for i, (a, b, score) in enumerate(rows))
    (folder / "STS/STSBenchmark/sts-dev.csv").write_text(text)
    model = WordVectors()
    results = evaluate_sts(EmbeddingCache(model), folder, ["STS13", "STSBenchmark-dev"])
    assert list(results) == ["STS13", "STSBenchmark-dev"]
    assert len(model.calls) == 2
    assert sorted(model.calls[0]) == sorted({s for part in pairs.values() for a, b, _ in part for s in (a, b)})
    assert model.calls[1] == ["only", "here too"]
    assert evaluate_sts(WordVectors(), folder, ["STSBenchmark-dev"])["STSBenchmark-dev"] == results["STSBenchmark-dev"]


def test_embeddings_are_handed_out_in_float32():
    model = WordVectors(dim=4, dtype=np.float16)
    (first,) = EmbeddingCache(model).encode([["a", "b", "a"]])
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, np.stack([model.vector(w) for w in "aba"]).astype(np.float16))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sentence_without_a_finite_embedding_is_named(sts13, bad):
    folder, pairs = sts13
    broken = pairs["OnWN"][3][1]

    class Broken(WordVectors):
        def vector(self, sentence):
            return np.full(self.dim, bad) if sentence == broken else super().vector(sentence)

    with pytest.raises(ValueError, match=rf"sentence \d+ of \d+ \('{broken[:70]}"):
        evaluate_sts(Broken(), folder, ["STS13"])


def test_equal_similarities_are_refused(sts13):
    class Constant(WordVectors):
        def vector(self, sentence):
            return np.ones(self.dim)

    with pytest.raises(ValueError, match="STS13 FNWN: the 10 cosine similarities are all equal"):
        evaluate_sts(Constant(), sts13[0], ["STS13"])


def test_unknown_tasks_and_missing_files_stop_before_the_first_encode(sts13):
    model = WordVectors()
    with pytest.raises(ValueError, match=r"Unknown task 'MR': choose from STS12, STS13, .*, STSBenchmark-dev"):
        evaluate_sts(model, sts13[0], ["STS13", "MR"])
    with pytest.raises(ValueError, match="Unknown task 'STS12': choose from MR, CR, SUBJ, MPQA, SST2, TREC, MRPC"):
        evaluate_transfer(model, "nowhere", ["STS12"])
    with pytest.raises(FileNotFoundError, match=r"STS.input.MSRpar.txt is missing, which the task STS12 reads"):
        evaluate_sts(model, sts13[0], ["STS13", "STS12"])
    assert model.calls == []


def every(step: int, source: Path, folder: Path) -> Path:
    """A folder of the STS tasks with every `step`-th line of their files."""
    for path in {path for task in STS_TASKS for path in task_files(source, task)}:
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[::step]), encoding="utf-8")
    return folder


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.long)])
def test_stories260k_on_the_real_tasks(stories, shared, tmp_path, step):
    """The oracle reads the files itself and asks scipy; mean pooling of the bare sentences."""
    folder = every(step, shared / "senteval", tmp_path)
    cache = EmbeddingCache(mean_pooled(stories))
    results = evaluate_sts(cache, folder, batch_size=128)
    assert list(results) == list(STS_TASKS)
    for task, result in results.items():
        if task == "STSBenchmark":
            rows = [line.split("\t") for line in lines_of(folder / "STS/STSBenchmark/sts-test.csv")]
            pairs = [(row[5], row[6], row[4]) for row in rows]
        elif task == "SICKRelatedness":
            rows = [line.split("\t") for line in lines_of(folder / "SICK/SICK_test_annotated.txt")[1:]]
            pairs = [(row[1], row[2], row[3]) for row in rows]
        else:
            pairs = []
            for path in sorted((folder / f"STS/{task}-en-test").glob("STS.input.*")):
                gold = lines_of(path.with_name(path.name.replace("input", "gs")))
                lines = zip(lines_of(path), gold, strict=True)
                pairs += [(*line.split("\t"), score) for line, score in lines if score]
        a, b = cache.encode([[" ".join(pair[i].split()) for pair in pairs] for i in (0, 1)])
        predicted = [cosine(u.astype(float), v.astype(float)) for u, v in zip(a, b, strict=True)]
        gold = [float(pair[2]) for pair in pairs]
        assert result.score == pytest.approx(100 * stats.spearmanr(predicted, gold)[0], abs=0.01), task
        pearson = 100 * stats.pearsonr(predicted, gold)[0]
        assert result.details["pearson"]["all"] == pytest.approx(pearson, abs=0.01), task
        assert result.details["n"] == len(pairs)
    if step == 1:
        assert results["STS13"].details["n"] == 1500  # without SMT
        scores = [40.63, 43.83, 37.25, 49.54, 44.10, 41.09, 49.26]
        assert [result.score for result in results.values()] == pytest.approx(scores, abs=0.02)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]
