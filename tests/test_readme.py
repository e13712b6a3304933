"""Every code block and command of the README runs and prints what it says, on tiny stand-ins for the named models."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

from st_prompteol import PromptEOL
from st_prompteol.cli import app

from .conftest import build_senteval, build_tokenizer
from .hubserver import Hub
from .test_adapters import publish_adapter
from .test_demonstrations import write_wordnet
from .test_evaluation_data import hub_environment

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's names are folders: an OPT of one block and 768 numbers, and an adapter for it."""
    base = tmp_path / "facebook/opt-125m"
    tokenizer = build_tokenizer(base)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        ffn_dim=32,
        max_position_embeddings=256,
        word_embed_proj_dim=768,
    )
    OPTForCausalLM(config).save_pretrained(base)
    publish_adapter(str(base), tmp_path / "my-adapter")
    (tmp_path / "sentences.txt").write_text("One sentence.\nAnother one.\n", encoding="utf-8")
    build_senteval(tmp_path / "senteval")
    write_wordnet(tmp_path / "wordnet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_print_what_their_comments_say(stand_ins: Path) -> None:
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 4
    for block in blocks("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        expected = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        assert printed.getvalue().splitlines() == expected


def test_commands_run(stand_ins: Path) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("st-prompteol")]
    shown = {shlex.split(command)[1] for command in commands}
    groups = {group.name for group in app.registered_groups}
    assert shown == {command.callback.__name__ for command in app.registered_commands if command.callback} | groups
    for command in commands:
        if command.startswith("st-prompteol push"):
            continue  # needs a Hub, see below
        smaller = ["--dictionary-count", "3"] if "demonstrations build" in command else []  # of a tiny WordNet
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], *smaller])
        assert result.exit_code == 0, (command, result.output)
    assert os.path.getsize("embeddings.npy") > 0


@pytest.mark.slow
def test_push_commands_run(stand_ins: Path) -> None:
    PromptEOL("facebook/opt-125m").save_pretrained("opt-125m-prompteol")
    commands = [line for block in blocks("bash") for line in block.splitlines() if "push" in line]
    hub = Hub(tokens={"hf_token": "user"})
    hub.seed("model", "facebook/opt-125m", stand_ins / "facebook/opt-125m")
    with hub:
        environment = {**hub_environment(hub.url, stand_ins / "home"), "HF_TOKEN": "hf_token", "PYTHONPATH": str(ROOT)}
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-c", "from st_prompteol.cli import app; app()", *shlex.split(command)[1:]],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert {name for _, name in hub.repos} == {"facebook/opt-125m", "user/my-adapter", "user/my-merged-model"}


def test_the_tree_is_the_tree() -> None:
    picture = blocks("text")[0]
    listed = set(re.findall(r"^  (\S+\.py|\w+/)", picture, flags=re.MULTILINE))
    rooms = {path.name for path in (ROOT / "st_prompteol").glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.parent.name}/" for path in (ROOT / "st_prompteol").glob("*/__init__.py")}
    assert listed == rooms


def test_links_lead_to_files_that_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
