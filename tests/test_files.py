"""Replacing files in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from st_prompteol.files import append_lines, replacing_file


def half_write(path: Path) -> None:
    path.write_text("half", encoding="utf-8")
    raise KeyError


def test_lines_are_appended_behind_what_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, ["one", "zwö"])
    append_lines(path, ["three"])
    assert path.read_text(encoding="utf-8") == "one\nzwö\nthree\n"
    path.write_text("one\ncut sh", encoding="utf-8")
    append_lines(path, ["two"])
    assert path.read_text(encoding="utf-8") == "one\ncut sh\ntwo\n"


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old", encoding="utf-8")
    with replacing_file(path) as staged:
        staged.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    with pytest.raises(KeyError), replacing_file(path) as staged:
        half_write(staged)
    assert path.read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["out.txt"]
