"""Replacing files and folders in one step, with real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from st_prompteol import files
from st_prompteol.files import append_lines, replacing_file, replacing_folder


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


@pytest.mark.parametrize("at_once", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_swapped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    if not at_once:
        monkeypatch.setattr(files.sys, "platform", "other")
    target = tmp_path / "model"
    (target / "sub").mkdir(parents=True)
    (target / "sub" / "keep.txt").write_text("kept", encoding="utf-8")
    (target / "stale.txt").write_text("stale", encoding="utf-8")
    (target / "link").symlink_to("sub")
    with replacing_folder(target, keep=lambda name: name != "stale.txt") as staged:
        (staged / "new.txt").write_text("new", encoding="utf-8")
        assert not (target / "new.txt").exists()
    assert sorted(os.listdir(target)) == ["link", "new.txt", "sub"]
    assert (target / "link" / "keep.txt").read_text(encoding="utf-8") == "kept"
    assert os.listdir(tmp_path) == ["model"]


def test_a_symbolic_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing_folder(tmp_path / "link", keep=lambda name: False) as staged:
        (staged / "new.txt").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new.txt"]


LOOP = """
import sys
from st_prompteol.files import replacing_folder
for round in range(1_000_000):
    with replacing_folder(sys.argv[1], keep=lambda name: False) as staged:
        for number in range(20):
            (staged / str(number)).write_text(str(round))
    if round == 3:
        print("ready", flush=True)
"""


def test_killed_at_any_moment_the_folder_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for pause in (0.0, 0.003, 0.01, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(target)], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        written = {path.name: path.read_text(encoding="utf-8") for path in target.iterdir()}
        assert set(written) == {str(number) for number in range(20)}
        assert len(set(written.values())) == 1
