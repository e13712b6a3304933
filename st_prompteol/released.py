"""The model that comes with the package: small enough to travel with it, for trying things out without a network."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

TINY = str(Path(__file__).with_name("tiny"))
"""The folder of `prompteol-tiny`, which plain sentence-transformers opens too.

Example:
    >>> from sentence_transformers import SentenceTransformer
    >>> SentenceTransformer(TINY).encode("It rains.").shape
    (256,)
"""


def find_released(model_name_or_path: str | None) -> str | None:
    """Returns the packaged folder for `"tiny"`, unless a folder of that name is there, any other name as it is.

    A leading `~` is the user's home folder, also where no shell has read the name.

    The first time that this is the packaged model, a warning says what it is for.
    """
    if model_name_or_path is not None and model_name_or_path.startswith("~"):
        model_name_or_path = os.path.expanduser(model_name_or_path)
    if model_name_or_path == "tiny" and not os.path.isdir("tiny"):
        model_name_or_path = TINY
    if model_name_or_path is not None and os.path.realpath(model_name_or_path) == os.path.realpath(TINY):
        _say_what_it_is_for()
    return model_name_or_path


@lru_cache(maxsize=1)  # once a process
def _say_what_it_is_for() -> None:
    logger.warning(
        "This is prompteol-tiny, a model of 3 million parameters for trying things out: name a larger one for work."
    )
