"""Importing the package changes nothing of the process beyond what upstream does when it is imported.

A warning of a kernel that is not there is not shown, wherever the import comes from; other warnings of its logger are.
"""

import logging
import os
import warnings

import peft  # noqa: F401
import sentence_transformers  # noqa: F401


def settings() -> tuple:
    return dict(os.environ), list(warnings.filters), list(logging.getLogger().handlers)


before = settings()
import st_prompteol

for name in st_prompteol.__all__:
    getattr(st_prompteol, name)
assert settings() == before
assert not logging.getLogger("st_prompteol").handlers

kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
kernels.warning("Failed to load CPU gemm_4bit_forward from %s", "x")
kernels.warning("something else")
