"""Saving into a folder: stopped at every step, beside other files, on mounts, with modes, by several at once.

A stop is made by an audit hook: from the n-th change of the file system on, every further one fails, clean-up
included, as if the process were gone. A few real kills stand beside it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from st_prompteol import PromptEOL, lora_config
from st_prompteol.files.atomic import put_in_place, replacing_file
from st_prompteol.saved import saving
from st_prompteol.saved.saving import saving_into

from .helpers.oracles import assert_alike
from .helpers.processes import Forked, as_another_user, run_program
from .helpers.sentences import SENTENCES

SENTENCE = "A save into this folder was stopped before its end"
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink"}


class Gone(BaseException):
    """Nothing more is changed by this process."""


class Stop:
    """Counts changes of the file system in this thread, and lets none happen from a number on."""

    at: int | None = None
    seen = 0
    thread = 0

    @classmethod
    def hook(cls, event: str, arguments: tuple[object, ...]) -> None:
        if cls.at is None or threading.get_ident() != cls.thread:
            return
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if event in CHANGES or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            cls.seen += 1
            if cls.seen >= cls.at:
                raise Gone(event)


sys.addaudithook(Stop.hook)


@contextmanager
def stopped_at(number: int) -> Iterator[None]:
    Stop.at, Stop.seen, Stop.thread = number, 0, threading.get_ident()
    try:
        yield
    except Gone:
        pass
    finally:
        Stop.at = None


def canaries(folder: Path) -> list[Path]:
    """Files that no save writes, in and beside a folder, with the modes that they must keep."""
    inside = ["notes.txt", "checkpoint-5/model.safetensors", "1_Pooling/mine.txt", "2_mine/config.json", ".hidden"]
    paths = [
        *(folder / name for name in inside),
        folder.parent / "beside.txt",
        folder.parent / f".{folder.name}.x.tmp",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"canary {path.name}", encoding="utf-8")
        path.chmod(0o640)
    return paths


def are_whole(paths: list[Path]) -> bool:
    return all(
        path.read_text(encoding="utf-8") == f"canary {path.name}" and stat.S_IMODE(path.stat().st_mode) == 0o640
        for path in paths
    )


def standardized(path: str) -> PromptEOL:
    model = PromptEOL(path, template="prompt")
    model.standardize(SENTENCES)
    return model


def with_adapter(path: str) -> PromptEOL:
    model = PromptEOL(path)
    model.add_adapter(lora_config(r=2, init_lora_weights=False))
    return model


PAIRS = {
    "other weights and template": ("llama", PromptEOL, "other", standardized),
    "a full model to an adapter": ("llama", standardized, "llama", with_adapter),
    "an adapter to a full model": ("llama", with_adapter, "other", standardized),
}


@pytest.fixture(scope="module")
def bases(causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from .helpers.models import build_causal_lm

    return {"llama": causal_lms["llama"], "other": build_causal_lm(tmp_path_factory.mktemp("other"), "llama", seed=5)}


def read(opener: object, folder: Path) -> np.ndarray | str:
    """What a reader gets: embeddings, weights or token ids as numbers, or the message of its error."""
    try:
        opened = opener(str(folder))  # type: ignore[operator]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if hasattr(opened, "encode") and hasattr(opened, "similarity"):
        return opened.encode(SENTENCES)
    if hasattr(opened, "get_input_embeddings"):
        return opened.get_input_embeddings().weight.detach().numpy()
    return np.array(opened("A man sings")["input_ids"])


READERS = {
    "plain": SentenceTransformer,
    "weights": AutoModel.from_pretrained,
    "tokenizer": AutoTokenizer.from_pretrained,
    "ours": PromptEOL,
}


def check_stops(bases: dict[str, str], tmp_path: Path, pair: str, step: int) -> int:
    """Stops a save after every `step`-th change; returns how many changes there are."""
    first_base, first, second_base, second = PAIRS[pair]
    first(bases[first_base]).save_pretrained(str(tmp_path / "old"), create_model_card=False)
    new_model = second(bases[second_base])
    new_model.save_pretrained(str(tmp_path / "new"), create_model_card=False)
    expected = {name: [read(opener, tmp_path / side) for side in ("old", "new")] for name, opener in READERS.items()}
    assert not np.array_equal(*expected["plain"])
    target, number = tmp_path / "place" / "model", 1
    while True:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        shutil.copytree(tmp_path / "old", target)
        untouched = canaries(target)
        with stopped_at(number):
            new_model.save_pretrained(str(target), create_model_card=False)
        is_through = Stop.seen < number
        for name, opener in READERS.items():
            got = read(opener, target)
            if isinstance(got, str):
                assert SENTENCE in got, (name, number, got)
                assert name != "ours"
            else:
                assert any(np.array_equal(got, each) for each in expected[name]), (name, number)
        assert are_whole(untouched), number
        new_model.save_pretrained(str(target), create_model_card=False)  # the next save, whatever was left
        assert not list(target.glob(".saving-*")), number
        assert np.array_equal(read(SentenceTransformer, target), expected["plain"][1])
        own = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
        there = {path.relative_to(target) for path in target.rglob("*") if path.is_file() and path not in untouched}
        assert there == own, number
        assert are_whole(untouched), number
        if is_through:
            return number - 1
        number += step


def test_a_stopped_save_leaves_the_old_model_the_new_one_or_a_sentence(bases: dict[str, str], tmp_path: Path) -> None:
    check_stops(bases, tmp_path, "a full model to an adapter", step=23)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_it_does_at_every_step(bases: dict[str, str], tmp_path: Path, pair: str) -> None:
    assert check_stops(bases, tmp_path, pair, step=1) > 20


def stop_while_moving(model: PromptEOL, folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int = 4) -> None:
    """Saves, and stops when so many files have moved."""
    moved: list[Path] = []

    def move(staged: Path, target: Path, mode: int) -> None:
        if len(moved) == moves:
            raise Gone
        moved.append(target)
        put_in_place(staged, target, mode)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "put_in_place", move)
        with pytest.raises(Gone):
            model.save_pretrained(str(folder))


def test_one_that_cannot_be_finished_says_what_to_do(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PromptEOL(bases["llama"])
    model.save_pretrained(str(tmp_path))
    model.template = "prompt"
    stop_while_moving(model, tmp_path, monkeypatch)
    for staged in tmp_path.glob(".saving-*"):
        shutil.rmtree(staged)
    with pytest.raises(OSError, match=r"cannot be finished here \(its files in \.saving-\w+ are gone\): open the"):
        PromptEOL(str(tmp_path))
    model.save_pretrained(str(tmp_path))
    assert PromptEOL(str(tmp_path)).template == model.template


def test_no_files_are_taken_from_behind_a_link(bases: dict[str, str], tmp_path: Path) -> None:
    model, folder, away = PromptEOL(bases["llama"]), tmp_path / "model", tmp_path / "away"
    model.save_pretrained(str(away / "new"))
    folder.mkdir()
    (folder / ".saving-0123abcd").symlink_to(away)
    note = {"unfinished": {"staging": ".saving-0123abcd", "remove": []}}
    (folder / "modules.json").write_text(json.dumps([note]), encoding="utf-8")
    before = sorted(away.rglob("*"))
    model.save_pretrained(str(folder))
    assert sorted(away.rglob("*")) == before
    assert PromptEOL(str(folder)).template == model.template


def test_files_keep_their_mode_and_group_and_the_folder_its_own(bases: dict[str, str], tmp_path: Path) -> None:
    model, folder = PromptEOL(bases["llama"]), tmp_path / "model"
    folder.mkdir()
    folder.chmod(0o2770)
    old = os.umask(0o027)
    try:
        model.save_pretrained(str(folder))
    finally:
        os.umask(old)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}  # weights too, which safetensors makes 600
    (folder / "config.json").chmod(0o600)
    (folder / "model.safetensors").chmod(0o664)
    for path in (folder / "config.json", folder / "tokenizer.json"):
        os.chown(path, -1, os.getgroups()[-1] if os.getuid() else 33)
    before = {path: path.stat() for path in (folder, *files)}
    model.save_pretrained(str(folder))
    for path, was in before.items():
        now = path.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid), path


def test_the_working_directory_stays(bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PromptEOL(bases["llama"]).save_pretrained(".")
    assert "modules.json" in os.listdir(".")
    PromptEOL(".").save_pretrained("./")
    assert PromptEOL(".").encode("x").shape == (32,)


def test_links_are_replaced_and_what_they_lead_to_is_not_written(bases: dict[str, str], tmp_path: Path) -> None:
    model, folder, away = PromptEOL(bases["llama"]), tmp_path / "model", tmp_path / "away"
    (away / "pooling").mkdir(parents=True)
    (away / "weights").write_text("mine", encoding="utf-8")
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(away / "weights")
    (folder / "1_Pooling").symlink_to(away / "pooling")
    (tmp_path / "link").symlink_to("model")
    model.save_pretrained(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (away / "weights").read_text(encoding="utf-8") == "mine"
    assert not list((away / "pooling").iterdir())
    assert_alike(PromptEOL(str(folder)).encode(SENTENCES), model.encode(SENTENCES))


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "folder"), ("1_Pooling", "file"), (".", "file")])
def test_a_name_of_the_wrong_kind_is_refused_before_anything_moves(
    bases: dict[str, str], tmp_path: Path, name: str, kind: str
) -> None:
    model, folder = PromptEOL(bases["llama"]), tmp_path / "model"
    place = folder / name
    if name != ".":
        model.save_pretrained(str(folder))
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.mkdir() if kind == "folder" else place.write_text("mine", encoding="utf-8")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(OSError, match=r"rename it first|name one"):
        model.save_pretrained(str(folder))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def save_files(folder: Path, *names: str) -> None:
    """A save of files that hold "new"."""
    with saving_into(folder) as staged:
        for name in names:
            (staged / name).parent.mkdir(exist_ok=True)
            (staged / name).write_text("new", encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users reach too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        folder.mkdir()
        Path(name).chmod(0o755)
        yield folder


@pytest.mark.parametrize("in_the_way", ["config.json", "adapter_model.safetensors", "1_Pooling/config.json"])
def test_another_user_s_file_in_a_sticky_folder_is_refused_before_anything_moves(
    public: Path, in_the_way: str
) -> None:
    if os.geteuid():
        pytest.skip("needs another user")
    save_files(public, "modules.json", "config.json", "model.safetensors", "1_Pooling/config.json")
    (public / "modules.json").write_text('[{"path": "1_Pooling"}]', encoding="utf-8")
    (public / in_the_way).write_text("theirs", encoding="utf-8")
    public.chmod(0o1777)
    (public / "1_Pooling").chmod(0o1777)
    for path in contents(public):
        if path != in_the_way:
            os.chown(public / path, 65534, 65534)
    before = contents(public)
    with as_another_user(), pytest.raises(PermissionError, match=f"{in_the_way}' would be replaced or removed"):
        save_files(public, "modules.json", "config.json", "model.safetensors")
    assert contents(public) == before
    (public / in_the_way).unlink()
    (public / ".saving-0123abcd").mkdir(mode=0o700)  # what another user's save has left is left
    with as_another_user():
        save_files(public, "modules.json", "config.json", "model.safetensors")
    assert contents(public) == dict.fromkeys(("modules.json", "config.json", "model.safetensors"), "new")


def test_read_only_files_are_replaced_and_a_folder_that_cannot_be_listed_is_refused(public: Path) -> None:
    save_files(public, "modules.json", "config.json", "merges.txt")
    for path in contents(public):
        (public / path).write_text("[]", encoding="utf-8")
        (public / path).chmod(0o444)
    public.chmod(0o777)
    with as_another_user():
        with replacing_file(public / "config.json") as staged:
            staged.write_text("other", encoding="utf-8")
        save_files(public, "modules.json", "config.json")
    assert contents(public) == dict.fromkeys(("modules.json", "config.json"), "new")
    assert stat.S_IMODE((public / "config.json").stat().st_mode) == 0o444
    public.chmod(0o733)
    with as_another_user(), pytest.raises(PermissionError, match="A save lists and changes the files in"):
        save_files(public, "modules.json", "config.json")


def test_a_save_removes_what_belongs_to_the_model_in_the_folder(tmp_path: Path) -> None:
    mine = {"vocab.txt", "merges.txt", "pytorch_model.bin", "added_tokens.json"}
    for name in mine:
        (tmp_path / name).write_text("mine", encoding="utf-8")
    save_files(tmp_path, "modules.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    mine -= {"added_tokens.json"}  # which tokenizers would read
    assert {name for name, text in contents(tmp_path).items() if text == "mine"} == mine
    # what a tokenizer that is in tokenizer.json alone does not have is not the model's
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    save_files(tmp_path, "modules.json", "adapter_config.json")
    assert set(contents(tmp_path)) == {"modules.json", "adapter_config.json", "vocab.txt", "merges.txt"}
    save_files(tmp_path, "modules.json", "adapter_config.json")
    assert set(contents(tmp_path)) == {"modules.json", "adapter_config.json"}


def save_often(base: str, template: str, folder: str) -> None:
    model = PromptEOL(base, template=template)
    for _ in range(6):
        model.save_pretrained(folder, create_model_card=False)


@pytest.mark.slow
def test_a_reader_of_ours_gets_one_model_or_a_sentence_while_two_save(bases: dict[str, str], tmp_path: Path) -> None:
    """Two savers in processes of their own, this process reading all the time: each model is one of the two."""
    models = [PromptEOL(bases["llama"], template="prompt"), PromptEOL(bases["other"], template="prompteol")]
    expected = [model.encode(SENTENCES) for model in models]
    models[0].save_pretrained(str(tmp_path / "model"))
    savers = [
        Forked(save_often, bases[base], template, str(tmp_path / "model"))
        for base, template in (("llama", "prompt"), ("other", "prompteol"))
    ]
    seen = set()
    while any(saver.poll() is None for saver in savers):
        try:
            got = PromptEOL(str(tmp_path / "model")).encode(SENTENCES)
        except OSError as error:
            assert "was saved into while it was opened: open it again" in str(error)  # noqa: PT017
            continue
        which = [number for number, each in enumerate(expected) if np.allclose(got, each, atol=1e-5)]
        assert len(which) == 1
        seen.update(which)
    printed = [saver.communicate() for saver in savers]
    assert [saver.returncode for saver in savers] == [0, 0], printed
    assert seen <= {0, 1}
    assert not list((tmp_path / "model").glob(".saving-*"))


def save_forever(target: Path) -> None:
    for number in itertools.count():
        with saving_into(target) as folder:
            (folder / "modules.json").write_text(f'[{{"path": "", "round": {number}}}]', encoding="utf-8")
            for name in ("config.json", "tokenizer.json", "merges.txt", "model.safetensors"):
                (folder / name).write_text(str(number), encoding="utf-8")
        if number == 3:
            os.write(1, b"ready\n")


@pytest.mark.slow
def test_killed_at_any_moment_the_folder_is_whole_or_says_so(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for pause in (0.0, 0.003, 0.01, 0.02, 0.05, 0.1):
        process = Forked(save_forever, target)
        assert process.output.readline() == "ready\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        saving.finish_saving(target)
        read = {path.name: path.read_text(encoding="utf-8") for path in target.iterdir() if path.is_file()}
        number = read.pop("modules.json").partition("round")[2].strip('": }]')
        assert set(read.values()) == {number}
        with saving_into(target) as folder:
            (folder / "modules.json").write_text("[]", encoding="utf-8")
        assert os.listdir(target) == ["modules.json"]


@pytest.mark.slow
def test_mounts(bases: dict[str, str], tmp_path: Path) -> None:
    for name in ("root/point", "root/outer/checkpoint-1", "root/outer/1_Pooling", "root/small"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/bound.json").write_text("{}", encoding="utf-8")
    (tmp_path / "root/outer/config.json").touch()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/state").write_text("mine", encoding="utf-8")
    mounts = """
