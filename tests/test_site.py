"""The documentation site: every public name and command has its place, examples are true, and links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

import st_prompteol
from st_prompteol.cli import app

from . import ROOT
from .helpers.senteval import build_senteval

ROOMS = ["st_prompteol"] + [
    f"st_prompteol.{room.name}"
    for room in pkgutil.iter_modules(st_prompteol.__path__)
    if room.ispkg and "__all__" in vars(importlib.import_module(f"st_prompteol.{room.name}"))
]
NAMES = [f"{room}.{name}" for room in ROOMS for name in importlib.import_module(room).__all__]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "st_prompteol").rglob("*.py"))


def look_up(full_name: str) -> Any:
    room, name = full_name.rsplit(".", 1)
    return getattr(importlib.import_module(room), name)


def docstring_of(full_name: str) -> str:
    """The docstring of a class or a function, or the text below a constant in the file that it comes from."""
    value = look_up(full_name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ""
    texts = (constants((ROOT / file).read_text(encoding="utf-8")) for file in FILES)
    return next((text for found in texts for name, text in found if name == full_name.rsplit(".", 1)[1]), "")


def constants(source: str) -> Iterator[tuple[str, str]]:
    """Yields the name of each constant of a file that has a text below it, with the text."""
    for statement, below in pairwise(ast.parse(source).body):
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield from ((target.id, str(below.value.value)) for target in targets if isinstance(target, ast.Name))


def parameters_of(value: Any) -> set[str]:
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value) if field.init}
    return set(inspect.signature(value).parameters)


def test_rooms_are_found() -> None:
    assert {"st_prompteol", "st_prompteol.corpus", "st_prompteol.evaluation", "st_prompteol.hub"} <= set(ROOMS)
    assert len(NAMES) > 40


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_tells_its_parameters_and_shows_an_example(name: str) -> None:
    docstring, value = docstring_of(name), look_up(name)
    assert re.search(r"^ *Example:\n +>>> ", docstring, flags=re.MULTILINE), f"{name} shows no example"
    if inspect.isclass(value) or inspect.isroutine(value):
        told = re.findall(r"^    \*{0,2}(\w+): ", docstring.partition("Args:")[2], flags=re.MULTILINE)
        untold = parameters_of(value) - set(told)
        assert not untold, f"{name} does not tell of {sorted(untold)}"


@pytest.mark.parametrize("file", [file for file in FILES if ">>> " in (ROOT / file).read_text(encoding="utf-8")])
@pytest.mark.slow
def test_examples_print_what_they_say(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_senteval(tmp_path / "senteval")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    room = importlib.import_module(".".join(module.__name__.split(".")[:2]))
    homes = [st_prompteol, room] if hasattr(room, "__all__") else [st_prompteol]
    names = {name: getattr(home, name) for home in homes for name in home.__all__} | {"torch": torch}
    found = doctest.DocTestFinder().find(module, extraglobs=names)
    for name, text in constants((ROOT / file).read_text(encoding="utf-8")):
        found.append(doctest.DocTestParser().get_doctest(text, dict(names), name, file, 0))
    runner, report = doctest.DocTestRunner(), []
    for test in found:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert any(test.examples for test in found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "furo", "myst_nb", "sphinx_copybutton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of the extra docs: pip install -c constraints.txt '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-c", ROOT / "docs", "-d", folder / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT, folder / "site"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "site"


class Page(HTMLParser):
    """What a page links to, what it loads, and where one can go in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += [values[name] for name in ("src", "href") if name in values and tag != "a"]


def inventory(site: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the address of everything that is documented, from the file that other sites read."""
    *_, content = (site / "objects.inv").read_bytes().split(b"\n", 4)
    for line in zlib.decompress(content).decode("utf-8").splitlines():
        name, _, _, address, _ = line.split(" ", 4)
        yield name, address.replace("$", name)


@pytest.mark.slow
def test_every_public_name_has_a_place(site: Path) -> None:
    places = dict(inventory(site))
    assert not set(NAMES) - set(places)
    for name in NAMES:
        path, anchor = places[name].split("#")
        assert path.startswith("docs/api/")
        assert anchor in Page(site / path).places


@pytest.mark.slow
def test_every_command_has_a_place(site: Path) -> None:
    headings = re.findall(r'<section id="([\w-]+)"', (site / "docs/api/command-line.html").read_text(encoding="utf-8"))
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {str(group.name) for group in app.registered_groups}
    assert {f"st-prompteol-{name}" for name in commands | groups} <= set(headings)


@pytest.mark.slow
def test_links_lead_to_what_is_there_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 25
    for path, page in pages.items():
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") and address in page.links:
                continue
            assert not parts.netloc, f"{path} loads {address}"
            if parts.scheme == "data":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path} leads to {address}"
            if parts.fragment and target in pages and parts.fragment != "":
                assert unquote(parts.fragment) in pages[target].places, f"{path} leads to {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_the_start_page_and_the_notebook_are_whole(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in re.findall(r"^\| \[[^]]*\]\(([^)]+)\) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M):
        assert f'href="{Path(page).with_suffix(".html").as_posix()}"' in start, page
    images = [address for address in Page(site / "examples/quickstart.html").loads if address.endswith(".png")]
    assert len(images) >= 2
    assert "PromptEOL" in (site / "searchindex.js").read_text(encoding="utf-8")
