"""The attack: odd strings, damaged files, hostile folders, kills and races, and what each must give.

`tests/test_attack.py` runs a little of it. The long form is `make attack`, which writes its counts to docs/attack.md.
A row of the table is a function that tries a number of things and returns what did not hold, each as a line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from st_prompteol import TINY, PromptEOL, PromptTemplate
from st_prompteol.corpus import encode_corpus
from st_prompteol.files import Bad, read_rows

from . import ROOT
from .helpers.processes import Forked

PAGE = ROOT / "docs/attack.md"
WORDS = [
    "a", "jockey", "</s>", "<s>", '"', "''", "{sentence}", "\n", "\r", "\t", "\0", "\ud800", "\udfff", "\ufeff", "é",
    "e\u0301" * 40, "日本語", "😀" * 9, "👩\u200d👩\u200d👧", "\u202e", "\u2028", "مرحبا", "Ġ", "▁", "$A", "%s",
    "x" * 3000, " " * 500,
]  # fmt: skip


def odd_text(chooser: random.Random) -> str:
    """Odd words, or characters from anywhere."""
    if chooser.random() < 0.5:
        return "".join(chooser.choices(WORDS, k=chooser.randrange(0, 12)))
    return "".join(chr(chooser.choice([chooser.randrange(0x300), chooser.randrange(0x110000)])) for _ in range(20))


def strings(count: int, folder: Path) -> list[str]:
    """Each string has a finite embedding, the same alone, in a batch and from plain sentence-transformers."""
    chooser, failures = random.Random(0), []
    model = PromptEOL(TINY, device="cpu")
    plain = SentenceTransformer(TINY, device="cpu", model_kwargs={"dtype": torch.float32})
    for start in range(0, count, 50):
        texts = [odd_text(chooser) for _ in range(min(50, count - start))]
        embeddings = model.encode(texts)
        repaired = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        scale = np.abs(embeddings).max()
        for text, one, other in zip(texts, embeddings, plain.encode(repaired), strict=True):
            if not (np.isfinite(one).all() and np.abs(one - other).max() <= 1e-4 * scale):
                off = np.abs(one - other).max() / scale
                failures.append(f"{text!r:.80}: {off:.1e} beside plain sentence-transformers")
        alone = model.encode(texts[0])
        if not np.abs(alone - embeddings[0]).max() <= 1e-4 * scale:
            failures.append(f"{texts[0]!r:.80}: another embedding alone")
    return failures


def templates(count: int, folder: Path) -> list[str]:
    """A template is refused in one line, or gives the same in memory and saved."""
    chooser, failures = random.Random(1), []
    for number in range(count):
        text = odd_text(chooser)[:300] + chooser.choice(["{sentence}", ' "{sentence}"']) + odd_text(chooser)[:300]
        preprocessing = chooser.choice(["paper", "none"])
        try:
            model = PromptEOL(TINY, device="cpu", template=PromptTemplate(text, preprocessing=preprocessing))
        except ValueError:
            continue
        model.save_pretrained(str(folder / f"{number}"))
        sentences = ["A man sings.", "Is it", "😀", odd_text(chooser).encode("utf-8", "replace").decode()]
        one = model.encode(sentences)
        plain = SentenceTransformer(str(folder / f"{number}"), device="cpu", model_kwargs={"dtype": torch.float32})
        if not np.abs(one - plain.encode(sentences)).max() <= 1e-4 * np.abs(one).max():
            failures.append(f"the template {text!r:.80} is another one when it is saved")
        shutil.rmtree(folder / f"{number}")
    return failures


def files(count: int, folder: Path) -> list[str]:
    """A file with bytes changed, cut or doubled gives rows, bad rows or one sentence; never another exception."""
    chooser, failures = random.Random(2), []
    rows = [{"id": str(number), "text": f'{number} "quoted", ünï\u2028'} for number in range(30)]
    whole = folder / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(rows), whole, row_group_size=7)
    lines = [f'{row["id"]},"{row["text"].replace(chr(34), chr(34) * 2)}"' for row in rows]
    contents = {
        ".csv": "\n".join(["id,text", *lines]).encode(),
        ".tsv": "\n".join(["id\ttext", *("\t".join(row.values()) for row in rows)]).encode(),
        ".jsonl": "\n".join(map(json.dumps, rows)).encode(),
        ".txt": "\n".join(row["text"] for row in rows).encode(),
        ".parquet": whole.read_bytes(),
    }
    for number in range(count):
        suffix = list(contents)[number % len(contents)]
        content = bytearray(contents[suffix])
        for _ in range(chooser.randrange(1, 6)):
            place = chooser.randrange(len(content))
            pieces = [b'"', b"\n", b"\r", b"\0", b"\xff", b",", b"\t", b"", b'"\n"', bytes(content[: place // 4])]
            new = chooser.choice(pieces)
            content[place : place + chooser.randrange(3)] = new
        path = folder / f"damaged{suffix}"
        path.write_bytes(content)
        try:
            for row in read_rows(path):
                if isinstance(row, Bad) and str(path) not in row.problem:
                    failures.append(f"{suffix}: a bad row without the name of its file: {row.problem:.80}")
        except (ValueError, OSError):
            continue
        except BaseException as error:
            failures.append(f"{suffix}, file {number}: {type(error).__name__}: {error!s:.80}")
    return failures


def folders(count: int, folder: Path) -> list[str]:
    """A folder of a model with a file cut, changed or gone, or without a tensor, is refused in one line or opens."""
    chooser, failures = random.Random(3), []
    sentence = "A jockey riding a horse."
    expected = PromptEOL(TINY, device="cpu").encode(sentence)
    names = sorted(path.name for path in Path(TINY).iterdir() if path.is_file() and path.name != "README.md")
    for number in range(count):
        broken = folder / f"{number}"
        shutil.copytree(TINY, broken)
        path = broken / chooser.choice(names)
        how = chooser.choice(["cut", "gone", "changed", "tensor"])
        if how == "tensor":
            tensors = load_file(broken / "model.safetensors")
            del tensors[chooser.choice(sorted(tensors))]
            save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        elif how == "gone":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            place = chooser.randrange(min(len(content), 4000))
            content[place : place + 20] = b"" if how == "changed" else content[place : place + 20]
            path.write_bytes(content[: place if how == "cut" else len(content)])
        try:
            got = PromptEOL(str(broken), device="cpu").encode(sentence)
            if how == "tensor" or not np.isfinite(got).all():
                failures.append(f"{path.name} {how}: opened, {np.abs(got - expected).max():.1e} off")
        except (ValueError, OSError) as error:
            if "\n" in str(error):
                failures.append(f"{path.name} {how}: {type(error).__name__} of several lines: {error!s:.80}")
        except BaseException as error:
            failures.append(f"{path.name} {how}: {type(error).__name__}: {' '.join(str(error).split()):.80}")
        shutil.rmtree(broken)
    return failures


def _corpus(folder: Path) -> Path:
    source = folder / "in.parquet"
    pq.write_table(pa.table({"text": [f"{number} birds sing." for number in range(64)]}), source)
    return source


def _encode(source: Path, out: Path, layer: int) -> None:
    options = {"layer": layer, "device": "cpu"}
    encode_corpus("tiny", source, out, column="text", fragment_rows=8, model_options=options)


def _start(source: Path, out: Path, layer: int = -1) -> Forked:
    return Forked(_encode, source, out, layer)


def _ends(process: Forked) -> bool:
    """Waits for the end, and whether it was a good one."""
    process.communicate()
    return process.returncode == 0


def _embeddings(out: Path) -> list[list[float]]:
    return [row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path)["embedding"].to_pylist()]


def kills(count: int, folder: Path) -> list[str]:
    """A corpus' run that is killed at any time and called again ends as an unbroken one."""
    chooser, failures, source = random.Random(time.time_ns()), [], _corpus(folder)
    start = time.monotonic()
    _ends(_start(source, folder / "whole"))
    seconds, expected = time.monotonic() - start, _embeddings(folder / "whole")
    for number in range(count):
        out = folder / f"{number}"
        process = _start(source, out)
        time.sleep(chooser.uniform(0.6, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        _ends(process)
        if not _ends(_start(source, out)) or not np.allclose(_embeddings(out), expected, atol=1e-4):
            failures.append(f"kill {number}: the run that went on is not the unbroken one")
        complete = json.loads((out / "_manifest.json").read_text(encoding="utf-8"))["complete"]
        if not complete or list(out.glob(".*.tmp")):
            failures.append(f"kill {number}: not complete, or something half written is left")
    return failures


def races(count: int, folder: Path) -> list[str]:
    """Of two models' runs into one destination at the same time, one ends well, and its parts are there."""
    failures, source = [], _corpus(folder)
    expected = {}
    for layer in (-1, -2):
        _ends(_start(source, folder / f"layer{layer}", layer))
        expected[layer] = _embeddings(folder / f"layer{layer}")
    for number in range(count):
        runs = {layer: _start(source, folder / f"{number}", layer) for layer in (-1, -2)}
        ended = [layer for layer, process in runs.items() if _ends(process)]
        got = _embeddings(folder / f"{number}")
        if len(ended) != 1 or not np.allclose(got, expected[ended[0]], atol=1e-4):
            failures.append(f"race {number}: {len(ended)} runs ended well, or the folder is mixed")
    return failures


# What is tried -> how often in the long form
TABLE: dict[Callable[[int, Path], list[str]], int] = {strings: 10_000, templates: 150, files: 20_000, folders: 300}
TABLE |= {kills: 12, races: 12}


def main() -> None:
    """Runs the long form and writes its counts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="Of the counts, for a shorter run.")
    share = parser.parse_args().share
    lines, failures = [], []
    for attempt, count in TABLE.items():
        start, tried = time.monotonic(), max(1, int(count * share))
        with tempfile.TemporaryDirectory() as folder:
            found = attempt(tried, Path(folder))
        failures += found
        what = " ".join(str(attempt.__doc__).split())
        lines.append(f"| {attempt.__name__} | {what} | {tried:,} | {len(found)} | {time.monotonic() - start:.0f} |")
        print(lines[-1], *found, sep="\n", flush=True)
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("Run with `--share")
    table = [
        "| what | what must hold | tried | did not hold | seconds |",
        "| --- | --- | ---: | ---: | ---: |",
        *lines,
    ]
    told = f"Run with `--share {share:g}` on {os.cpu_count()} cores:\n\n"
    PAGE.write_text(head + told + "\n".join(table) + "\n", encoding="utf-8")
    sys.exit(f"{len(failures)} did not hold" if failures else 0)


if __name__ == "__main__":
    main()
