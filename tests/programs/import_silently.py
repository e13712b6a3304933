"""Importing the package changes nothing of the process beyond what upstream does when it is imported."""

import logging
import os
import warnings

import peft  # noqa: F401
import sentence_transformers  # noqa: F401


def settings() -> tuple:
    return dict(os.environ), list(warnings.filters), list(logging.getLogger().handlers)


before = settings()
from st_prompteol import *  # noqa: F403

assert settings() == before
assert not logging.getLogger("st_prompteol").handlers
