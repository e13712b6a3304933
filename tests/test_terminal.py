"""What a person sees on a terminal, in a pipe and in a log; how a command ends when it is stopped or cut off."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from st_prompteol import PromptEOL, __version__
from st_prompteol.cli import app, similarity, terminal
from st_prompteol.cli.signals import ending_on_sigterm
from st_prompteol.files.output import duration, one_line, to_text

from .helpers.processes import Forked, command_line
from .helpers.searches import write_search

ODD = [
    "A jockey riding a horse.",
    "[bold]markup[/bold] [/] [link=x]",
    "two\nlines\tand a tab",
    "日本語の文です",
    "ein Satz mit Umlaut ü",
    "👨‍👩‍👧 family",
    "\x1b[31mred\x1b[0m",
    "word " * 60,
    "\udcff surrogate",
    "",
    "a|b",
    "x",
]


def run(*arguments: str, columns: int = 40) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("count", [12, 40])
def test_similarity_keeps_every_number_whole_in_a_pipe(causal_lms: dict[str, str], count: int) -> None:
    sentences = [*ODD, *(f"sentence {number}" for number in range(28))][:count]
    lines = run("similarity", causal_lms["opt"], *sentences).splitlines()
    model = PromptEOL(causal_lms["opt"])
    embeddings = model.encode(sentences)
    expected = [[f"{value:.4f}" for value in row] for row in model.similarity(embeddings, embeddings).tolist()]
    listed, matrix = lines[1 : count + 1], lines[count + 3 :]
    assert [line.split()[1:] for line in matrix] == expected
    assert len({len(line) for line in matrix}) == 1
    for number, (line, sentence) in enumerate(zip(listed, sentences, strict=True), start=1):
        assert re.fullmatch(rf"{number} *{re.escape(one_line(sentence).rstrip())}", line)
    assert "\x1b" not in "".join(lines)


def test_a_narrow_terminal_gets_blocks_of_whole_numbers() -> None:
    rows = [
        ["", *map(str, range(1, 41))],
        *([str(row), *(f"{row / 100:.4f}" for _ in range(40))] for row in range(40)),
    ]
    shown = to_text(rows, 1, width=40)
    assert max(map(len, shown)) <= 40
    blocks = "\n".join(shown).split("\n\n")
    parts = zip(*(block.splitlines() for block in blocks), strict=True)
    joined = [[number for line in lines for number in line.split()[1:]] for lines in parts]
    assert joined[1:] == [row[1:] for row in rows[1:]]
    assert to_text(rows, 1) == to_text(rows, 1, width=10_000)
    assert len(to_text([["model", "STS12"], ["a name that is wider than this", "62.90"]], 1, width=20)) == 2


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    shown = to_text([["text", "n"], ["日本語", "1"], ["abc", "22"], ["e\u0301", "3"]])
    assert len({cell_len(line) for line in shown}) == 1


def test_a_sentence_is_one_line_without_control_characters() -> None:
    assert one_line("a\nb\r\x1b[1m\u202eüあ\u3000😀\xa0") == "a\\nb\\r\\x1b[1m\\u202eüあ\u3000😀\xa0"
    assert one_line("👨‍👩‍👧") == "👨‍👩‍👧"
    assert one_line("[bold]x[/bold]") == "[bold]x[/bold]"


def test_info_says_none_and_separates_thousands(causal_lms: dict[str, str]) -> None:
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in run("info", causal_lms["llama"]).splitlines())
    assert (facts["adapters"], facts["quantization"], facts["behind the pooling"]) == ("none", "none", "none")
    assert facts["parameters"] == f"{PromptEOL(causal_lms['llama'])[0].model.num_parameters():,}"
    assert "," in facts["parameters"]


def test_the_version_is_shown() -> None:
    assert run("--version") == run("-V") == f"st-prompteol {__version__}\n"


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0, 9.96, 59.6, 61, 3599.9, 3720, 360_000)]
    assert shown == ["0.0 s", "10 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "1 h 02 min", "100 h 00 min"]


def test_scores_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from st_prompteol.cli.evaluate import _show_rows
    from st_prompteol.evaluation.score_table import ScoreRow

    rows = [
        ScoreRow("org/a-model-with-a-long-name", "PromptEOL", {f"STS1{task}": 60 + task for task in range(2, 7)})
    ] * 2
    for width in (40, None):
        monkeypatch.setattr(terminal, "_terminal_width", lambda width=width: width)
        _show_rows(rows)
        shown = capsys.readouterr().out
        assert [shown.count(f"{60 + task}.00") for task in range(2, 7)] == [2] * 5
        if width:
            assert max(map(len, shown.splitlines())) <= width + len("a-model-with-a-long-name")
        else:
            assert len(shown.splitlines()) == 3


def test_an_interruption_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[similarity.__module__], "open_standardized", interrupted)
    result = CliRunner().invoke(app, ["similarity", "tiny", "a", "b"])
    assert (result.exit_code, result.stderr) == (130, "st-prompteol: interrupted\n")


def test_sigterm_runs_what_cleans_up_and_the_handler_goes(tmp_path: Path) -> None:
    before, left = signal.getsignal(signal.SIGTERM), tmp_path / "left"

    def work() -> None:
        with ending_on_sigterm():
            left.touch()
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break what cleans up
                left.unlink()

    with pytest.raises(SystemExit) as stopped:
        work()
    assert (stopped.value.code, left.exists()) == (143, False)
    assert signal.getsignal(signal.SIGTERM) is before


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "st_prompteol", *arguments]


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_command_quietly_after_its_work(
    causal_lms: dict[str, str], tmp_path: Path
) -> None:
    search = command(
        "search", causal_lms["llama"], *write_search(tmp_path, 3), "--templates", "prompteol", "--layers=-1"
    )
    options = ["-o", str(tmp_path / "found"), "--save", str(tmp_path / "saved")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*search, *options], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert not re.search("error|Traceback|Broken", done.stderr, re.IGNORECASE)
    PromptEOL(str(tmp_path / "saved"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_sentence() -> None:
    for arguments in (["--help"], ["info", "tiny"]):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "st-prompteol: the output could not be written: No space left on device"


@pytest.mark.slow
def test_closed_streams_harm_nothing(tmp_path: Path) -> None:
    shell = " ".join(command("info", "tiny"))
    assert subprocess.run(["bash", "-c", f"{shell} <&- >&- 2>&-"], check=False).returncode == 0
    shell = " ".join(command("encode", "tiny", "-o", str(tmp_path / "x.npy")))
    done = subprocess.run(["bash", "-c", f"{shell} <&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "st-prompteol: '-' holds no sentence: nothing was written.",
    )


@pytest.mark.slow
def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    """While it writes embeddings to a staged file."""
    source = tmp_path / "sentences.txt"
    source.write_text("".join(f"a sentence, number {number}\n" for number in range(100_000)), encoding="utf-8")
    process = Forked(command_line, "encode", "tiny", str(source), "-o", str(tmp_path / "x.npy"))
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob(".x.npy.*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate()
    assert (process.returncode, list(tmp_path.iterdir())) == (143, [source])
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"TERM": "dumb"}, marks=pytest.mark.long),
        pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.long),
    ],
)
def test_any_terminal_will_do(changed: dict[str, str]) -> None:
    """Also one without a size, as a pseudo-terminal has at first."""
    outer, inner = pty.openpty()
    done = subprocess.run(
        command("similarity", "tiny", "ü", "日本"),
        stdin=inner,
        stdout=inner,
        stderr=subprocess.PIPE,
        env={**os.environ, **changed},
        check=False,
    )
    os.close(inner)
    shown = os.read(outer, 10_000).decode()
    assert done.returncode == 0, done.stderr
    assert shown.count("1.0000") == 2
    assert "ü" in shown  # click writes UTF-8 where Python would write ASCII
