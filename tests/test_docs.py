"""Every code block and command of README.md and docs/ runs and prints what it says, on stand-ins for large models.

Blocks run in order in one folder per page, as a reader would, in a process of their own with a Hub on loopback, among
the slow tests. The README is also run quickly, in this process, without what needs a Hub or takes long.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import huggingface_hub
import pytest
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

from st_prompteol import TINY
from st_prompteol.cli import app
from st_prompteol.evaluation.published import DEMONSTRATIONS, PUBLISHED
from st_prompteol.evaluation.score_table import SHORT_NAMES
from training import train

from . import ROOT
from .helpers.hub import Hub, hub_environment
from .helpers.models import publish_adapter
from .helpers.processes import Program
from .helpers.real import find_real_llm
from .helpers.searches import write_wordnet
from .helpers.senteval import build_senteval
from .helpers.tokenizers import build_tokenizer

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# fenced blocks, and commands in the running text
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```|`(python [^`]+)`", flags=re.MULTILINE | re.DOTALL)
# what a reader does once and a test must not, and what takes a GPU, a cloud or many environments, or never ends
NOT_RUN = re.compile(
    r"pip install |hf auth login|make gpu|ray (up|submit) |(st-prompteol|vllm) serve |"
    r"python -m benchmarks\.(clients|families|peers)"
)
NEEDS_HUB_OR_TIME = re.compile(r"push|--mteb|--config")
TRIPLETS = "examples/triplets.tsv"
# the same commands on less data
SMALLER = {
    r"--task (sts|all)\b": "--task STSBenchmark",
    r"(st-prompteol candidates .*)": r"\1 --dictionary-count 3",
    r"(python training/train\.py .*)": rf"\1 --train_file {TRIPLETS} --per_device_train_batch_size 8"
    " --max_steps 2 --warmup_steps 0 --eval_strategy no",
    r"(python -m benchmarks\.speed\.encode .*)": r"\1 --model toy --count 4 --rounds 1 --dtype float32"
    " --demonstrations 1",
    r"(python -m benchmarks\.speed\.encode .*--scaling) .*": r"\1 8 --model toy --dtype float32 --count 4 --calls 1",
    r"(python -m benchmarks\.speed\.train .*)": r"\1 --model toy --batches 2/1 2 --steps 1",
    r"(python -m benchmarks\.speed\.corpus .*)": r"\1 --rows 8 --workers 1 --fragment-rows 4",
    r"(python -m benchmarks\.recipes .*)": r"\1 --tasks STSBenchmark",
    r"(python -m benchmarks\.speed\.serve .*)": r"\1 --count 32 --clients 1 8",
    r"(python -m benchmarks\.speed\.search .*)": r"\1 --sentences 4 --reference-sentences 4 --candidates 1",
}
OFFLINE = {r"(st-prompteol evaluate (?!.*--data-dir).*)": r"\1 --data-dir senteval"}
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
NUMBER = re.compile(r"-?\d+\.\d*")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yields the language and the text of each block of a page; text right below commands is called output."""
    text, end, last = (ROOT / page).read_text(encoding="utf-8"), 0, ""
    for match in BLOCK.finditer(text):
        language, block, command = match.groups()
        is_output = language == "text" and last == "bash" and not text[end : match.start()].strip()
        end, last = match.end(), language
        if command:
            yield "bash", " ".join(command.split())
        else:
            yield "output" if is_output else language, block


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for words in (shlex.split(line, comments=True) for line in lines) if words]


def shown_commands(page: str) -> list[list[str]]:
    """All commands of a page, in words."""
    lines = (line for language, block in blocks(page) if language == "bash" for line in commands(block))
    return [shlex.split(line) for line in lines]


def is_printed(expected: str, printed: str) -> bool:
    """Whether a line is what a page says, numbers with a decimal point to two digits, all else to the character."""
    if [part.split() for part in NUMBER.split(expected)] != [part.split() for part in NUMBER.split(printed)]:
        return False
    return all(map(is_close, numbers_of(expected), numbers_of(printed)))


