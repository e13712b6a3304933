"""Inference optimizations of `PromptEOL`, which leave its results unchanged; the entry point is `FastPath`."""

from __future__ import annotations

from st_prompteol.fast.path import PLAN, FastPath
from st_prompteol.fast.sentences import encode_distinct

__all__ = ["PLAN", "FastPath", "encode_distinct"]
