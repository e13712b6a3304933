"""docs/clients.md is what docs/clients.json makes, and has a row for every client of the table."""

from __future__ import annotations

import json

import pytest

from . import ROOT


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python benchmarks/clients.py` finds the files beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_page_is_made_of_the_results() -> None:
    from clients_page import write_page

    results = json.loads((ROOT / "docs/clients.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/clients.md").read_text(encoding="utf-8") == write_page(results)


def test_every_client_has_its_row_with_the_texts_of_the_table() -> None:
    from clients_table import CLIENTS, READ

    results = json.loads((ROOT / "docs/clients.json").read_text(encoding="utf-8"))
    texts = {name: {key: row[key] for key in row if key != "kinds"} for name, row in results["rows"].items()}
    assert texts == {client.name: client.texts() for client in CLIENTS}
    assert results["read"] == {row.name: row.texts() for row in READ}
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)


def test_a_difference_is_noticed() -> None:
    from clients import SAME, compare_embeddings, compare_ids

    ours = [[3.0, 4.0], [0.0, 2.0]]
    compared = compare_embeddings([[0.6, 0.8], [1.0, 1.0]], ours, ["one", "other"])
    assert compared == {"minimum": 0.707107, "different": ["other"], "others": 1.0, "lengths": False}
    assert compare_embeddings(ours, ours, ["one", "other"])["minimum"] >= SAME
    assert "error" in compare_embeddings([[1.0], [1.0]], ours, ["one", "other"])
    assert compare_ids([[1, 2], [3]], [[1, 2], [3, 4]], ["one", "other"]) == {"equal": 1, "different": ["other"]}
