"""Crash-safe saving of a model to a folder: a reader loads the old model, the new one, or gets a clear error.

A save writes the whole model to a staging folder inside the folder, then moves its files to their final paths.
Meanwhile the files that are read first (`modules.json`, `config.json`, `adapter_config.json`) contain a message in
place of a configuration, which appears in the error of every reader. They are replaced with the new configurations at
the end, `modules.json` last. If the process is killed in between, the next load of the folder with `PromptEOL`, or the
next save to it, completes the move. Only files that a save writes are changed, and nothing outside the folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from st_prompteol.files.atomic import can_put, can_remove, is_allowed, is_locked, locked, put_in_place

# The files of a model. If the folder has one, those that the new model does not have are removed. All other files in
# the folder (a trainer's optimizer state, checkpoints, a README if none is written) are kept.
SAVED_NAMES = re.compile(
    r"(modules|config(_sentence_transformers)?|sentence_\w+_config|generation_config|adapter_config|tokenizer(_config)?"
    r"|special_tokens_map|added_tokens|vocab|(pytorch_)?model\.(safetensors|bin)\.index)\.json"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors|adapter_model\.bin|pytorch_model(-\d+-of-\d+)?\.bin"
    r"|chat_template\.jinja|merges\.txt|tokenizer\.model|vocab\.txt"
)
MODULE_FOLDER = re.compile(r"\d+_\w+")
_MODULE_NAMES = ("config.json", "model.safetensors", "pytorch_model.bin")  # in a module's folder
_MODULES = "modules.json"
_READ_WITH_TOKENIZERS = ("added_tokens.json", "special_tokens_map.json")  # by transformers, beside tokenizer.json
_VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
_ENTRIES = ("adapter_config.json", "config.json", _MODULES)  # the files read first, in the order of moving
_STAGING = re.compile(r"\.saving-[0-9a-f]{8}")
_UNFINISHED = (  # without a period, at which sentence-transformers would split it
    "A save into this folder was stopped before its end: open the folder once with PromptEOL, which finishes it, or "
    "save into it again"
)


@contextmanager
def saving_into(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty staging folder to save a model to; its files are moved to `path` when the block ends.

    If the block fails, the folder `path` is unchanged. Concurrent saves wait for each other while files are moved.

    Args:
        path: The folder to write to; created if it does not exist.

    Raises:
        OSError: If a file cannot be written, replaced or removed, or a file is in the place of a folder or the other
            way round.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{os.fspath(path)!r} is a file, but a model is saved into a folder: name one.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not is_allowed(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(
            f"A save lists and changes the files in {os.fspath(path)!r}, which you may not: allow it (chmod u+rwx), "
            "or name another folder."
        )
    staging = folder / f".saving-{secrets.token_hex(4)}"
    moving = False
    with ExitStack() as stack:
        with locked(folder):  # clean-ups of killed saves wait until the staging folder is locked
            staging.mkdir(mode=0o700)
            stack.enter_context(locked(staging))
        try:
            (staging / "new").mkdir()
            yield staging / "new"
            _check_places(folder, staging / "new")
            with locked(folder):
                with suppress(FileNotFoundError, PermissionError):  # the remains are gone, or another user's
                    _finish(folder)
                remove = _superseded(folder, staging / "new")
                _check_permissions(folder, staging / "new", remove)
                _write_notes(staging, remove)
                moving = True
                _move(folder, staging, remove)
                _remove_left_behind(folder)
        finally:
            if not moving:
                shutil.rmtree(staging, ignore_errors=True)
                if is_new:
                    with suppress(OSError):
                        folder.rmdir()


@contextmanager
def reading_from(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Ensures that all files read from a folder belong to one model; completes an interrupted save first.

    Args:
        path: The folder; a Hub id or None is ignored.

    Raises:
        OSError: If an interrupted save cannot be completed, or another save changes the folder during the block.
    """
    if path is None or not os.path.isdir(path):
        yield
        return
    finish_saving(path)
    begun, failure = _stamp(path), None
    try:
        yield
    except Exception as error:
        if _stamp(path) == begun:
            raise
        failure = error
    if _stamp(path) != begun:
        raise OSError(f"{os.fspath(path)!r} was saved into while it was opened: open it again.") from failure


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Returns the inode and modification time of `modules.json`, which every save changes first and last."""
    try:
        state = os.stat(Path(path, _MODULES))
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def finish_saving(path: str | os.PathLike[str]) -> None:
    """Completes an interrupted save, if there is one.

    Raises:
        OSError: If its files cannot be moved or are gone.
    """
    folder = Path(path)
    if _unfinished(folder) is None:
        return
    try:
        with locked(folder):
            _finish(folder)
    except OSError as error:
        raise OSError(
            f"A save into {os.fspath(path)!r} was stopped before its end and cannot be finished here ({error}): open "
            "the folder where it can be written to, or save into it again."
        ) from error


def remove_left_behind(path: str | os.PathLike[str]) -> None:
    """Removes the remains of interrupted saves from a folder, unless they are needed to complete a save."""
    with locked(path):
        if _unfinished(Path(path)) is None:
            _remove_left_behind(Path(path))


def _finish(folder: Path) -> None:
    if (stopped := _unfinished(folder)) is not None:
        staging = folder / stopped["staging"]
        if not (_is_folder(staging) and (staging / "new" / _MODULES).is_file()):
            raise FileNotFoundError(f"its files in {stopped['staging']} are gone")
        _write_notes(staging, stopped["remove"])
        _move(folder, staging, stopped["remove"])


def _unfinished(folder: Path) -> dict[str, Any] | None:
    """Returns the record of an interrupted save: its staging folder, and the old files to remove."""
    first = _look_up(folder / _MODULES, 0, "unfinished")
    is_note = isinstance(first, dict) and _STAGING.fullmatch(str(first.get("staging")))
    return first if is_note and all(map(is_saved, first.get("remove", [".."]))) else None


def _write_notes(staging: Path, remove: list[str]) -> None:
    """Writes the files to show while others are moved: valid JSON that fails with the same message in every reader."""
    modules = {"idx": 0, "name": "0", "path": "", "type": f"sentence_transformers.{_UNFINISHED}"}
    notes: dict[str, Any] = {
        _MODULES: [{**modules, "unfinished": {"staging": staging.name, "remove": remove}}],
        "config.json": {"model_type": _UNFINISHED},
        "adapter_config.json": {"peft_type": _UNFINISHED, "base_model_name_or_path": _UNFINISHED},
    }
    (staging / "notes").mkdir(exist_ok=True)
    for name, note in notes.items():
        (staging / "notes" / name).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _move(folder: Path, staging: Path, remove: list[str]) -> None:
    """Moves a staged model to its final folder. Resumable: repeated after an interruption, it completes the move."""
    new, notes = staging / "new", staging / "notes"
    mode = new.stat().st_mode & 0o666  # safetensors creates files that only their owner can read
    put_in_place(notes / _MODULES, folder / _MODULES, mode)
    for name in _ENTRIES:
        if name != _MODULES and (folder / name).exists() and ((new / name).exists() or name in remove):
            put_in_place(notes / name, folder / name, mode)
    for name in remove:
        if name not in _ENTRIES:
            _remove(folder, name)
    for path in sorted(new.rglob("*")):
        place = folder / path.relative_to(new)
        if path.is_dir():
            if place.is_symlink():  # its target is outside this folder
                place.unlink()
            place.mkdir(exist_ok=True)
        elif path.relative_to(new).as_posix() not in _ENTRIES:
            put_in_place(path, place, mode)
    *configs, modules = _ENTRIES
    for name in configs:
        if (new / name).exists():
            put_in_place(new / name, folder / name, mode)
    for name in configs:  # afterwards: without any of them, readers would miss the sentence
        if name in remove:
            _remove(folder, name)
    put_in_place(new / modules, folder / modules, mode)
    shutil.rmtree(staging, ignore_errors=True)


def _superseded(folder: Path, new: Path) -> list[str]:
    """Returns the relative paths of files of the folder's model that the new model does not have."""
    names = [entry.name for entry in folder.iterdir() if SAVED_NAMES.fullmatch(entry.name) and not _is_folder(entry)]
    if not set(_ENTRIES) & set(names):  # no model, so these files are of something else
        names = [name for name in names if name in _READ_WITH_TOKENIZERS]
    elif _look_up(folder / "tokenizer_config.json", "tokenizer_class") == "PreTrainedTokenizerFast":
        # the tokenizer is in `tokenizer.json` alone, as saves write it, and vocabularies are of something else
        names = [name for name in names if name not in _VOCABULARIES]
    names += [
        f"{module}/{name}"
        for module in _module_folders(folder)
        for name in _MODULE_NAMES
        if (folder / module / name).is_file()
    ]
    templates = folder / "additional_chat_templates"
    names += [f"{templates.name}/{path.name}" for path in templates.glob("*.jinja") if not _is_folder(path)]
    return sorted(name for name in names if not (new / name).exists())


