"""STS scores against scipy on the same embeddings, the cache between tasks and model, and the errors on the way."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_prompteol.evaluation import STS_TASKS, EmbeddingCache, evaluate_sts, evaluate_sts_task
from st_prompteol.evaluation.sts import cosine_similarities


class WordVectors:
    """A model whose embedding is the sum of one fixed random vector per word."""

    def __init__(self, dim=16, dtype=np.float32):
        self.dim, self.dtype, self.calls = dim, dtype, []

    def encode(self, sentences, *, batch_size, show_progress_bar):
        self.calls.append(list(sentences))
        return np.stack([self.vector(sentence) for sentence in sentences]).astype(self.dtype)

    def vector(self, sentence):
        words = [np.random.default_rng(zlib.crc32(w.encode())).standard_normal(self.dim) for w in sentence.split()]
        return np.sum(words, axis=0) if words else np.zeros(self.dim)


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
    result = evaluate_sts_task(model, folder, "STS13")
    predicted = {n: [cosine(model.vector(a), model.vector(b)) for a, b, _ in rows] for n, rows in pairs.items()}
    gold = {name: [score for *_, score in rows] for name, rows in pairs.items()}
    for kind, correlate in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        each = {name: 100 * correlate(predicted[name], gold[name])[0] for name in pairs}
        assert result.details[kind] == {
            "all": pytest.approx(
                100 * correlate(np.concatenate([*predicted.values()]), np.concatenate([*gold.values()]))[0], abs=1e-3
            ),
            "mean": pytest.approx(sum(each.values()) / 3, abs=1e-3),
            "weighted_mean": pytest.approx(
                (10 * each["FNWN"] + 40 * each["headlines"] + 25 * each["OnWN"]) / 75, abs=1e-3
            ),
        }
        assert {name: subset[kind] for name, subset in result.details["subsets"].items()} == pytest.approx(
            each, abs=1e-3
        )
    assert {name: subset["n"] for name, subset in result.details["subsets"].items()} == {
        n: len(pairs[n]) for n in pairs
    }
    assert (result.task, result.score, result.details["n"]) == ("STS13", result.details["spearman"]["all"], 75)


def test_similarities_of_16_bit_embeddings_do_not_overflow():
    u = np.full((2, 4096), 200, dtype=np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf((u * u).sum(axis=1)).all()
    v = u.copy()
    v[1, ::2] *= -1
    similarities = cosine_similarities(u, v)
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, [1, 0], atol=1e-6)


def test_the_similarity_to_a_zero_embedding_is_zero():
    np.testing.assert_array_equal(cosine_similarities(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)), [0])


def test_each_distinct_sentence_is_encoded_once_across_tasks(sts13):
    folder, pairs = sts13
    rows = [*pairs["headlines"][:30], ("only", "here too", 1.5)]
    (folder / "STS/STSBenchmark").mkdir()
    text = "".join(f"g\tf\ty\t{i}\t{score}\t{a}\t{b}\n" for i, (a, b, score) in enumerate(rows))
    (folder / "STS/STSBenchmark/sts-dev.csv").write_text(text)
    model = WordVectors()
    seen = []
    results = evaluate_sts(EmbeddingCache(model), folder, ["STS13", "STSBenchmark-dev"], callback=seen.append)
    assert [result.task for result in seen] == list(results) == ["STS13", "STSBenchmark-dev"]
    assert len(model.calls) == 2
    assert sorted(model.calls[0]) == sorted({s for part in pairs.values() for a, b, _ in part for s in (a, b)})
    assert model.calls[1] == ["only", "here too"]
    assert evaluate_sts(WordVectors(), folder, ["STSBenchmark-dev"])["STSBenchmark-dev"] == results["STSBenchmark-dev"]


def test_the_cache_forgets_the_oldest_sentences_beyond_its_limit():
    model = WordVectors(dim=4, dtype=np.float16)
    cache = EmbeddingCache(model, max_bytes=3 * 4 * 4)
    (first,) = cache.encode([["a", "b", "a"]])
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, np.stack([model.vector(w) for w in "aba"]).astype(np.float16))
    cache.encode([["c"], ["b"]])
    cache.encode([["b", "c", "d"]])  # 4 rows: the call that brought a and b goes
    cache.encode([["c", "d"]])
    cache.encode([["a"]])
    assert model.calls == [["a", "b"], ["c"], ["d"], ["a"]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sentence_without_a_finite_embedding_is_named(sts13, bad):
    folder, pairs = sts13
    broken = pairs["OnWN"][3][1]

    class Broken(WordVectors):
        def vector(self, sentence):
            return np.full(self.dim, bad) if sentence == broken else super().vector(sentence)

    with pytest.raises(ValueError, match=rf"NaN or infinity for the sentence '{broken}' \(1 of \d+ sentences\)"):
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
    with pytest.raises(FileNotFoundError, match=r"STS.input.MSRpar.txt is missing, which the task STS12 reads"):
        evaluate_sts(model, sts13[0], ["STS13", "STS12"])
    assert model.calls == []


@pytest.fixture(scope="module")
def mean_pooled(stories):
    transformer = Transformer(stories)
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    return SentenceTransformer(modules=[transformer, Pooling(64, pooling_mode="mean")], device="cpu")


@pytest.mark.shared
def test_stories260k_on_the_real_tasks(mean_pooled, shared):
    """The oracle reads the files itself and asks scipy; mean pooling of the bare sentences."""
    folder = shared / "senteval"
    cache = EmbeddingCache(mean_pooled)
    results = evaluate_sts(cache, folder, batch_size=128)
    assert list(results) == list(STS_TASKS)
    for task, result in results.items():
        if task == "STSBenchmark":
            lines = (folder / "STS/STSBenchmark/sts-test.csv").read_text(encoding="utf-8").splitlines()
            rows = [line.split("\t") for line in lines]
            pairs = [(row[5], row[6], row[4]) for row in rows]
        elif task == "SICKRelatedness":
            lines = (folder / "SICK/SICK_test_annotated.txt").read_text(encoding="utf-8").splitlines()
            rows = [line.split("\t") for line in lines[1:]]
            pairs = [(row[1], row[2], row[3]) for row in rows]
        else:
            pairs = []
            for path in sorted((folder / f"STS/{task}-en-test").glob("STS.input.*")):
                gold = path.with_name(path.name.replace("input", "gs")).read_text(encoding="utf-8").split("\n")
                for line, score in zip(path.read_text(encoding="utf-8").split("\n"), gold, strict=True):
                    pairs += [(*line.split("\t"), score)] if score else []
        a, b = cache.encode([[" ".join(pair[i].split()) for pair in pairs] for i in (0, 1)])
        predicted = [cosine(u.astype(float), v.astype(float)) for u, v in zip(a, b, strict=True)]
        gold = [float(pair[2]) for pair in pairs]
        assert result.score == pytest.approx(100 * stats.spearmanr(predicted, gold)[0], abs=0.01), task
        pearson = 100 * stats.pearsonr(predicted, gold)[0]
        assert result.details["pearson"]["all"] == pytest.approx(pearson, abs=0.01), task
        assert result.details["n"] == len(pairs)
    assert results["STS13"].details["n"] == 1500  # without SMT


@pytest.mark.shared
def test_stories260k_reproduces_the_score_measured_by_the_reference(mean_pooled, shared):
    """50.56 with the reference's preprocessing of each sentence.

    It was measured on the lines as they are; SentEval joins the tokens of a line by single spaces, which gives 50.57.
    """

    class Preprocessed(EmbeddingCache):
        def encode(self, columns, **settings):
            return super().encode(
                [[self.preprocess(sentence) for sentence in column] for column in columns], **settings
            )

        @staticmethod
        def preprocess(sentence):
            if sentence and sentence[-1] not in ".?\"'":
                sentence += "."
            sentence = sentence.replace('"', "'")
            return sentence[:-1] + "." if sentence.endswith("?") else sentence

    result = evaluate_sts_task(Preprocessed(mean_pooled), shared / "senteval", "STSBenchmark-dev", batch_size=128)
    assert result.score == pytest.approx(50.56, abs=0.02)
    assert result.details["n"] == 1500