set -e
cd "$1"; shift
mount --bind root root; mount --bind root/outer root/outer
mount -t tmpfs none root/point; mount -t tmpfs none root/outer/1_Pooling; mount -t tmpfs -o size=300k none root/small
mount --bind one root/outer/checkpoint-1
mount --bind root/bound.json root/outer/config.json
mount -o remount,ro,bind root
"""
    inside = ["unshare", "--mount", "sh", "-c", mounts + 'exec "$@"', "sh", str(tmp_path)]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("needs to mount file systems")
    run_program("save_on_mounts", str(tmp_path / "root"), bases["llama"], inside=inside)


class TestFiles:
    """The same for a file alone."""

    def test_it_keeps_its_mode_and_what_was_left_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "out.npy"
        path.write_bytes(b"old")
        path.chmod(0o600)
        left = [tmp_path / f".out.npy.{number}abcdef0.tmp" for number in range(2)]
        others = [tmp_path / name for name in (".out.npy.tmp", ".other.npy.0abcdef0.tmp", "out.npy.0abcdef0.tmp")]
        for each in (*left, *others):
            each.touch()
        with replacing_file(path) as staged:
            assert stat.S_IMODE(staged.stat().st_mode) == 0o600
            staged.write_bytes(b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sorted(tmp_path.iterdir()) == sorted([path, *others])

    def test_a_second_writer_leaves_what_the_first_has_staged(self, tmp_path: Path) -> None:
        path = tmp_path / "out.npy"
        with replacing_file(path) as first:
            first.write_bytes(b"first")
            with replacing_file(path) as second:
                second.write_bytes(b"second")
            assert path.read_bytes() == b"second"
        assert path.read_bytes() == b"first"
        assert os.listdir(tmp_path) == ["out.npy"]

    def test_a_device_is_written_to(self) -> None:
        with replacing_file("/dev/null") as staged:
            staged.write_bytes(b"x")
        assert not Path("/dev/null").is_file()
