"""Compares the embeddings of every client for a saved model with those of `PromptEOL`, on the same fifty sentences.

    python -m benchmarks.clients.run
    python -m benchmarks.clients.run --only vLLM txtai

Saves a folder of each kind, computes the reference in float32, creates an environment for every client in `table.py`
and runs the client's program from `programs/` there. If a client cannot be installed or rejects a folder, its row
shows the error. Rows that are not measured again are kept. Writes docs/clients.json, and from it the results in
docs/clients.md.

Requires PyPI and npm, Node for the JavaScript rows, and about 8 GB of disk: PyTorch is installed once, and added to
the other environments with a `.pth` file. PyTorch's CPU build is sufficient: set pip's variables, such as
`PIP_EXTRA_INDEX_URL`, if pip would choose another build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clients.folders import ROOT, choose_sentences, reference, save_folders
from benchmarks.clients.page import with_results
from benchmarks.clients.table import CLIENTS, TORCH, Client

MINUTES = 30  # time limit of a client for all folders
SAME = 0.99999  # cosine similarity above which differences are float32 rounding
PROGRAMS = Path(__file__).parent / "programs"


def main() -> None:
    """Measures the requested clients, and writes results and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a full model, of which all folders are made")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure, by how their names begin")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/clients", help="where environments are made")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/clients.json", help="the page lies beside it")
    options = parser.parse_args()

    measured = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.exists() else {}
    cache, page, sentences = options.cache.resolve(), options.output.with_suffix(".md"), choose_sentences()
    folders = save_folders(options.model, cache / "saved")
    references = {kind: reference(folder, list(sentences.values())) for kind, folder in folders.items()}
    for client in CLIENTS:
        if options.only is None or client.name.startswith(tuple(options.only)):
            print(client.name, flush=True)
            measured[client.name] = measure(client, cache, folders, sentences, references)
            print(json.dumps(measured[client.name], ensure_ascii=False), flush=True)
            rows = {each.name: measured[each.name] for each in CLIENTS if each.name in measured}
            results = {"model": options.model, "torch": TORCH, "sentences": list(sentences), "rows": rows}
            options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            page.write_text(with_results(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def measure(
    client: Client,
    cache: Path,
    folders: dict[str, str],
    sentences: dict[str, str],
    references: dict[str, dict[str, list[Any]]],
) -> dict[str, Any]:
    """Returns the client's difference to the reference for each kind of folder, or its error."""
    try:
        answers = run(client, install(client, cache), folders, list(sentences.values()))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        problem = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        answers = {kind: {"error": f"not installed: {problem}"} for kind in folders}
    except subprocess.TimeoutExpired:
        answers = {kind: {"error": f"not finished in {MINUTES} minutes"} for kind in folders}
    kinds = {}
    for kind, answer in answers.items():
        if "error" in answer:
            kinds[kind] = {"error": _first_sentence(answer["error"], folders)}
        else:
            compare = compare_embeddings if client.compares == "embeddings" else compare_ids
            kinds[kind] = compare(answer["rows"], references[kind][client.compares], list(sentences))
    return {"requirements": list(client.requirements), "kinds": kinds}


def install(client: Client, cache: Path) -> Path:
    """Returns the client's environment, made if there is none yet with its requirements."""
    installed = repr((client.requirements, client.without, client.prepare))
    name = re.sub(r"[^a-z0-9.]+", "-", client.requirements[0]).strip("-")
    folder = cache / f"{name}-{zlib.crc32(installed.encode()):08x}"
    if (folder / "finished").exists():
        return folder
    if _is_javascript(client):
        folder.mkdir(parents=True, exist_ok=True)
        _call("npm", "install", "--silent", "--ignore-scripts", "--prefix", folder, *client.requirements)
    else:
        torch = cache / "torch"
        if not (torch / "finished").exists():
            venv.create(torch, with_pip=True, clear=True)
            _call(torch / "bin/python", "-m", "pip", "install", "--quiet", TORCH)
            (torch / "finished").touch()
        venv.create(folder, with_pip=True, clear=True)
        own, shared = (Path(sysconfig.get_path("purelib", "venv", {"base": str(each)})) for each in (folder, torch))
        (own / "shared_torch.pth").write_text(f"{shared}\n", encoding="utf-8")
        (folder / "constraints.txt").write_text(f"{TORCH}\n", encoding="utf-8")
        pip = folder / "bin/python", "-m", "pip"
        _call(*pip, "install", "--quiet", "--constraint", folder / "constraints.txt", *client.requirements)
        if client.without:
            _call(*pip, "uninstall", "--quiet", "--yes", *client.without)
        if client.prepare:
            _call(folder / "bin/python", "-P", PROGRAMS / client.prepare)
    (folder / "finished").touch()
    return folder


def run(client: Client, folder: Path, folders: dict[str, str], sentences: list[str]) -> dict[str, dict[str, Any]]:
    """Runs the client's program in its environment; returns its rows of numbers, or an error, for each folder."""
    answers, request = folder / "answers.jsonl", folder / "request.json"
    answers.unlink(missing_ok=True)
    asked = {"folders": folders, "sentences": sentences, "answers": str(answers)}
    request.write_text(json.dumps(asked), encoding="utf-8")
    command: list[str | Path] = [folder / "bin/python", "-P", PROGRAMS / "harness.py", PROGRAMS / client.program]
    if _is_javascript(client):  # finds its packages in the folders above its own file
        copied = [shutil.copy(PROGRAMS / name, folder) for name in ("harness.mjs", client.program)]
        command = ["node", *copied]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    path = f"{folder / 'bin'}{os.pathsep}{kept['PATH']}"
    offline = {"PATH": path, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, request], env={**kept, **offline}, capture_output=True, text=True, timeout=60 * MINUTES
    )
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
    found = {answer.pop("kind"): answer for answer in map(json.loads, lines)}
    return {kind: found.get(kind, {"error": last}) for kind in folders}


def _is_javascript(client: Client) -> bool:
    return client.program.endswith(".mjs")


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _first_sentence(error: str, folders: dict[str, str]) -> str:
    for folder in folders.values():
        error = error.replace(folder, "FOLDER")
    line = next((line for line in error.splitlines() if line.strip()), "")
    return re.split(r"(?<=[.!?])\s", line)[0][:200]


def compare_embeddings(rows: list[list[float]], expected: list[Any], names: list[str]) -> dict[str, Any]:
    """Returns the smallest cosine, the names of the sentences that differ, and whether norms are equal."""
    ours, theirs = (np.asarray(matrix, dtype=np.float64) for matrix in (expected, rows))
    if ours.shape != theirs.shape:
        return {"error": f"rows of {theirs.shape[1:]} numbers where {ours.shape[1:]} are expected"}
    our_norms, norms = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(axis=1) / (our_norms * norms)
    same = cosine >= SAME
    return {
        "minimum": round(float(cosine.min()), 6),
        "different": [name for name, is_same in zip(names, same, strict=True) if not is_same],
        "lengths": bool(np.allclose(norms[same], our_norms[same], rtol=1e-4)),
    }


def compare_ids(rows: list[list[int]], expected: list[Any], names: list[str]) -> dict[str, Any]:
    """Returns the number of equal rows of token ids, and the names of the others."""
    different = [name for name, ours, theirs in zip(names, expected, rows, strict=True) if list(ours) != theirs]
    return {"equal": len(names) - len(different), "different": different}


if __name__ == "__main__":
    main()
