"""What all tests have: ../shared, saved models and a process without us; xdist's own process imports no more."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import SHARED
from .helpers.processes import PlainProcess

if TYPE_CHECKING:
    from .helpers.processes import PlainProcess


def pytest_configure() -> None:
    """Lets what tests start be interrupted, also where they run in the background, where a shell ignores that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs ../shared where it is absent."""
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="needs ../shared"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The helpers see to it, also for a file of tests that does not import them."""
    from . import helpers  # noqa: F401


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def stories() -> str:
    return str(SHARED / "hub/models/tinyllamas/stories260k")


@pytest.fixture(scope="session")
def causal_lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One saved causal LM per architecture; read only."""
    from .helpers.models import ARCHITECTURES, build_causal_lm

    return {
        name: build_causal_lm(tmp_path_factory.mktemp(name), name, bos=name not in ("gpt2", "gpt-neox", "qwen2"))
        for name in ARCHITECTURES
    }


@pytest.fixture(scope="session")
def plain() -> Iterator[PlainProcess]:
    from .helpers.processes import PlainProcess

    process = PlainProcess()
    yield process
    process.close()
