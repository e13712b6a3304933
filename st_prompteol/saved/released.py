"""The small model that is included in the package, for experiments without a network."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

TINY = str(Path(__file__).parents[1] / "tiny")
"""The folder of `prompteol-tiny`, which also loads with plain sentence-transformers.

Example:
    >>> from sentence_transformers import SentenceTransformer
    >>> SentenceTransformer(TINY).encode("It rains.").shape
    (256,)
"""


def find_released(model_name_or_path: str | None) -> str | None:
    """Returns the folder of the included model for `"tiny"`, unless a folder of that name exists, or the name itself.

    A leading `~` is expanded to the user's home folder.

    The first use of the included model logs a warning about its purpose.
    """
    if model_name_or_path is not None and model_name_or_path.startswith("~"):
        model_name_or_path = os.path.expanduser(model_name_or_path)
    if model_name_or_path == "tiny" and not os.path.isdir("tiny"):
        model_name_or_path = TINY
    if model_name_or_path is not None and os.path.realpath(model_name_or_path) == os.path.realpath(TINY):
        _say_what_it_is_for()
    return model_name_or_path


@lru_cache(maxsize=1)  # once per process
def _say_what_it_is_for() -> None:
    logger.warning(
        "This is prompteol-tiny, a model of 3 million parameters for trying things out: name a larger one for work."
    )
