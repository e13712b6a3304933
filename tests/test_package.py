"""The house: who may import whom, what is public, and what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import st_prompteol

from . import ROOT
from .helpers.processes import run_program

LIBRARY = ROOT / "st_prompteol"

# Against the arrow: upstream's method `push_to_hub` of a model is ours when it is called
EXCEPTIONS = {("model", "hub")}
# Each module may import those in front of it; of one rank, none imports another.
RANKS = [
    {"extras", "failures", "standardization"},
    {"files", "llm"},
    {"fast", "prompt"},
    {"card", "saved"},
    {"modules"},
    {"model"},
    {"corpus", "evaluation", "server"},
    {"hub", "recipes"},
    {"cli"},
    {"__main__"},
]


def imported(path: Path) -> set[str]:
    """What a file imports, at its top or inside a function, by full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path)]
    rooms = {part[1] for part in parts if part[0] == "st_prompteol" and len(part) > 1}
    return {room for room in rooms if (LIBRARY / room).is_dir() or (LIBRARY / f"{room}.py").is_file()}


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def test_imports_follow_the_arrows() -> None:
    ranks = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
    files = [path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py"]
    assert {room_of(path) for path in files} == set(ranks), "give every room of the library a rank"
    for path in files:
        room = room_of(path)
        for other in imported_rooms(path) - {room}:
            if (room, other) in EXCEPTIONS:
                continue
            assert ranks[other] < ranks[room], f"{path.relative_to(ROOT)} imports {other}, against the arrow"


def test_contributing_shows_the_arrows() -> None:
    ranks = [f"{{{', '.join(sorted(rooms))}}}" if len(rooms) > 1 else "".join(rooms) for rooms in RANKS[:-1]]
    assert " <- ".join(ranks) in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_nothing_in_the_library_imports_what_stands_around_it() -> None:
    for path in LIBRARY.rglob("*.py"):
        around = {"training", "hub_cards", "benchmarks", "tests", "examples"}
        assert not {name.split(".")[0] for name in imported(path)} & around, path


def test_public_names_are_those_of_all_and_come_when_used() -> None:
    for name in st_prompteol.__all__:
        assert getattr(st_prompteol, name) is not None
    assert set(st_prompteol.__all__) == set(st_prompteol._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'PromptEol'"):
        _ = st_prompteol.PromptEol


def test_a_capability_comes_from_its_own_room() -> None:
    assert not {home for home in st_prompteol._HOMES.values() if (LIBRARY / home).is_dir()}
    for room in ("corpus", "evaluation", "hub", "recipes"):
        module = import_module(f"st_prompteol.{room}")
        names = {name for name, value in vars(module).items() if name[0] != "_" and not isinstance(value, ModuleType)}
        assert names - {"annotations"} == set(module.__all__), room


@pytest.mark.slow
def test_importing_is_silent_and_changes_nothing() -> None:
    done = run_program("import_silently")
    assert done.stdout == ""
    assert "Failed to load CPU" not in done.stderr
    assert "something else" in done.stderr


def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    information = f"st_prompteol-{st_prompteol.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"st_prompteol", information}
    assert {"st_prompteol/py.typed", "st_prompteol/card/model_card.md.jinja"} <= set(names)
    shipped = {path.relative_to(ROOT).as_posix() for path in (LIBRARY / "tiny").rglob("*") if path.is_file()}
    assert "st_prompteol/tiny/model.safetensors" in shipped <= set(names)
