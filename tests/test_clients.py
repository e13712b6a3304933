"""docs/clients.md has the results of docs/clients.json, which has a row for every client of the table."""

from __future__ import annotations

import json

from benchmarks.clients.page import with_results
from benchmarks.clients.run import PROGRAMS, SAME, compare_embeddings, compare_ids
from benchmarks.clients.table import CLIENTS

from . import ROOT

RESULTS = json.loads((ROOT / "docs/clients.json").read_text(encoding="utf-8"))


def test_the_page_has_the_results() -> None:
    page = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    assert page == with_results(page, RESULTS)
    assert page != with_results(page, {**RESULTS, "torch": "another"})


def test_every_client_has_its_row_its_program_and_a_note_on_how_to_open_a_folder() -> None:
    measured = {name: row["requirements"] for name, row in RESULTS["rows"].items()}
    assert measured == {client.name: list(client.requirements) for client in CLIENTS}
    settings = (ROOT / "docs/clients.md").read_text(encoding="utf-8").partition("## Settings")[2]
    for client in CLIENTS:
        assert (PROGRAMS / client.program).exists(), client.program
        assert f"| {client.name} | " in settings, client.name


def test_a_difference_is_noticed() -> None:
    ours = [[3.0, 4.0], [0.0, 2.0]]
    compared = compare_embeddings([[0.6, 0.8], [1.0, 1.0]], ours, ["one", "other"])
    assert compared == {"minimum": 0.707107, "different": ["other"], "lengths": False}
    assert compare_embeddings(ours, ours, ["one", "other"])["minimum"] >= SAME
    assert "error" in compare_embeddings([[1.0], [1.0]], ours, ["one", "other"])
    assert compare_ids([[1, 2], [3]], [[1, 2], [3, 4]], ["one", "other"]) == {"equal": 1, "different": ["other"]}
