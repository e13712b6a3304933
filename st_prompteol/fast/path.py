"""Entry point of the fast path: hidden states of rows with a common prefix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from st_prompteol.fast import attention
from st_prompteol.fast.check import is_exact, longest_row, mixes_rows
from st_prompteol.fast.linear import install_fast_linear, remove_fast_linear
from st_prompteol.fast.passes import Pass, SharedHead, add_hooks, compute_head
from st_prompteol.fast.rows import Plan, plan
from st_prompteol.llm.fingerprint import Fingerprint
from st_prompteol.llm.lock import Lock
from st_prompteol.llm.reading import Reading

_KEPT_BYTES = 2**28  # maximum size of the prefix cache; the head in use is always kept
PLAN = "plan"
"""Key of the result of `FastPath.plan` among the features of a batch.

Example:
    >>> from st_prompteol.llm.reading import Reading
    >>> features = PromptEOL("tiny")[0].preprocess(["It rains.", "Is it raining?"], reading=Reading(last_only=True))
    >>> features[PLAN].head_length
    5
"""


class FastPath:
    """Computes hidden states of rows with a common prefix.

    Outside of training, the shared prefix is computed once and cached, rows are computed without padding, blocks above
    the layer are skipped, and the last block computes only the last tokens if no others are read; the result is the
    same.

    Args:
        model: The body of a decoder LLM.

    Attributes:
        is_installed: Whether the model is prepared, as `plan` and `run` require.

    Example:
        >>> from st_prompteol.llm.reading import Reading
        >>> body = PromptEOL("tiny", fast=False).body
        >>> fast_path = FastPath(body)
        >>> fast_path.install()
        >>> ids = torch.tensor([[1, 50, 60], [1, 50, 70]])
        >>> features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        >>> with torch.inference_mode():
        ...     states = fast_path.run(features, Reading(last_only=True), layer=-1, head_ids=(1, 50))
        >>> states[-1].shape  # (batch_size, 1, hidden_size)
        torch.Size([2, 1, 256])
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.is_installed = False
        self._hooks: list[RemovableHandle] = []
        self._lock = Lock()  # guards the two caches below
        self._longest: dict[Any, int] = {}
        self._heads: dict[tuple[tuple[int, ...], int], SharedHead] = {}  # in order of last use
        self._state: Fingerprint | None = None  # of the model that computed the heads

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_heads": {}, "_state": None}

    def install(self) -> None:
        """Installs hooks and fast linear layers; the shared-head attention follows after a check of its results."""
        if not self.is_installed:
            attention.put_back(self.model)
            install_fast_linear(self.model)
            self._hooks = add_hooks(self.model)
            self.is_installed = True

    def remove(self) -> None:
        """Removes hooks, fast linear layers and the shared-head attention, and clears all caches."""
        self.is_installed = False
        attention.put_back(self.model)
        remove_fast_linear(self.model)
        for hook in self._hooks:
            hook.remove()
        self._longest.clear()
        self.forget()

    def forget(self) -> None:
        """Clears the prefix cache, before weights change."""
        with self._lock:
            self._heads.clear()

    def plan(self, features: dict[str, Any], head_ids: tuple[int, ...]) -> Plan | None:
        """Plans a batch while it is still on the CPU, to avoid device synchronization later."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.ndim != 2 or not head_ids:
            return None
        return plan(ids.cpu(), mask.cpu().bool(), head_ids, on_cpu=self.model.device.type == "cpu")

    def run(
        self, features: dict[str, Any], reading: Reading, layer: int, head_ids: tuple[int, ...]
    ) -> dict[int, Tensor] | None:
        """Computes a batch.

        Args:
            features: `input_ids` and `attention_mask`, `(batch_size, sequence_length)`, and under `PLAN` the result of
                `plan`, if it was called before they were moved to the device.
            reading: Call state.
            layer: The layer that the model reads.
            head_ids: Token ids of the shared prefix, `(head_length,)`.

        Returns:
            Hidden states by layer, of all tokens `(batch_size, sequence_length, hidden_size)`, or of the last
            tokens, with a `sequence_length` of 1; None if the fast path does not support the model or the batch.
        """
        if not self._is_possible():
            return None
        batch = features[PLAN] if PLAN in features else self.plan(features, head_ids)
        layers = [layer, *reading.inner_layers]
        if batch is None or batch.longest > self._longest_row(max(layers)):
            return None
        key = batch.head_ids, max(layers)
        if key not in reading.heads:
            reading.heads[key] = self._get_head(*key)
        head, outputs = reading.heads[key][batch.head_length], []
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
        states = [output[layer] for output in outputs]
        return {layer: _unpack(features["input_ids"], batch, head, states)}

    def _is_possible(self) -> bool:
        """Whether the fast path applies: no training, compilation or autocast, no other hidden states requested."""
        model = self.model
        return not (
            model.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled(model.device.type)  # a head cached outside would have another precision
            or getattr(model.config, "output_hidden_states", False)
        )

    def _longest_row(self, layer: int) -> int:
        """Returns the longest sequence that the fast path supports, in tokens (cached); 0 if unsupported."""
        model = self.model
        with self._lock:
            state = attention.own_name(model), model.dtype, model.device, layer
            if state not in self._longest:
                exact = attention.can_install(model) and not mixes_rows(model) and is_exact(model, layer)
                self._longest[state] = longest_row(model.config) if exact else 0
            if self._longest[state] and not attention.is_installed(model):  # changed by somebody else
                attention.install(model)
            return self._longest[state]

    def _get_head(self, ids: tuple[int, ...], layer: int) -> SharedHead:
        """Returns the head for `ids`, from the cache unless the model has changed."""
        state, key = Fingerprint(self.model), (ids, layer)
        with self._lock:
            if self._state != state:
                self._heads.clear()
            self._state = state
            head = self._heads.pop(key, None)
            if head is None:
                head = compute_head(self.model, torch.tensor(ids), layer)
            self._heads[key] = head
            while len(self._heads) > 1 and sum(kept.nbytes for kept in self._heads.values()) > _KEPT_BYTES:
                del self._heads[next(iter(self._heads))]
            return head


def _unpack(ids: Tensor, batch: Plan, head: SharedHead, states: list[Tensor]) -> Tensor:
    """Returns the hidden states of packed rows as a padded batch, with zeros at padding."""
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
