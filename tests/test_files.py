"""Replacing files in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from st_prompteol.files.atomic import append_lines, create_file, read_json_lines, replacing_file

from .helpers.processes import as_another_user


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


def test_a_file_is_replaced_wherever_it_can_be_written() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder, file = Path(name), Path(name, "rows.npy")
        file.write_text("old", encoding="utf-8")
        file.chmod(0o666)
        folder.chmod(0o555)
        with as_another_user():
            with replacing_file(file) as staged:
                staged.write_text("new", encoding="utf-8")
            with pytest.raises(PermissionError), replacing_file(folder / "other.npy"):
                pass
        assert os.listdir(folder) == ["rows.npy"]
        assert file.read_text(encoding="utf-8") == "new"
        folder.chmod(0o1777)  # like /tmp, with what another user's killed process has left
        left = folder / ".rows.npy.0123abcd.tmp"
        left.write_text("left", encoding="utf-8")
        left.chmod(0o600)
        with as_another_user(), replacing_file(file) as staged:
            staged.write_text("newer", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "newer"
        folder.chmod(0o733)  # may be written to, not listed
        with as_another_user(), replacing_file(folder / "other.npy") as staged:
            staged.write_text("other", encoding="utf-8")
        folder.chmod(0o755)
        assert (folder / "other.npy").read_text(encoding="utf-8") == "other"


def test_long_names_and_pipes_are_no_obstacle(tmp_path: Path) -> None:
    for name in ("x" * 255, "字" * 85):
        with replacing_file(tmp_path / name) as staged:
            staged.write_text("rows", encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == "rows"
        assert create_file(tmp_path / name[1:], b"rows")
    os.mkfifo(tmp_path / ".f.0123abcd.tmp")
    with replacing_file(tmp_path / "f") as staged:
        staged.write_text("rows", encoding="utf-8")
    assert len(os.listdir(tmp_path)) == 6


def test_a_line_of_brackets_is_left_out(tmp_path: Path) -> None:
    append_lines(tmp_path / "log.jsonl", ["[" * 100_000, '{"a": 1}'])
    assert list(read_json_lines(tmp_path / "log.jsonl", lambda row: row["a"])) == [{"a": 1}]
