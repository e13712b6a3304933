"""The SentEval data: an existing folder, or the archive on the Hub, downloaded once."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from huggingface_hub import cached_assets_path, hf_hub_download

from st_prompteol.failures import explain_opening
from st_prompteol.files.atomic import locked

REPOSITORY, ARCHIVE = "princeton-nlp/datasets-for-simcse", "senteval.tar"


def senteval_folder(data_dir: str | Path | None = None, *, token: str | None = None) -> Path:
    """Returns a folder in SentEval's layout.

    Args:
        data_dir: An existing folder. Defaults to None: `senteval.tar` of the dataset repository
            `princeton-nlp/datasets-for-simcse` is downloaded and unpacked into the cache, once.
        token: Hugging Face token. Defaults to None: the stored token.

    Raises:
        FileNotFoundError: If `data_dir` is not a folder, or the archive does not have this layout.
        ValueError: If a path in the archive points outside the folder.
        ConnectionError: If the archive is not in the cache and cannot be downloaded.

    Example:
        >>> senteval_folder("senteval").name  # without a folder, the archive is downloaded once
        'senteval'
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise FileNotFoundError(
                f"{str(data_dir)!r} is not a folder: pass one in SentEval's layout, or none to download the data."
            )
        return Path(data_dir)
    with explain_opening(REPOSITORY):
        archive = Path(hf_hub_download(REPOSITORY, ARCHIVE, repo_type="dataset", token=token))
    cache = cached_assets_path("st_prompteol", "senteval", archive.resolve().name)
    unpacked, staged = cache / "data", cache / "unpacking"
    with locked(cache):
        if not unpacked.exists():
            try:
                shutil.rmtree(staged, ignore_errors=True)  # left by a killed process
                unpack(archive, staged)
                os.rename(staged, unpacked)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    for folder in (unpacked, *sorted(path for path in unpacked.rglob("*") if path.is_dir())):
        if (folder / "STS").is_dir():
            return folder
    raise FileNotFoundError(f"{str(archive)!r} holds no folder STS: it is not the archive of SentEval's data.")


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive, refusing paths, links and devices that point outside the folder.

    Raises:
        ValueError: If the archive contains one, or is damaged; the caller then discards the unpacked files.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise ValueError(f"{str(archive)!r} is not safe to unpack: {error}.") from error
    except tarfile.ReadError as error:
        raise ValueError(f"{str(archive)!r} is damaged ({error}): delete it and run again.") from error
