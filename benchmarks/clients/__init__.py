"""Saved models in other programs."""
