"""A truncated forward pass, and the shared head that packed rows attend to.

A pass runs the blocks up to the layer that is read, and in the last one only each row's last token.

All rows begin with the same tokens: BOS, demonstrations, the template up to the sentence. Their keys and values are
computed once per state of the weights; rows then run without this prefix and attend to its single copy.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from st_prompteol.fast.rows import PackedRows
from st_prompteol.llm.loaded import blocks_of


@dataclass(frozen=True)
class SharedHead:
    """Prefix cache: keys, values and hidden states of the tokens that every row begins with.

    Args:
        keys: Per block, `(1, num_key_value_heads, head_length, head_dim)`, with positions applied.
        values: Per block, `(1, num_key_value_heads, head_length, head_dim)`.
        hidden: Hidden states at the layer that the model reads, `(1, head_length, hidden_size)`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, self.hidden))

    def __getitem__(self, length: int) -> SharedHead:
        """Returns the head of the first `length` tokens, which by causal attention do not depend on later ones."""
        return SharedHead(
            [key[:, :, :length] for key in self.keys],
            [value[:, :, :length] for value in self.values],
            self.hidden[:, :length],
        )


class Pass:
    """The state of one forward pass.

    Args:
        model: The body of a decoder LLM, prepared by `add_hooks`.
        layers: Layers to read: -1 for the last hidden state, after the final norm; -2 for the output of the second to
            last block, …
        rows: The packed batch to compute. Defaults to None: a regular batch.
        head: The prefix shared by the rows. Defaults to None.
        last_only: Whether to compute only the last token of each row. Defaults to False.

    Raises:
        NotImplementedError: If the model does not keep its blocks in one list.

    Attributes:
        keys_values: Keys and values of all tokens in the block that computes only the last ones; None in other blocks.
        capturing: Whether that block currently runs only for its keys and values.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        rows: PackedRows | None = None,
        head: SharedHead | None = None,
        *,
        last_only: bool = False,
    ) -> None:
        blocks = blocks_of(model)
        if not blocks:
            raise NotImplementedError(f"{type(model).__name__} does not keep its blocks in one list.")
        deepest = max(layers)
        self.model, self.rows, self.head = model, rows, head
        self.keys_values: tuple[Tensor, Tensor] | None = None
        self.capturing = False
        self._keep = {blocks[layer + 1]: layer for layer in layers if layer < -1}
        self._stop_before = blocks[deepest + 1] if deepest < -1 else None
        self._narrow_at = blocks[deepest] if last_only else None
        self._narrowed: torch.nn.Module | None = None
        self._last_only = last_only
        self._kept: dict[int, Tensor] = {}

    def run(self, **inputs: Any) -> dict[int, Tensor]:
        """Runs the model.

        Args:
            **inputs: The model's inputs.

        Returns:
            Hidden states by layer, `(batch_size, sequence_length, hidden_size)`; for packed rows
            `(1, num_tokens, hidden_size)`, or with `last_only` `(1, num_rows, hidden_size)`.
        """
        running.forward_pass = self
        try:
            self._kept[-1] = self.model(**inputs).last_hidden_state
        except _Reached:
            pass
        finally:
            running.forward_pass = None
        if self.rows is None or not self._last_only:
            return self._kept
        return {layer: hidden[:, self.rows.last.to(hidden.device)] for layer, hidden in self._kept.items()}

    def before_block(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stores a block's input, ends the pass, or restricts the block to the last tokens."""
        if self.capturing:
            return None
        if block in self._keep:
            self._kept[self._keep[block]] = args[0] if args else kwargs["hidden_states"]
        if block is self._stop_before:
            raise _Reached
        return self._narrow(block, args, kwargs) if block is self._narrow_at else None

    def _narrow(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computes keys and values of all tokens, then restricts the block to the last token of each row."""
        rows, hidden = self.rows, args[0] if args else kwargs["hidden_states"]
        if rows is None or hidden.shape[:2] != rows.input_ids.shape or len(rows.last) == len(rows.tokens):
            return None
        self.capturing = True
        try:
            block(*args, **kwargs)
        except Captured:
            pass
        finally:
            self.capturing = False
        if self.keys_values is None:  # no attention in this block
            return None

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.shape[:2] == hidden.shape[:2]:
                return value[:, rows.last.to(value.device)]
            return type(value)(map(cut, value)) if type(value) in (tuple, list) else value

        self._narrowed = block
        return cut(args), {name: cut(value) for name, value in kwargs.items()}

    def after_block(self, block: torch.nn.Module, output: Any) -> Any:
        """Puts the last tokens back in their places, because subsequent modules rely on the shape of the output."""
        if block is not self._narrowed or self.rows is None:
            return None
        self._narrowed = None
        hidden = output[0] if isinstance(output, tuple) else output
        whole = hidden.new_zeros(*self.rows.input_ids.shape, hidden.shape[-1])
        whole[:, self.rows.last.to(hidden.device)] = hidden
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


def compute_head(model: PreTrainedModel, ids: Tensor, layer: int) -> SharedHead:
    """Runs the model over the tokens `ids` `(head_length,)` and keeps their keys, values and hidden states."""
    cache = DynamicCache()
    inputs = {"input_ids": ids[None].to(model.device), "past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        hidden = Pass(model, [layer]).run(**inputs)[layer]
    return SharedHead([entry.keys for entry in cache.layers], [entry.values for entry in cache.layers], hidden)


class _Running(threading.local):
    """The thread's current forward pass, for hooks and attention functions, which cannot take it as an argument."""

    forward_pass: Pass | None = None


running = _Running()


class _Reached(Exception):
    """Raised before the first block that is not needed."""


class Captured(Exception):
    """Raised when a block has computed its keys and values and stored them in `Pass.keys_values`."""


def add_hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    """Registers the hooks of `Pass` on the model's blocks; once at load, because threads may share the model."""
    return [
        handle
        for block in blocks_of(model)
        for handle in (
            block.register_forward_pre_hook(_before_block, with_kwargs=True),
            block.register_forward_hook(_after_block),
        )
    ]


def _before_block(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state = running.forward_pass
    return None if state is None else state.before_block(block, args, kwargs)


def _after_block(block: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    state = running.forward_pass
    return None if state is None else state.after_block(block, output)
