"""Shared by the sections of `gpu.py`: random models on a device, timing, memory, and facts about the machine."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from reference import JOCKEY, Reference, machine, random_lm, save_random_model
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from st_prompteol import PromptEOL, PromptTemplate

PACKAGES = ("sentence-transformers", "peft", "bitsandbytes", "accelerate", "ray")
LONGEST = 2048  # maximum tokens of a sentence in its template
REFERENCE_BATCH_SIZE = 16
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Options:
    """The options of every section.

    Args:
        kit: The folder with `tokenizers/` and `sentences.txt`.
        device: The device for all computations.
        trial: Whether to use tiny shapes and few sentences.
    """

    kit: str
    device: str
    trial: bool

    def tokenizer(self, shape: str) -> str:
        """Returns the folder of the tokenizer for a shape."""
        return str(Path(self.kit) / "tokenizers" / ("opt" if shape.startswith(("opt", "tiny")) else "llama2"))

    def sentences(self, count: int) -> list[str]:
        """Returns the first distinct sentences of the STS tasks."""
        lines = (Path(self.kit) / "sentences.txt").read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(lines))[: 48 if self.trial else count]


def facts() -> dict[str, Any]:
    """Returns the date, the device and the versions for the page."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**machine(), "gpu": gpu, "cuda": torch.version.cuda, **versions}


def peak_of(function: Callable[[], Any]) -> float:
    """Calls a function and returns the peak device memory of tensors, in bytes.

    On a CPU it returns the peak memory of the process.
    """
    if not torch.cuda.is_available():
        function()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gc.collect()  # keeps the allocator's cache, because allocating again takes time
    torch.cuda.reset_peak_memory_stats()
    function()
    return float(torch.cuda.max_memory_allocated())


def free_memory() -> None:
    """Releases unused memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def with_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Copies a model without copying its weights."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@dataclass
class Ways:
    """One random model of a shape on the device, and all methods to encode with it, which share its weights.

    Args:
        options: The options, for device and tokenizers.
        shape: The name of the shape.
        dtype: The dtype of the weights.
    """

    options: Options
    shape: str
    dtype: torch.dtype

    def __post_init__(self) -> None:
        folder = self.options.tokenizer(self.shape)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vocabulary = -(-len(tokenizer) // 8) * 8  # kernels are slow for sizes that are not multiples of 8
        self.lm = random_lm(self.shape, vocabulary, self.options.device, self.dtype)
        self.reference = Reference(self.lm, tokenizer, REFERENCE_BATCH_SIZE)
        self._small = TemporaryDirectory()  # a small model, from which tokenizer and modules are loaded
        save_random_model("tiny" if self.lm.config.model_type == "opt" else "stories260k", folder, self._small.name)
        self._plain: dict[tuple[str, PromptTemplate], Any] = {}
        self.ours = self.put(PromptEOL(self._small.name, device=self.options.device))

    def put(self, model: SentenceTransformer) -> Any:
        """Sets the body of a model, with its own attention implementation."""
        body = with_same_weights(self.lm.base_model)
        body.config.use_cache = False  # as sentence-transformers does on loading
        attention = model[0].model.config._attn_implementation
        if isinstance(model, PromptEOL):
            model[0].put_body(body, True)
        else:
            body.set_attn_implementation(attention)
            model[0].model = body
        model.max_seq_length = min(LONGEST, body.config.max_position_embeddings)
        return model

    def set_demonstrations(self, count: int) -> None:
        """Sets the number of demonstrations of our model."""
        self.ours.template = replace(self.ours.template, demonstrations=(JOCKEY,) * count)

    def plain(self, attention: str) -> Any:
        """Returns plain sentence-transformers with the same template, weights and precision.

        Raises:
            ImportError: If the attention's package is missing.
        """
        if attention == "flash_attention_2" and not is_flash_attn_2_available():
            raise ImportError("flash-attn is not installed")
        key = attention, self.ours.template
        if key not in self._plain:
            self._plain = {known: model for known, model in self._plain.items() if known[1] == key[1]}
            with TemporaryDirectory() as folder:
                small = PromptEOL(self._small.name, template=self.ours.template, device="cpu")
                small.save_pretrained(folder, create_model_card=False)
                kwargs = {"attn_implementation": attention, "dtype": self.dtype}
                self._plain[key] = self.put(
                    SentenceTransformer(folder, device=self.options.device, model_kwargs=kwargs)
                )
        return self._plain[key]

    def by_reference(self, sentences: list[str]) -> torch.Tensor:
        """Encodes with the reference implementation."""
        return self.reference.encode([self.ours.template.render(sentence) for sentence in sentences])


@lru_cache(maxsize=1)
def open_ways(options: Options, shape: str, dtype: torch.dtype = torch.bfloat16) -> Ways:
    """Returns the methods for a shape, and releases those of earlier calls."""
    return Ways(options, shape, dtype)


gc.collect()
gc.freeze()  # excludes imported objects from later collections, which saves half a second each