def _module_folders(folder: Path) -> list[str]:
    listed = _look_up(folder / _MODULES)
    modules = listed if isinstance(listed, list) else []
    paths = [str(module.get("path")) for module in modules if isinstance(module, dict)]
    return [path for path in paths if MODULE_FOLDER.fullmatch(path) and _is_folder(folder / path)]


def _look_up(path: Path, *keys: int | str) -> Any:
    """Returns a value of a JSON file; None if there is no such value or file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return value


def is_saved(name: Any) -> bool:
    """Whether a save may remove the file with this relative path."""
    *parents, last = str(name).split("/")
    if not parents:
        return SAVED_NAMES.fullmatch(last) is not None
    of_module = bool(MODULE_FOLDER.fullmatch(parents[0])) and last in _MODULE_NAMES
    return len(parents) == 1 and (of_module or (parents[0] == "additional_chat_templates" and last.endswith(".jinja")))


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if "/" in name:
        with suppress(OSError):  # the folder is not empty
            (folder / name).parent.rmdir()


def _check_places(folder: Path, new: Path) -> None:
    """Raises OSError if a folder exists at the path of a new file, or the other way round."""
    for path in sorted(new.rglob("*")):
        place = folder / path.relative_to(new)
        if path.is_dir() and place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{str(place)!r} is a file, and a save needs a folder there: rename it first.")
        if not path.is_dir() and _is_folder(place):
            raise IsADirectoryError(f"{str(place)!r} is a folder, and a save needs a file there: rename it first.")


def _check_permissions(folder: Path, new: Path, remove: list[str]) -> None:
    """Raises PermissionError if a file could not be written, replaced or removed, before the first one moves."""
    places = [folder / path.relative_to(new) for path in sorted(new.rglob("*"))]
    # in a folder that is missing or a link, which the new one replaces, nothing is in the way
    closed = [path for path in places if _is_folder(path.parent) and not _is_folder(path) and not can_put(path)]
    closed += [path for path in (folder / name for name in remove) if not can_remove(path)]
    if closed:
        raise PermissionError(
            f"{str(closed[0])!r} would be replaced or removed by this save, which you may not: have its owner remove "
            "it, or name another folder; nothing was changed."
        )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_left_behind(folder: Path) -> None:
    for entry in folder.iterdir():
        if _STAGING.fullmatch(entry.name) and _is_folder(entry) and not is_locked(entry):
            shutil.rmtree(entry, ignore_errors=True)
