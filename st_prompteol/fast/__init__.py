"""Inference optimizations of `PromptEOL`, which leave its results unchanged; the entry point is `FastPath`."""

from __future__ import annotations

from st_prompteol.fast.passes import blocks_of
from st_prompteol.fast.path import PLAN, Begun, FastPath, Reading, inner_embeddings
from st_prompteol.fast.sentences import encode_distinct
from st_prompteol.fast.threads import Lock

__all__ = ["PLAN", "Begun", "FastPath", "Lock", "Reading", "blocks_of", "encode_distinct", "inner_embeddings"]
