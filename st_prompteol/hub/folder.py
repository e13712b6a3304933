"""The folder to upload: its files, additional ones from the model's own folder, and a check for tokens."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from huggingface_hub import get_token

# Additional files to push from the folder that a model was loaded from
_COMPANIONS = ("curves.png", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
_HF_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def files_of(folder: Path) -> dict[str, int]:
    """Returns the files of a folder, relative path -> size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def copy_companions(source: str, folder: Path) -> None:
    """Copies training curves, license and notice of a model's own folder; raises ValueError if one is a link."""
    for name in _COMPANIONS:
        companion = os.path.join(source, name)
        if os.path.islink(companion):
            raise ValueError(
                f"{name!r} in {source!r} is a link to {os.path.realpath(companion)!r}, and nothing from outside the "
                "folder is pushed: put a copy in its place, or remove it."
            )
        if os.path.isfile(companion):
            shutil.copyfile(companion, folder / name)


def check_no_secrets(folder: Path, token: str | bool | None) -> None:
    """Raises ValueError if a file other than the weights contains a Hugging Face token, without showing the token."""
    own = token if isinstance(token, str) else get_token()
    for name in files_of(folder):
        if name.endswith(".safetensors"):
            continue
        content = (folder / name).read_bytes()
        text = content + b"\n" + content.replace(b"\0", b"")  # ASCII in UTF-16 and UTF-32
        is_own = own and own.encode() in text
        if is_own or _HF_TOKEN.search(text):
            raise ValueError(
                f"{name!r} would make {'your token' if is_own else 'a Hugging Face token'} public: take it out of the "
                "model's template, card or configuration, and make a new one if it has been anywhere else."
            )
