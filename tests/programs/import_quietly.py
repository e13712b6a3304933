"""A warning of a kernel that is not there is not shown when a model is opened, and no filter is left."""

import contextlib
import logging
import unittest.mock

import st_prompteol
from st_prompteol import PromptEOL  # noqa: F401


def say(name: str) -> None:
    logger.warning("Failed to load CPU gemm_4bit_forward from %s", "x")


logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
assert not logger.filters
with unittest.mock.patch.object(st_prompteol, "import_module", say), contextlib.suppress(AttributeError):
    _ = st_prompteol.TINY
