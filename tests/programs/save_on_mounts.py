"""Saves where file systems are mounted: in the place, inside of it, on a full disk and on one that is closed."""

import errno
import os
import sys
from pathlib import Path

import numpy as np

from st_prompteol import PromptEOL
from st_prompteol.files.atomic import replacing_file

folder, model = Path(sys.argv[1]), PromptEOL(sys.argv[2])
expected = model.encode(["x"])


def check(path: Path) -> None:
    for template in ("prompt", "prompteol"):
        model.template = template
        model.save_pretrained(str(path), create_model_card=False)
    np.testing.assert_allclose(PromptEOL(str(path)).encode(["x"]), expected, atol=1e-5)
    assert not list(path.glob(".saving-*"))


def error_of_saving(path: Path, **options: bool) -> Exception:
    try:
        model.save_pretrained(str(path), **options)
    except Exception as error:
        return error
    raise AssertionError(f"{path} was saved into")


check(folder / "point")  # a mount point, in a folder that cannot be written to
check(folder / "outer")  # mounts inside
assert (folder / "outer/checkpoint-1/state").read_text() == "mine"
mounts = Path("/proc/self/mounts").read_text()
assert all(f"{folder}/outer/{name} " in mounts for name in ("checkpoint-1", "1_Pooling", "config.json"))
assert (folder / "bound.json").read_text() == (folder / "outer/config.json").read_text() != "{}"
with replacing_file(folder / "outer/config.json") as staged:
    staged.write_text("{}")
assert (folder / "bound.json").read_text() == "{}"

small = folder / "small"
model.save_pretrained(str(small), create_model_card=False)
before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
disk = os.statvfs(small)
(small / "filler").write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - 20_000))
model.template = "prompt"
told = str(error_of_saving(small)).lower()
assert "full" in told or "space" in told
(small / "filler").unlink()
assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before

error = error_of_saving(folder / "closed")
assert isinstance(error, OSError)
assert error.errno == errno.EROFS
