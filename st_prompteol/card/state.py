"""Whether a model still is the one that was measured: similarities of three sentences, and its state in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import EvalResult

from st_prompteol.card.earlier import Cosines, Part
from st_prompteol.llm.fingerprint import Fingerprint

# The last one has no period, so that preprocessing changes its embedding
SENTENCES = ["A jockey is riding a horse.", "Someone rides a horse.", "Interest rates go up again"]
_SAME = 0.01  # maximum difference of cosine similarities of one model in another dtype or with a merged adapter


@dataclass(frozen=True)
class Embedded:
    """The embeddings of the card's sentences; without fields if they were not computed."""

    shape: str | None = None
    similarities: tuple[str, ...] = ()
    cosines: Cosines = ()

    @classmethod
    def of(cls, model: Any) -> Embedded:
        """Embeds the sentences."""
        embeddings = model.encode(SENTENCES, convert_to_tensor=True, show_progress_bar=False).float().cpu()
        cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
        similarities = tuple(str(model.similarity(embeddings, embeddings).float().cpu()).splitlines())
        pairs = torch.triu_indices(len(SENTENCES), len(SENTENCES), offset=1)
        return cls(str(tuple(embeddings.shape)), similarities, tuple(round(float(one), 4) for one in cosines[*pairs]))

    def has(self, cosines: Cosines) -> bool:
        """Whether these cosine similarities are of the same model, as far as known."""
        return len(self.cosines) == len(cosines) > 0 and all(
            abs(one - other) <= _SAME for one, other in zip(self.cosines, cosines, strict=True)
        )


@dataclass(frozen=True)
class Measured:
    """A measurement for a card.

    Args:
        part: Its section of the card.
        results: Its entries of the `model-index`.
        state: The state of the model when it was measured; None once the part has its cosine similarities.
    """

    part: Part
    results: Sequence[EvalResult]
    state: tuple[Any, ...] | None


def state_of(model: Any) -> tuple[Any, ...]:
    """Returns a model's state as far as it is known without computing embeddings."""
    prompt = model.prompts.get(model.default_prompt_name)
    changeable = model.template, model.layer, model.max_seq_length, model.truncate_dim, prompt
    active = model.body.active_adapters() if model.adapters else []
    weights = hashlib.sha256()
    for sample in Fingerprint(model).samples:
        weights.update(sample.cpu().view(torch.uint8).numpy().data)
    modules = id(model.body), *map(id, list(model)[1:])
    return *changeable, modules, tuple(model.adapters), tuple(active), weights.hexdigest()
