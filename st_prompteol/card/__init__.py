"""The model card: what a stranger needs to use and to trust a model, written by every save."""

from __future__ import annotations

from st_prompteol.card.data import PromptEOLModelCardData

__all__ = ["PromptEOLModelCardData"]
