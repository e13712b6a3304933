"""The archive of the SentEval data, unpacked safely; test_hub.py fetches it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from st_prompteol.evaluation.data import senteval_folder, unpack

from .helpers.senteval import archive


@pytest.mark.parametrize("member", ["../outside", "/absolute", "link"])
def test_no_path_may_leave_the_folder(tmp_path: Path, member: str) -> None:
    info = tarfile.TarInfo(member)
    if member == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "../../outside"
    path = archive(tmp_path / "evil.tar", STS__x="1", evil=info)
    (tmp_path / "folder").mkdir()
    try:
        unpack(path, tmp_path / "folder")
    except ValueError as error:
        assert "is not safe to unpack" in str(error)  # noqa: PT017 - an absolute path may be made relative instead
    assert not (tmp_path / "outside").exists()
    assert not Path("/absolute").exists()
    assert not (tmp_path / "folder" / "link").is_symlink()


def test_a_damaged_archive_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "senteval.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged"):
        unpack(tmp_path / "senteval.tar", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        senteval_folder(tmp_path / "missing")
    assert senteval_folder(tmp_path) == tmp_path
