"""The Hugging Face Hub: model cards, and pushes with checks before and after."""

from __future__ import annotations

from st_prompteol.hub.card import build_model_card
from st_prompteol.hub.options import CardOptions, PushOptions
from st_prompteol.hub.push import PushReport, check_push, push_to_hub

__all__ = ["CardOptions", "PushOptions", "PushReport", "build_model_card", "check_push", "push_to_hub"]
