"""Encoding the same sentences behind many demonstrations: tokenised once, several layers from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from st_prompteol.decoders import check_layer
from st_prompteol.fast import Reading, inner_embeddings
from st_prompteol.model import PromptEOL
from st_prompteol.modules import PromptEOLTransformer
from st_prompteol.pooling import LastTokenPooling
from st_prompteol.template import Demonstration

_PROBES = 16  # sentences that are tokenised behind every candidate


class ShotEncoder:
    """Encodes sentences behind demonstrations.

    What a sentence adds to a prompt, its own tokens and the template's end, is the same whatever stands in front. So
    it is tokenised once; of the prompts with demonstrations only a few are, which tell the tokens in front and prove
    that the rest is the same. Where it is not, or a sentence has to be cut, the whole prompt is tokenised.

    Args:
        model: Its template is replaced by each call of `encode`.
        sentences: Distinct sentences.
        layers: The hidden states to read, all of them from one pass.
        batch_size: Sentences per forward pass.

    Raises:
        ValueError: If a layer is out of range, or several are asked for and the model does more with a hidden state
            than read its last token.
    """

    def __init__(self, model: PromptEOL, sentences: Sequence[str], layers: Sequence[int], batch_size: int) -> None:
        for layer in layers:
            check_layer(layer, model[0].config)
        kinds = tuple(map(type, model))
        self._reads_last_tokens = kinds == (PromptEOLTransformer, LastTokenPooling)
        if len(layers) > 1 and not self._reads_last_tokens:
            names = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"Several layers at once need a model of transformer and last token only, not {names}.")
        self.model, self.sentences, self.batch_size = model, list(sentences), batch_size
        self.layers = sorted(layers, reverse=True)  # the deepest one first: it is what the model runs to
        self.template = replace(model.template, demonstrations=())
        model.template = self.template
        ids = self._tokenize(range(len(self.sentences)))
        first, last = min(ids), max(ids)  # in the order of lists, so these two share what all share
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
        shared = min(shared, *(len(row) - 1 for row in ids))
        self._own = [row[shared:] for row in ids]
        seen: dict[int, int] = {}
        for index, row in enumerate(self._own):
            seen.setdefault(row[0], index)
        self._probes = list(seen.values())[:_PROBES]

    def encode(self, demonstrations: Sequence[Demonstration], indices: Sequence[int]) -> dict[int, npt.NDArray[Any]]:
        """Encodes the sentences at `indices` behind demonstrations.

        Returns:
            Layer -> `(len(indices), embedding_dimension)`, float32.

        Raises:
            ValueError: If the demonstrations do not fit into the model's context, or embeddings are not finite.
        """
        if not indices:
            return {layer: np.empty((0, 0)) for layer in self.layers}
        model = self.model
        model.template = replace(self.template, demonstrations=tuple(demonstrations))
        model.layer = self.layers[0]
        rows = self._rows(indices)
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        model.eval()
        pieces: dict[int, list[torch.Tensor]] = {layer: [] for layer in self.layers}
        inner = tuple(self.layers[1:])
        reading = Reading(self._reads_last_tokens, inner)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = [rows[row] for row in order[start : start + self.batch_size]]
                outputs = model(self._features(batch), reading=reading)
                names = ["sentence_embedding", *map(inner_embeddings, inner)]
                for layer, name in zip(self.layers, names, strict=True):
                    vectors = outputs[name]
                    pieces[layer].append(vectors[:, : model.truncate_dim].float().cpu())
        embeddings = {}
        for layer, vectors_of in pieces.items():
            sorted_rows = torch.cat(vectors_of).numpy()
            if not np.isfinite(sorted_rows).all():
                raise ValueError(
                    f"The model returned NaN or infinity behind the demonstrations {list(demonstrations)!r}: "
                    "embeddings must be finite; load the model in float32 or bfloat16."
                )
            embeddings[layer] = np.empty_like(sorted_rows)
            embeddings[layer][order] = sorted_rows
        return embeddings

    def _rows(self, indices: Sequence[int]) -> list[list[int]]:
        """The token ids of the rendered sentences, of those at `indices`."""
        front: list[int] | None = None
        for probe, ids in zip(self._probes, self._tokenize(self._probes), strict=True):
            own = self._own[probe]
            if ids[-len(own) :] != own or (front is not None and ids[: -len(own)] != front):
                return self._tokenize(indices)
            front = ids[: -len(own)]
        limit = self.model.max_seq_length or sum(map(len, (front or [], *self._own)))
        rows = [(front or []) + self._own[index] for index in indices]
        cut = [place for place, row in enumerate(rows) if len(row) > limit]
        for place, ids in zip(cut, self._tokenize([indices[place] for place in cut]), strict=True):
            rows[place] = ids
        return rows

    def _tokenize(self, indices: Sequence[int]) -> list[list[int]]:
        rows: list[list[int]] = []
        for start in range(0, len(indices), 256):
            features = self.model.preprocess([self.sentences[index] for index in indices[start : start + 256]])
            for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
                rows.append(ids[mask.bool()].tolist())
        return rows

    def _features(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.model.tokenizer.pad_token_id)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = self.model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
