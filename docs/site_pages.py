"""What the documentation site adds to Sphinx: navigation, the commands' reference, links in docstrings, a check."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import st_prompteol

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ["docs/api/st_prompteol", "docs/api/command-line"]
COMMAND_LINE = "docs/api/command-line"
PROJECT = ["CHANGELOG", "CONTRIBUTING"]
TABLE_ROW = re.compile(r"^\| \[[^]]*\]\(([^)]+)\.(?:md|ipynb)\) \|", flags=re.MULTILINE)
FILE_LINK = re.compile(r"\[[\w./-]+\.(?:md|ipynb)\]\((?=[^):]*\))")
CODE = re.compile(r"(?<![`:\w\\])`([^`]+)`(?![`_])")  # Markdown's code, which docstrings are written with

logger = logging.getLogger(__name__)


def rooms() -> Iterator[str]:
    """Yields the package and its subpackages that have public names."""
    yield st_prompteol.__name__
    for module in pkgutil.iter_modules(st_prompteol.__path__, f"{st_prompteol.__name__}."):
        if module.ispkg and hasattr(importlib.import_module(module.name), "__all__"):
            yield module.name


def public_names() -> dict[str, str]:
    """Returns the full name of every public name, by the name itself; of two equal ones the package's own."""
    names = [(name, f"{room}.{name}") for room in rooms() for name in importlib.import_module(room).__all__]
    return dict(reversed(names))


def add_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds the navigation behind the start page, in the order of its table, and the commands to their page.

    A link that GitHub shows as the name of a file has that page's title here.
    """
    if docname == app.config.root_doc:
        pages = TABLE_ROW.findall(source[0])
        if not pages:
            raise ValueError("README.md has no table of pages that begin with a link: the navigation is made from it.")
        reference = [*REFERENCE, *(f"docs/api/{room.split('.')[1]}" for room in list(rooms())[1:])]
        for caption, entries in (("Pages", pages), ("Reference", reference), ("Project", PROJECT)):
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```\n"
    elif docname == COMMAND_LINE:
        source[0] += commands()
    if Path(app.env.doc2path(docname)).suffix == ".md":
        source[0] = FILE_LINK.sub("[](", source[0])


def commands() -> str:
    """Returns the help of all commands in Markdown, as typer writes it."""
    done = subprocess.run(
        [sys.executable, "-m", "typer", "st_prompteol.cli", "utils", "docs", "--name", "st-prompteol"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    text = done.stdout.partition("\n")[2]  # the page has a title of its own
    lines, group = text.splitlines(), "st-prompteol"
    whole = dict(re.findall(r"^##+ `(.+)`\n\n(.+)$", text, flags=re.MULTILINE))  # the lists cut help texts off
    for number, line in enumerate(lines):
        if line.startswith("## "):
            group = line.strip("# `")
        elif (command := re.match(r"\* `([a-z][a-z-]*)`:", line)) and (name := f"{group} {command[1]}") in whole:
            lines[number] = f"* [`{name}`](#{name.replace(' ', '-')}): {whole[name]}"
    return "\n".join(lines)


def read_constant(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Gives a constant the docstring that stands below it in the file that it comes from."""
    if what != "data" or lines:
        return
    constant = name.rsplit(".", 1)[1]
    for module in list(sys.modules):
        if module.startswith("st_prompteol.") and vars(sys.modules[module]).get(constant) is obj:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            lines += analyzer.attr_docs.get(("", constant), [])


def link_names(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns `name` in a docstring into a link where it is a public name, and into code elsewhere."""
    places = public_names()

    def replace(match: re.Match[str]) -> str:
        code = " ".join(match[1].split())
        place = code if code in places.values() else places.get(code, name)
        return f":py:obj:`~{place}`" if place != name else f"``{code}``"

    lines[:] = CODE.sub(replace, "\n".join(lines)).split("\n")


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names that no page documents."""
    documented = {name for name, *_ in env.domains["py"].get_objects()}
    for room in rooms():
        for name in importlib.import_module(room).__all__:
            if f"{room}.{name}" not in documented:
                logger.warning("%s.%s is public, and no page in docs/api documents it", room, name)


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """Writes the start page under the name that servers look for."""
    if exception is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{app.config.root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the above with Sphinx."""
    app.connect("source-read", add_to_pages)
    app.connect("autodoc-process-docstring", read_constant, priority=400)  # in front of napoleon's
    app.connect("autodoc-process-docstring", link_names, priority=600)  # behind napoleon's
    app.connect("env-check-consistency", check_public_names)
    app.connect("build-finished", add_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