def numbers_of(line: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(line)]


def is_close(expected: float, printed: float) -> bool:
    """Whether two numbers have the same sign, and differ by at most one in the second digit, or in that of 0.1."""
    unit = 10 ** (math.floor(math.log10(abs(expected))) - 1) if expected else 0.0
    return expected * printed >= 0 and abs(expected - printed) <= 1.001 * max(unit, 0.01)


def keeps_order(expected: list[float], printed: list[float]) -> bool:
    """Whether of every two numbers the same is the larger one."""
    pairs = list(combinations(zip(expected, printed, strict=True), 2))
    return all((one - other) * (first - second) > 0 for (one, first), (other, second) in pairs if one != other)


def run_python(block: str, page: str, names: dict[str, object], *, exact: bool) -> None:
    """Runs a block, which prints what it says; numbers of models that were trained for less than it says are free."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, page, "exec"), names)
    expected = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    lines = printed.getvalue().splitlines()
    assert len(lines) == len(expected), lines
    if not exact:
        assert [NUMBER.sub("", line).split() for line in lines] == [NUMBER.sub("", line).split() for line in expected]
        return
    assert all(map(is_printed, expected, lines)), lines
    assert keeps_order(numbers_of(" ".join(expected)), numbers_of(" ".join(lines))), lines


def run_command(command: str) -> str:
    """Runs a command as a shell would and returns what it prints; one that this test does not know is an error."""
    program, *arguments = shlex.split(command)
    if program == "st-prompteol":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.output
    assert program == "python", f"unknown command: {command}"
    if arguments[0] == "training/train.py":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            train.main(arguments[1:])
        return printed.getvalue()
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr[-3000:])
    return done.stdout + done.stderr


def run_page(page: str, *, wholly: bool, stand_ins: Sequence[str] = (SMOLLM2,)) -> None:
    """Runs the blocks of a page in the current folder; numbers of a stand-in are free."""
    names: dict[str, object] = {}
    output: list[str] = []  # of the last commands
    shortened: set[str] = set()  # folders of models that were trained for less than the page says
    for language, block in blocks(page):
        if language == "python":
            run_python(block, page, names, exact=not any(name in block for name in {*shortened, *stand_ins}))
        elif language == "output":
            rest, found = iter(output), []
            for line in block.splitlines():
                found.append(next((printed for printed in rest if is_printed(line, printed)), None))
                assert found[-1] is not None, (line, output)
            assert keeps_order(numbers_of(block), numbers_of(" ".join(map(str, found)))), output
        elif language == "bash":
            output = []
            for command in commands(block):
                if NOT_RUN.match(command) or (not wholly and NEEDS_HUB_OR_TIME.search(command)):
                    continue
                is_small = wholly and f"--train_file {TRIPLETS}" in command
                for pattern, replacement in {**({} if is_small else SMALLER), **({} if wholly else OFFLINE)}.items():
                    command = re.sub(pattern, replacement, command)
                if "training/train.py" in command and not is_small:
                    shortened |= set(re.findall(r"--output_dir (\S+)", command))
                output += run_command(command).splitlines()


@pytest.mark.parametrize(
    ("expected", "printed", "is_same"),
    [
        (["tiny 0.59", "runs/mine 0.62"], ["tiny 0.592", "runs/mine 0.618"], True),
        (["tiny 0.59", "runs/mine 0.62"], ["tiny 0.62", "runs/mine 0.59"], False),  # within 0.3, and reversed
        (["tiny 0.59", "runs/mine 0.60"], ["tiny 0.60", "runs/mine 0.59"], False),  # within 0.01, and reversed
        (["gain 0.05"], ["gain -0.05"], False),
        (["a 67.46"], ["a 67.6"], True),
        (["a 67.46"], ["a 69.6"], False),
        (["a 3"], ["a 4"], False),
        (["[1. 0.8 0.1]"], ["[1.  0.8 0.1]"], True),
    ],
)
def test_numbers_are_compared_by_what_they_claim(expected: list[str], printed: list[str], is_same: bool) -> None:
    lines = all(map(is_printed, expected, printed))
    order = keeps_order(numbers_of(" ".join(expected)), numbers_of(" ".join(printed)))
    assert (lines and order) is is_same


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's checkout, in which the names that the pages take from the Hub are small folders."""
    base = tmp_path / "facebook/opt-125m"
    tokenizer = build_tokenizer(base)
    tokenizer.pad_token = "</s>"  # OPT has one, and benchmarks pad as the reference does
    tokenizer.save_pretrained(base)
    sizes = {"num_hidden_layers": 2, "ffn_dim": 64, "max_position_embeddings": 256, "word_embed_proj_dim": 768}
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(base)
    publish_adapter(str(base), tmp_path / "my-adapter")
    stand_in = tmp_path / SMOLLM2
    tokenizer.save_pretrained(stand_in)
    sizes |= {"hidden_size": 576, "word_embed_proj_dim": 576}
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(stand_in)
    build_senteval(tmp_path / "senteval")
    write_wordnet(tmp_path / "wordnet")
    for name in ("sts-b-dev.txt", "nli-sentences.txt", "film-reviews.txt"):
        (tmp_path / name).write_text("".join(f"{n} birds sing.\n" for n in range(9)), encoding="utf-8")
    (tmp_path / "texts").mkdir()
    rows = ({"id": number, "text": f"{number} birds sing."} for number in range(9))
    (tmp_path / "texts/a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for name in ("examples", "training", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny-base").symlink_to(TINY)
    (tmp_path / "stories260k").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_readme_runs_offline(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run_page("README.md", wholly=False)


@pytest.mark.real
@pytest.mark.slow
def test_the_first_screen_is_true_of_a_real_llm(reader: Path) -> None:
    shutil.rmtree(reader / SMOLLM2)
    (reader / SMOLLM2).symlink_to(find_real_llm("smollm2-135m"))
    names: dict[str, object] = {}
    python = [block for language, block in blocks("README.md") if language == "python"]
    assert SMOLLM2 in python[0]
    for block in python[:2]:
        run_python(block, "README.md", names, exact=True)


@pytest.fixture(scope="module")
def hub(shared: Path) -> Iterator[Hub]:
    with Hub(tokens={"hf_token": "user"}) as hub:
        hub.seed_root(shared / "hub", json.loads((shared / "hub/revisions.json").read_text(encoding="utf-8")))
        yield hub


@pytest.fixture(scope="module")
def online(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A process whose Hub is the one on loopback, for all pages: importing everything takes ten seconds."""
    environment = {**hub_environment(hub.url, tmp_path_factory.mktemp("home")), "HF_TOKEN": "hf_token"}
    program = Program("reader", env={**environment, "PYTHONPATH": str(ROOT)})
    yield program
    program.close()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.long] * (page == "docs/benchmarks.md")) for page in PAGES]
)
def test_a_page_runs_wholly(page: str, reader: Path, hub: Hub, online: Program) -> None:
    archived = reader / "archived"
    archived.mkdir()
    with tarfile.open(archived / "senteval.tar", "w") as tar:
        tar.add(reader / "senteval", "data")
    hub.seed("model", "facebook/opt-125m", reader / "facebook/opt-125m")
    hub.seed("dataset", "princeton-nlp/datasets-for-simcse", archived)
    online.call("read", page, str(reader))
    pushed = {word for command in shown_commands(page) if command[1] == "push" for word in command}
    found = {key for key in hub.repos if key[1].startswith("user/")}
    assert {name for _, name in found} == {word for word in pushed if word.startswith("user/")}
    for key in found:
        del hub.repos[key]


def test_all_commands_are_shown() -> None:
    shown = {command[1] for command in shown_commands("README.md") if command[0] == "st-prompteol"}
    groups = {group.name for group in app.registered_groups}
    assert shown == {command.callback.__name__ for command in app.registered_commands if command.callback} | groups


def test_what_is_installed_can_be() -> None:
    extras = set(importlib.metadata.metadata("st-prompteol").get_all("Provides-Extra") or ())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for names in re.findall(r"pip install '[\w.-]*\[([\w,]+)\]'", text):
            assert set(names.split(",")) <= extras, (page, names)
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in targets, (page, target)


def messages() -> set[str]:
    """All texts of the library, with `…` for what is filled in."""
    texts = set()
    for path in (ROOT / "st_prompteol").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"%[srd]|\{\w+\}", "…", node.value))
    return texts


def test_messages_that_are_quoted_are_those_of_the_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    symptoms = re.findall(r"^\| (.*?) \|", page, flags=re.MULTILINE)
    quoted = [span for symptom in symptoms for span in re.findall(r"`([^`]*)`", symptom) if " " in span]
    assert len(quoted) >= 15
    texts = messages()
    for message in quoted:
        assert any(message.removesuffix("…").strip() in text for text in texts), message


def test_published_numbers_are_those_of_the_paper() -> None:
    page = (ROOT / "docs/choosing-a-base-model.md").read_text(encoding="utf-8")
    published = {(row.model, row.method): row.average("STS avg") for row in PUBLISHED}
    shown = {
        (cells[0].strip("`"), f"PromptEOL + {method} (published)"): float(score)
        for cells in (re.split(r" *\| ?", line)[1:-1] for line in page.splitlines() if line.startswith("| `"))
        for method, score in zip(("demonstration", "CSE"), cells[5:7], strict=False)
        if len(cells) == 8 and score
    }
    assert len(shown) == 15
    assert shown.items() <= published.items()
    sentences = re.findall(r"^\| OPT-(\S+) \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert sentences == [
        (name.removeprefix("facebook/opt-").upper(), shot.sentence, shot.word) for name, shot in DEMONSTRATIONS.items()
    ]


def test_the_packaged_model_s_numbers_are_those_of_its_results() -> None:
    """The pages show what the results files hold, to the last digit shown."""
    lines = (ROOT / "docs/results.md").read_text(encoding="utf-8").splitlines()
    results = (ROOT / "hub_cards/st-prompteol__prompteol-tiny/evaluation").rglob("*.json")
    scores = {path.stem: json.loads(path.read_text(encoding="utf-8"))["score"] for path in results}
    shown = 0
    for number, line in enumerate(lines):
        cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
        if not cells or not re.fullmatch(r"(PromptEOL, fine-tuned, layer -2: )?`tiny`", cells[0]):
            continue
        header = next(one for one in reversed(lines[:number]) if set(lines[lines.index(one) + 1]) <= set("|-: "))
        for task, cell in zip((cell.strip(" *") for cell in header.split("|")[1:-1]), cells, strict=True):
            name = {short: long for long, short in SHORT_NAMES.items()}.get(task, task)
            if name in scores:
                assert cell == f"{scores[name]:.2f}", task
                shown += 1
    assert shown >= 14


def test_the_readme_is_read_in_one_go() -> None:
    assert len(README.splitlines()) < 200


def test_the_tree_is_the_tree() -> None:
    picture = next(block for language, block in blocks("CONTRIBUTING.md") if block.startswith("st_prompteol/"))
    listed = set(re.findall(r"^  (\S+\.py|\w+/)", picture, flags=re.MULTILINE))
    rooms = {path.name for path in (ROOT / "st_prompteol").glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.parent.name}/" for path in (ROOT / "st_prompteol").glob("*/__init__.py")}
    assert listed == rooms


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_there(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", (ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path = ROOT / page if not target else (ROOT / page).parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, (target, anchor)


def test_every_page_is_linked_from_the_readme() -> None:
    assert all(f"({page})" in README for page in PAGES[1:])
