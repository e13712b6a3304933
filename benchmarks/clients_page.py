"""The page docs/clients.md, made of docs/clients.json and nothing else."""

from __future__ import annotations

from typing import Any


def write_page(results: dict[str, Any]) -> str:
    """Returns the page of the results that `benchmarks/clients.py` wrote."""
    return str(len(results)) + "\n"
