"""Getting the SentEval data: the archive fetched once from a Hub on loopback, and unpacked safely."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from st_prompteol.evaluation.data import senteval_folder, unpack


def load_hub_server(shared: Path) -> Any:
    spec = importlib.util.spec_from_file_location("hubserver", shared / "hubserver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is the one on loopback, with a cache of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


def archive(path: Path, **members: str | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name.replace("__", "/"))
            data = b"" if isinstance(content, tarfile.TarInfo) else content.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.shared
def test_the_archive_is_fetched_once_and_a_hub_model_s_results_lie_under_its_commit(
    shared: Path, tmp_path: Path
) -> None:
    source = tmp_path / "repository"
    source.mkdir()
    archive(source / "senteval.tar", downstream__STS__x="1", downstream__MR__y="2")
    hub = load_hub_server(shared).Hub()
    hub.seed("dataset", "princeton-nlp/datasets-for-simcse", source)
    hub.seed("model", "tinyllamas/stories260k", shared / "hub/models/tinyllamas/stories260k")
    commit = hub.repos["model", "tinyllamas/stories260k"].branches["main"]
    code = (
        "from st_prompteol import PromptEOL; from st_prompteol.evaluation import Run, senteval_folder\n"
        "print(senteval_folder()); print(senteval_folder())\n"
        "name = 'tinyllamas/stories260k'; print(Run.of(PromptEOL(name), name, 'x').folder('results'))"
    )
    with hub:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=hub_environment(hub.url, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=True,
        )
        downloads = [line for line in map(str, hub.log) if "senteval.tar" in line and "GET" in line]
    first, second, results = done.stdout.splitlines()
    assert first == second
    assert sorted(os.listdir(first)) == ["MR", "STS"]
    assert len(downloads) <= 2  # one, and the content delivery network's
    assert results.startswith(f"results/tinyllamas__stories260k/{commit[:18]}/x-")


@pytest.mark.parametrize(
    "member",
    ["../outside", "/absolute", "link"],
)
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
