"""The model card, written by every save: everything that is needed to use and to trust a model."""

from __future__ import annotations

from st_prompteol.card.data import PromptEOLModelCardData

__all__ = ["PromptEOLModelCardData"]
