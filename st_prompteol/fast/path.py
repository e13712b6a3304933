"""The door to everything that is fast: hidden states of rows that begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from st_prompteol.fast import attention
from st_prompteol.fast.check import is_exact, longest_row, mixes_rows
from st_prompteol.fast.head import Fingerprint, SharedHead, compute_head
from st_prompteol.fast.linear import install_fast_linear, remove_fast_linear
from st_prompteol.fast.passes import Pass, add_hooks
from st_prompteol.fast.rows import Plan, plan
from st_prompteol.fast.threads import Lock

_KEPT_BYTES = 2**28  # of heads; the one in use is kept, whatever its size
PLAN = "plan"
"""The name among the features of a batch of what `FastPath.plan` has made of it.

Example:
    >>> features = PromptEOL("tiny")[0].preprocess(["It rains.", "Is it raining?"], reading=Reading(last_only=True))
    >>> features[PLAN].head_length
    5
"""


@dataclass(frozen=True)
class Begun:
    """What one call of `encode` has begun with.

    Args:
        revision: That of the settings of the module.
        layer: The layer that the model reads.
        head_ids: The tokens that every row begins with, `(head_length,)`, on the CPU.

    Example:
        >>> Begun(revision=1, layer=-1, head_ids=torch.tensor([1, 2])).layer
        -1
    """

    revision: int
    layer: int
    head_ids: Tensor


@dataclass
class Reading:
    """What one call of `encode` reads, the same for all of its batches.

    Args:
        last_only: Whether only the last token of each row is read. Defaults to False.
        inner_layers: Layers below the model's own whose last tokens are read from the same pass. Defaults to none.
        begun: What the call has begun with; filled in by the first batch. Defaults to None.
        head: What rows share in this call; filled in by the first batch that has a use for it. Defaults to None.

    Example:
        >>> Reading(last_only=True, inner_layers=(-2,)).inner_layers
        (-2,)
    """

    last_only: bool = False
    inner_layers: tuple[int, ...] = ()
    begun: Begun | None = None
    head: SharedHead | None = None

    def __post_init__(self) -> None:
        if self.inner_layers and not self.last_only:
            raise ValueError(
                f"Of the inner layers {self.inner_layers} only last tokens are read: pass last_only=True."
            )


class FastPath:
    """Computes hidden states of rows that begin alike; None where a model has to be computed whole.

    Outside of training, the tokens that all rows begin with are computed once and kept, rows are computed without
    padding, no block above the layer runs, and the last one for the last tokens only where no others are read; the
    result is the same.

    Args:
        model: The body of a decoder LLM. It gets hooks and a choice of matrix products now; another attention when it
            has been seen to compute the same with it.

    Example:
        >>> body = PromptEOL("tiny", fast=False)[0].model
        >>> fast_path = FastPath(body)
        >>> ids = torch.tensor([[1, 50, 60], [1, 50, 70]])
        >>> reading = Reading(last_only=True, begun=Begun(revision=0, layer=-1, head_ids=torch.tensor([1, 50])))
        >>> with torch.inference_mode():
        ...     states = fast_path.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, reading)
        >>> states[-1].shape  # (batch_size, 1, hidden_size)
        torch.Size([2, 1, 256])
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        attention.put_back(model)
        install_fast_linear(model)
        self._hooks = add_hooks(model)
        self._lock = Lock()  # around what is found out once
        self._longest: dict[Any, int] = {}
        self._heads: dict[tuple[tuple[int, ...], int], SharedHead] = {}  # the one used last stands last
        self._state: Fingerprint | None = None  # of the model that they are of

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_heads": {}, "_state": None}

    def remove(self) -> None:
        """Makes the model again what transformers made of it."""
        attention.put_back(self.model)
        remove_fast_linear(self.model)
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """Drops the kept heads: weights are about to change."""
        with self._lock:
            self._heads.clear()

    def plan(self, features: dict[str, Any], head_ids: Tensor) -> Plan | None:
        """Plans a batch that is still on the CPU, so that computing it never waits for a device."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.ndim != 2 or len(head_ids) == 0:
            return None
        return plan(ids.cpu(), mask.cpu().bool(), head_ids, on_cpu=self.model.device.type == "cpu")

    def run(self, features: dict[str, Any], reading: Reading) -> dict[int, Tensor] | None:
        """Computes a batch.

        Args:
            features: `input_ids` and `attention_mask`, `(batch_size, sequence_length)`, and what `plan` has made of
                them before they went to the device, if it has.
            reading: What is read; it has begun.

        Returns:
            By layer the hidden states of all tokens, `(batch_size, sequence_length, hidden_size)`, or of the last
            ones, with a `sequence_length` of 1; None where the model has to be computed whole.
        """
        begun = reading.begun
        if begun is None or not self._is_possible():
            return None
        batch = features[PLAN] if PLAN in features else self.plan(features, begun.head_ids)
        layers = [begun.layer, *reading.inner_layers]
        if batch is None or batch.longest > self._longest_row(max(layers)):
            return None
        if reading.head is None:
            reading.head = self._get_head(begun.head_ids, max(layers))
        head, outputs = reading.head[batch.head_length], []
        for rows in batch.parts:
            rows.to(self.model.device)
            state = Pass(self.model, layers, rows, head, last_only=reading.last_only)
            outputs.append(state.run(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False))
        if reading.last_only:
            parts = list(zip(batch.parts, outputs, strict=True))
            return {
                layer: torch.cat([output[layer][0, : rows.asked] for rows, output in parts])[:, None]
                for layer in layers
            }
        states = [output[begun.layer] for output in outputs]
        return {begun.layer: _unpack(features["input_ids"], batch, head, states)}

    def _is_possible(self) -> bool:
        """Whether nothing is trained or compiled, and no other hidden states are asked for."""
        model = self.model
        return not (
            model.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled(model.device.type)  # a head kept outside of it would be of another precision
            or getattr(model.config, "output_hidden_states", False)
        )

    def _longest_row(self, layer: int) -> int:
        """How many tokens a row may have to be computed so, found out once for what it depends on; 0 for none."""
        model = self.model
        with self._lock:
            state = attention.own_name(model), model.dtype, model.device, layer
            if state not in self._longest:
                exact = attention.can_install(model) and not mixes_rows(model) and is_exact(model, layer)
                self._longest[state] = longest_row(model.config) if exact else 0
            if self._longest[state] and not attention.is_installed(model):  # somebody has set it anew
                attention.install(model)
            return self._longest[state]

    def _get_head(self, ids: Tensor, layer: int) -> SharedHead:
        """Returns the head for `ids`, from the cache unless anything that it depends on has changed."""
        state, key = Fingerprint(self.model), (tuple(ids.tolist()), layer)
        with self._lock:
            if self._state != state:
                self._heads.clear()
            self._state = state
            head = self._heads.pop(key, None)
            if head is None:
                head = compute_head(self.model, ids, layer)
            self._heads[key] = head
            while len(self._heads) > 1 and sum(kept.nbytes for kept in self._heads.values()) > _KEPT_BYTES:
                del self._heads[next(iter(self._heads))]
            return head


def _unpack(ids: Tensor, batch: Plan, head: SharedHead, states: list[Tensor]) -> Tensor:
    """Puts the hidden states of packed rows in their places, zeros at padding."""
    whole = states[0].new_zeros(*ids.shape, states[0].shape[-1])
    whole[:, : batch.head_length] = head.hidden
    start = 0
    for rows, hidden in zip(batch.parts, states, strict=True):
        longest = rows.mask.shape[1]
        padded = hidden.new_zeros(rows.asked * longest, hidden.shape[-1])
        padded[rows.tokens[: rows.asked_tokens].to(hidden.device)] = hidden[0, : rows.asked_tokens]
        stop = start + rows.asked
        whole[start:stop, batch.head_length : batch.head_length + longest] = padded.view(rows.asked, longest, -1)
        start = stop
    return whole


def inner_embeddings(layer: int) -> str:
    """Returns the name under which the features hold what is read of an inner layer.

    Args:
        layer: Counted from the end, as `PromptEOL` counts layers.

    Example:
        >>> inner_embeddings(-2)
        'layer_-2_embedding'
    """
    return f"layer_{layer}_embedding"
