"""The Hub: model cards, and pushes that are checked before and after."""

from __future__ import annotations

from st_prompteol.hub.card import build_model_card
from st_prompteol.hub.push import PushReport, push_to_hub

__all__ = ["PushReport", "build_model_card", "push_to_hub"]
