"""A little of the attack; `make attack` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from .attack import TABLE, files, folders, kills, races, strings, templates

COUNTS = {strings: 20, templates: 5, files: 300, folders: 12}


def test_everything_of_the_table_is_run_here() -> None:
    assert {*COUNTS, kills, races} == set(TABLE)


@pytest.mark.parametrize("attempt", COUNTS, ids=lambda attempt: attempt.__name__)
def test_what_must_hold_holds(attempt: object, tmp_path: Path) -> None:
    assert attempt(COUNTS[attempt], tmp_path) == []  # type: ignore[operator,index]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [kills, races], ids=lambda attempt: attempt.__name__)
def test_what_must_hold_holds_beside_other_processes(attempt: object, tmp_path: Path) -> None:
    assert attempt(2, tmp_path) == []  # type: ignore[operator]
