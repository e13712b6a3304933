"""Words that were added to a vocabulary, in a template and in an adapter, against the base's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from st_prompteol import TEMPLATES, PromptEOL, PromptTemplate
from st_prompteol.prompt.tokenizer import TemplateTokenizer

from .helpers.models import build_causal_lm
from .helpers.oracles import assert_alike
from .helpers.sentences import JOCKEY
from .helpers.tokenizers import build_tokenizer

TEXTS = ["a <ent> b", "<ent>", "x<ent>y.", "<ent><ent>'s", "größe_x", "say WORD now?", "  <ent> ", "a  <ent>\n", "no"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal LM whose vocabulary was made larger by three words and a special token."""
    folder = build_causal_lm(tmp_path_factory.mktemp("grown"), "llama")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(["<ent>", "größe_x", "WORD"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sp>"]})
    model.resize_token_embeddings(len(tokenizer) + 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", ["prompteol", "none"])
def test_added_words_are_words_and_special_tokens_are_text(grown: str, tmp_path: Path, template: str) -> None:
    base = AutoTokenizer.from_pretrained(grown)
    model = PromptEOL(grown, template=template)
    model.save_pretrained(str(tmp_path))
    again, theirs = PromptEOL(str(tmp_path)), SentenceTransformer(str(tmp_path), device="cpu")
    for text in TEXTS:
        expected = base(model.template.render(text))["input_ids"]
        for opened in (model, again, theirs):
            assert opened.tokenizer(text)["input_ids"] == expected, text
    special = set(base.convert_tokens_to_ids(["<sp>", "</s>"]))
    assert not special & set(theirs.tokenizer("a <sp> b </s>")["input_ids"])
    again.template = "prompt"
    assert again.tokenizer("a <ent> b")["input_ids"] == base(again.template.render("a <ent> b"))["input_ids"]


@pytest.mark.parametrize("normalizer", [None, normalizers.Replace(" ", "▁")])
def test_added_words_inside_the_model_s_own_vocabulary(tmp_path: Path, normalizer: Any) -> None:
    """As Gemma's `<unused0>`; also a word that merges would make, and one that stands in the template."""
    base = build_tokenizer(tmp_path / "plain")
    backend = base.backend_tokenizer
    content = json.loads(backend.to_str())
    content["model"]["vocab"] |= {f"<unused{number}>": 400 + number for number in range(3)}
    backend = Tokenizer.from_str(json.dumps(content))
    if normalizer is not None:
        backend.normalizer = normalizer
    assert "se" in content["model"]["vocab"]  # a piece, which merges make
    words = ("<unused0>", "<unused1>", "<unused2>", "se")
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    base = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer = TemplateTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=backend, **names))
    template = PromptTemplate(demonstrations=(JOCKEY,))
    tokenizer.template = template
    tokenizer.save_pretrained(tmp_path / "saved")
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    again = TemplateTokenizer.of(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    for text in ("a <unused0> horse", "<unused2>", "x<unused1>y.", "<unused0><unused1>'s", "a  horse horse", "no"):
        expected = base(template.render(text))["input_ids"]
        for opened in (tokenizer, stock, again):
            assert opened(text)["input_ids"] == expected, text
        for opened in (tokenizer, again):  # on its way with demonstrations, too
            (ids,) = opened([text], padding=True, truncation="longest_first", return_tensors="pt")["input_ids"]
            assert ids.tolist() == expected, text


def test_a_copy_of_the_tokenizer_is_the_same_and_changes_alone(grown: str) -> None:
    tokenizer = PromptEOL(grown, demonstrations=[JOCKEY]).tokenizer
    twin = tokenizer.copy()
    pairs = [(tokenizer.backend_tokenizer, twin.backend_tokenizer), (tokenizer._behind[1], twin._behind[1])]
    for one, other in pairs:
        assert one is not other
        assert one.to_str() == other.to_str()
    ids = tokenizer(TEXTS)["input_ids"]
    assert twin(TEXTS)["input_ids"] == ids
    twin.template, twin.pad_token = TEMPLATES["prompt"], "WORD"
    assert (tokenizer(TEXTS)["input_ids"], tokenizer.pad_token) == (ids, "</s>")


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*")
def test_an_adapter_with_a_larger_vocabulary_opens_and_is_saved_merged(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    base = causal_lms["llama"]
    tokenizer, causal_lm = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_tokens(["<ent>", *(f"w{number}_" for number in range(12))])
    torch.manual_seed(0)
    causal_lm.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    own = get_peft_model(causal_lm, config).eval()
    own.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = PromptEOL(str(tmp_path / "adapter"))
    with torch.no_grad():
        rows = [own(**tokenizer(model.template.render(text), return_tensors="pt"), output_hidden_states=True)
                for text in TEXTS]  # fmt: skip
    expected = torch.stack([row.hidden_states[-1][0, -1] for row in rows]).numpy()
    assert_alike(model.encode(TEXTS), expected)
    with pytest.raises(ValueError, match=r"the vocabulary has \d+ rows there and \d+ here: call merge_adapter\(\)"):
        model.save_pretrained(str(tmp_path / "saved"))
    model.merge_adapter()
    model.save_pretrained(str(tmp_path / "saved"))
    assert_alike(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), expected)
