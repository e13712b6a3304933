"""Running the blocks of a decoder that an embedding needs, and in the last of them only the last tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from st_prompteol.attention import Captured, PackedRows, current_rows

# Of this thread's forward pass: .keep, the blocks whose inputs are asked for, and .kept, those; .stop_before, the
# block that it need not run; .narrow_at, the last one that it runs; .narrowed, the same while it runs for the last
# tokens only
_current = threading.local()


def run_to_layers(
    model: PreTrainedModel, layers: Sequence[int], *, last_only: bool = False, **inputs: Any
) -> dict[int, Tensor]:
    """Runs the blocks that hidden states need and no others.

    Args:
        model: The body of a decoder LLM.
        layers: -1 for the last hidden state, after the final norm; -2 for the output of the last but one block, …
        last_only: Whether the last tokens of the packed rows that are computed are enough. Defaults to False.
        **inputs: As the model takes them.

    Raises:
        NotImplementedError: If the model does not keep its blocks in one list.

    Returns:
        By layer `(batch_size, sequence_length, hidden_size)`; of packed rows `(1, num_tokens, hidden_size)`, or with
        `last_only` `(1, num_rows, hidden_size)`.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise NotImplementedError(f"{type(model).__name__} does not keep its blocks in one list.")
    rows = current_rows() if last_only else None
    deepest = max(layers)
    _current.keep = {blocks[layer + 1]: layer for layer in layers if layer < -1}
    _current.kept = kept = {}
    _current.stop_before = blocks[deepest + 1] if deepest < -1 else None
    _current.narrow_at = blocks[deepest] if rows is not None else None
    try:
        kept[-1] = model(**inputs).last_hidden_state
    except _Reached:
        pass
    finally:
        _current.keep = {}
        _current.kept = _current.narrow_at = _current.narrowed = _current.stop_before = None
    return kept if rows is None else {layer: hidden[:, rows.last.to(hidden.device)] for layer, hidden in kept.items()}


def prepare(model: PreTrainedModel) -> None:
    """Lets `run_to_layers` step in between the model's blocks; once and early, as threads may share the model."""
    for block in blocks_of(model):
        block.register_forward_pre_hook(_before_block, with_kwargs=True)
        block.register_forward_hook(_after_block)


def blocks_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Returns the blocks of a decoder, none if it does not keep them in one list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count)
    return next(lists, torch.nn.ModuleList())


class _Reached(Exception):
    """Raised in front of the first block that need not run."""


def _before_block(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rows = current_rows()
    if rows is not None and rows.capturing:
        return None
    if block in getattr(_current, "keep", {}):
        _current.kept[_current.keep[block]] = args[0] if args else kwargs["hidden_states"]
    if getattr(_current, "stop_before", None) is block:
        raise _Reached
    if getattr(_current, "narrow_at", None) is block and rows is not None:
        return _narrow(block, rows, args, kwargs)
    return None


def _narrow(block: torch.nn.Module, rows: PackedRows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Computes keys and values of all tokens, and leaves the block the last token of each row to compute."""
    hidden = args[0] if args else kwargs["hidden_states"]
    if hidden.shape[:2] != (1, len(rows.tokens)) or len(rows.last) == len(rows.tokens):
        return None
    rows.capturing = True
    try:
        block(*args, **kwargs)
    except Captured:
        pass
    finally:
        rows.capturing = False
    if rows.keys_values is None:  # no attention in this block
        return None

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape[:2] == hidden.shape[:2]:
            return value[:, rows.last.to(value.device)]
        return type(value)(map(cut, value)) if type(value) in (tuple, list) else value

    _current.narrowed = block
    return cut(args), {name: cut(value) for name, value in kwargs.items()}


def _after_block(block: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Puts the last tokens back in their places, as what comes after a block relies on its shape."""
    rows = current_rows()
    if getattr(_current, "narrowed", None) is not block or rows is None:
        return None
    _current.narrowed = None
    hidden = output[0] if isinstance(output, tuple) else output
    whole = hidden.new_zeros(1, len(rows.tokens), hidden.shape[-1])
    whole[:, rows.last.to(hidden.device)] = hidden
    return (whole, *output[1:]) if isinstance(output, tuple) else whole
