"""The main job on real sentences: a decoder LLM becomes a SentenceTransformer that opens without this package.

`make demo` builds a tiny random decoder on the spot, which shows the mechanics; `make demo MODEL=facebook/opt-125m`
uses a real one, from the Hub or a folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

from st_prompteol import PromptEOL

SENTENCES = [
    "A jockey is riding a brown horse along the beach.",
    "Someone rides a horse by the sea.",
    "The central bank raised its interest rate by half a point.",
    "Interest rates go up again, the bank announced.",
    "How do I reset the password of my account?",
    "I forgot my password, what can I do?",
]

# What anyone runs: sentence-transformers alone, in a process where this package cannot be imported.
PLAIN = """
import sys
sys.modules["st_prompteol"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
np.save(sys.argv[2], SentenceTransformer(sys.argv[1]).encode(sys.argv[3:]))
"""


def build_tiny_decoder(folder: Path) -> str:
    """Saves a random OPT of 0.2 million parameters with a tokenizer learned from the demo's own sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=["<pad>", "<s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    set_seed(0)
    config = OPTConfig(
        vocab_size=len(fast),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        init_std=0.2,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Encodes, saves, opens elsewhere, compares."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = os.environ.get("MODEL")
    with tempfile.TemporaryDirectory() as scratch:
        if not name:
            print("No MODEL given: building a tiny RANDOM decoder. Its similarities mean nothing; the mechanics do.\n")
            name = build_tiny_decoder(Path(scratch, "decoder"))
        model = PromptEOL(name)
        print(f"prompt      {model.template.render(SENTENCES[0])}")
        embeddings = model.encode(SENTENCES)
        print(f"embeddings  {embeddings.shape}, layer {model.layer}, {model.dtype} on {model.device}\n")

        print("similarities")
        for sentence, row in zip(SENTENCES, model.similarity(embeddings, embeddings).tolist(), strict=True):
            print("  " + "  ".join(f"{value:5.2f}" for value in row) + f"   {sentence}")

        folder, out = "demo-model", Path(scratch, "plain.npy")
        model.save_pretrained(folder)
        print(f"\nsaved       {Path(folder).resolve()}")
        subprocess.run([sys.executable, "-c", PLAIN, folder, str(out), *SENTENCES], check=True, capture_output=True)
        difference = np.abs(np.load(out) - embeddings).max() / np.abs(embeddings).max()
        print(f'opened      SentenceTransformer("{folder}") in another process, without st_prompteol')
        print(f"agreement   largest relative difference {difference:.1e}")
        if difference > 1e-5:
            sys.exit("The saved model embeds differently: this is a bug.")


if __name__ == "__main__":
    main()
