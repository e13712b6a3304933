"""A reader of the documentation, online, who runs all that a page shows in a folder."""

import os

from ..test_docs import run_page
from .calls import answer_calls


def read(page: str, folder: str) -> None:
    os.chdir(folder)
    run_page(page, wholly=True)


if __name__ == "__main__":
    answer_calls(globals())
