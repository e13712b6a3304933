"""A clean process without this package, to check that plain sentence-transformers computes the same embeddings."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from st_prompteol.llm.loaded import came_quantized, is_quantized
from st_prompteol.model import PromptEOL

# Preprocessing, quotes, truncation and special characters must have the same effect in both processes
SENTENCES = [
    "A jockey riding a horse.",
    "What is this",
    "Is it raining?",
    'He said "no" twice',
    "une phrase en français, et une autre",
    "😀 emoji! ",
    "A long sentence goes on and on. " * 40,
    "",
]
_SCRIPT = """
import json, sys
sys.modules["st_prompteol"] = None
import torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    request = json.loads(line)
    sentences, model_kwargs = request.pop("sentences"), request.pop("model_kwargs")
    quantization = model_kwargs.pop("quantization_config", None)
    try:
        if quantization:
            from transformers import BitsAndBytesConfig
            model_kwargs["quantization_config"] = BitsAndBytesConfig(**quantization)
        model = SentenceTransformer(**request, model_kwargs=model_kwargs)
        answer = {"embeddings": model.encode(sentences, convert_to_tensor=True).float().tolist()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("ANSWER" + json.dumps(answer), flush=True)
"""


class CleanProcess:
    """A process that loads models with plain `SentenceTransformer`; a context manager that ends it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="st_prompteol-")
        # In an empty folder, no folder can be mistaken for a repository of the same name.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._folder.name,
        )

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def compare(
        self,
        model: PromptEOL,
        expected: npt.NDArray[np.float32],
        name: str,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str | None:
        """Compares a folder or repository with the model in memory; returns the problem, None if embeddings are equal.

        Args:
            model: The model in memory.
            expected: The result of `embed` for the model, `(len(SENTENCES), embedding_dimension)`.
            name: The folder or repository.
            revision: The commit of the repository. Defaults to None.
            token: The access token of the Hub, as in `huggingface_hub`. Defaults to None.
        """
        body, quantized = model.body, is_quantized(model.body)
        model_kwargs: dict[str, Any] = {}  # no dtype, as in a plain `SentenceTransformer(name)`
        options = {"model_name_or_path": name, "device": str(model.device), "token": token, "revision": revision}
        if model.adapters:
            if quantized and not came_quantized(body):
                model_kwargs["quantization_config"] = _plain(body.config.quantization_config)
            if revision is not None:  # sentence-transformers does not pass `revision` to the adapter's weights
                model_kwargs["adapter_kwargs"] = {"revision": revision}
        elif revision is not None:
            # A temporary cache for a full model; with an adapter, the base LLM would be downloaded again.
            options["cache_folder"] = self._folder.name
        answer = self._ask({**options, "model_kwargs": model_kwargs, "sentences": SENTENCES})
        if "error" in answer:
            remedy = ""
            if model.adapters and not quantized and model[0].quantization:
                remedy = f"; its base is quantized ({model[0].quantization}): call merge_adapter() and push the whole"
            return f"it does not open: {answer['error'].splitlines()[0]}{remedy}"
        embeddings = np.array(answer["embeddings"], dtype=np.float32)
        if embeddings.shape != expected.shape:
            return f"its embeddings have the shape {embeddings.shape}, not {expected.shape}"
        tolerance = 1e-5 if model.dtype == torch.float32 and not quantized else 2e-2
        difference = float(np.abs(embeddings - expected).max() / np.abs(expected).max())
        if not difference <= tolerance:
            return f"its embeddings differ by {difference:.1e} of the largest number, where {tolerance:.0e} is allowed"
        return None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        for line in stdout:
            if line.startswith("ANSWER"):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER"))
                return answer
        return {"error": "RuntimeError: the process that opens it ended"}


def embed(model: PromptEOL) -> npt.NDArray[np.float32]:
    """Returns the embeddings of the fixed sentences, in float32."""
    embeddings: npt.NDArray[np.float32] = model.encode(SENTENCES, convert_to_tensor=True).float().cpu().numpy()
    return embeddings


def _plain(quantization: Any) -> dict[str, Any]:
    config = quantization.to_dict()
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "quant_method"}
