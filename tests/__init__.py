"""Tests: one file per module, each with an oracle of its own."""
