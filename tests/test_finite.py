"""An embedding that is not finite is an error with the number of the sentence, wherever embeddings come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from st_prompteol import PromptEOL
from st_prompteol.cli import app
from st_prompteol.corpus import encode_corpus, encode_file
from st_prompteol.llm.finite import NotFiniteError, check_finite

from .helpers.models import build_causal_lm

ODD = "x" * 3 + " §"  # the only sentence with this character
TEXTS = ["A jockey riding a horse.", "It rains.", "It rains.", ODD, "a man", ODD + " again"]
SECOND = (
    r"The embedding of sentence 4 of 6 \('xxx §'\) holds NaN or infinity, and 1 more do\. Open the model in float32"
)


def break_word(model: PromptEOL, value: float) -> PromptEOL:
    """Makes the embedding of the token of one character NaN or infinite, past everything that PyTorch counts."""
    ids = model.tokenizer.tokenize_plainly("§")
    model[0].model.embed_tokens.weight.data[ids[-1]] = value
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_causal_lm(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def broken(base: str) -> PromptEOL:
    return break_word(PromptEOL(base), float("nan"))


WAYS: dict[str, Callable[[PromptEOL], Any]] = {
    "array": lambda model: model.encode(TEXTS),
    "small batches": lambda model: model.encode(TEXTS, batch_size=1),
    "numpy": lambda model: model.encode(np.array(TEXTS)),
    "tensor": lambda model: model.encode(TEXTS, convert_to_tensor=True),
    "list": lambda model: model.encode(TEXTS, convert_to_numpy=False),
    "int8": lambda model: model.encode(TEXTS, precision="int8"),
    "binary": lambda model: model.encode(TEXTS, precision="ubinary"),
    "normalized": lambda model: model.encode(TEXTS, normalize_embeddings=True),
    "truncated": lambda model: model.encode(TEXTS, truncate_dim=4),
    "tokens": lambda model: model.encode(TEXTS, output_value="token_embeddings"),
    "everything": lambda model: model.encode(TEXTS, output_value=None),
    "query": lambda model: model.encode_query(TEXTS),
    "progress bar": lambda model: model.encode(TEXTS, show_progress_bar=True),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_encode_names_the_sentence(broken: PromptEOL, way: str) -> None:
    for broken.fast in (True, False):
        with pytest.raises(ValueError, match=SECOND):
            WAYS[way](broken)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_is_no_embedding_either(base: str, value: float) -> None:
    model = break_word(PromptEOL(base), value)
    with pytest.raises(ValueError, match="sentence 1 of 1"):
        model.encode(ODD)
    assert np.isfinite(model.encode(TEXTS[:3])).all()


def test_one_sentence_and_none(broken: PromptEOL) -> None:
    assert broken.encode([]).shape == (0,)
    assert broken.encode("It rains.").shape == (32,)
    assert broken.encode("It rains.", precision="ubinary").shape == (4,)
    with pytest.raises(ValueError, match=r"sentence 1 of 1 \('xxx §'\)"):
        broken.encode(ODD, precision="binary")


@pytest.mark.slow
def test_a_pool_of_processes(broken: PromptEOL) -> None:
    pool = broken.start_multi_process_pool(["cpu"])
    try:
        with pytest.raises(ValueError, match=SECOND):
            broken.encode(TEXTS, pool=pool)
    finally:
        broken.stop_multi_process_pool(pool)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_integers_are_those_of_upstream(base: str, precision: Any) -> None:
    model = PromptEOL(base)
    for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}):
        ours = model.encode(TEXTS, precision=precision, **options)
        theirs = SentenceTransformer.encode(model, TEXTS, precision=precision, **options)
        assert type(ours) is type(theirs)
        assert type(ours[0]) is type(theirs[0])
        np.testing.assert_allclose(np.stack([*ours]).astype(int), np.stack([*theirs]).astype(int), atol=1)
    with pytest.raises(ValueError, match="Precision 'int4' is not supported"):
        model.encode(TEXTS, precision="int4")


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    check_finite(np.full((2, 4), 3e38, dtype=np.float32), ["a", "b"])
    check_finite(np.full((2, 4), 6e4, dtype=np.float16), ["a", "b"])
    with pytest.raises(NotFiniteError, match="sentence 2 of 2"):
        check_finite(torch.tensor([[3e38, 3e38], [3e38, float("inf")]]), ["a", "b"])


def test_nothing_broken_is_saved(broken: PromptEOL, base: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The weights '0\.model\.embed_tokens\.weight' hold NaN or infinity"):
        broken.save_pretrained(str(tmp_path / "out"))
    model = PromptEOL(base)
    model.standardize(TEXTS)
    model[2].linear.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        model.save_pretrained(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_and_corpora_name_the_row(broken: PromptEOL, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    with pytest.raises(ValueError, match=r"The embedding of row 4 of '.*in\.txt'"):
        encode_file(broken, tmp_path / "in.txt", tmp_path / "out.npy", batch_size=1)
    assert not (tmp_path / "out.npy").exists()
    rows = [{"text": text} for text in (None, *TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"The embedding of row 5 of '.*in\.jsonl'"):
        encode_corpus(broken, tmp_path / "in.jsonl", tmp_path / "out", column="text")
    plain = SentenceTransformer(modules=list(broken), device="cpu")
    with pytest.raises(ValueError, match=r"The embedding of row 5 of '.*in\.jsonl'"):
        encode_corpus(plain, tmp_path / "in.jsonl", tmp_path / "plain", column="text", precision="binary")


def test_commands_say_it_in_one_sentence(base: str, broken: PromptEOL, tmp_path: Path) -> None:
    published = AutoModelForCausalLM.from_pretrained(base)
    published.model.load_state_dict(broken[0].model.state_dict())
    published.save_pretrained(tmp_path / "broken")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken" / name).write_bytes((Path(base) / name).read_bytes())
    for arguments in (["similarity", "It rains.", ODD], ["export", str(tmp_path / "out")]):
        command, *others = arguments
        result = CliRunner().invoke(app, [command, str(tmp_path / "broken"), *others])
        assert result.exit_code != 0
        assert "NaN or infinity" in f"{result.exception} {result.output}"
    assert not (tmp_path / "out").exists()
