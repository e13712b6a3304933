"""Compares the embeddings of every client for a saved model with those of `PromptEOL`, on the same fifty sentences.

    python benchmarks/clients.py --share-torch
    python benchmarks/clients.py --share-torch --only vLLM txtai
    python benchmarks/clients.py --only

Saves a folder of each kind, computes the reference in float32, creates an environment for every client in
`clients_table.py` and runs the client's program there. If a client cannot be installed or rejects a folder, its row
shows the error. Rows that are not measured again are kept; `--only` without names only updates the table's texts.
Writes docs/clients.json, and docs/clients.md from it.

Requires PyPI and npm, Node for the JavaScript rows, and about 20 GB of disk, or 8 GB with `--share-torch`, which
installs PyTorch once and adds it to the other environments with a `.pth` file. PyTorch's CPU build is sufficient: set
pip's variables, such as `PIP_EXTRA_INDEX_URL`, if pip would choose another build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from clients_folders import ROOT, choose_sentences, reference, save_folders
from clients_page import write_page
from clients_table import CLIENTS, READ, TORCH, Client

MINUTES = 30  # time limit of a client for all folders
SAME = 0.99999  # cosine similarity above which differences are float32 rounding
# The code around each program, which prints a line of JSON for every folder
PYTHON = """
import json, sys
request = json.load(open(sys.argv[1], encoding="utf-8"))
sentences = request["sentences"]
{program}
def numbers(row):
    return [number.item() if hasattr(number, "item") else number for number in row]
if __name__ == "__main__":
    for kind, folder in request["folders"].items():
        try:
            answer = {{"rows": [numbers(row) for row in embed(folder)]}}
        except Exception as error:
            answer = {{"error": f"{{type(error).__name__}}: {{error}}"}}
        with open(request["answers"], "a", encoding="utf-8") as file:
            file.write(json.dumps({{"kind": kind, **answer}}) + "\\n")
"""
NODE = """
import {{ appendFileSync, readFileSync }} from "node:fs";
const request = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const sentences = request.sentences;
{program}
for (const [kind, folder] of Object.entries(request.folders)) {{
  const answer = await embed(folder).then((rows) => ({{ rows }}), (error) => ({{ error: String(error) }}));
  appendFileSync(request.answers, JSON.stringify({{ kind, ...answer }}) + "\\n");
}}
"""


def main() -> None:
    """Measures the requested clients, and writes results and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a full model, of which all folders are made")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="rows to measure, by how their names begin")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/clients", help="where environments are made")
    parser.add_argument("--share-torch", action="store_true", help="install PyTorch once for all environments")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/clients.json", help="the page lies beside it")
    options = parser.parse_args()

    measured = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.exists() else {}
    chosen = [row for row in CLIENTS if options.only is None or row.name.startswith(tuple(options.only))]
    sentences = choose_sentences()
    folders = save_folders(options.model, options.cache.resolve() / "saved") if chosen else {}
    references = {kind: reference(folder, list(sentences.values())) for kind, folder in folders.items()}
    for client in chosen:
        print(client.name, flush=True)
        environment = Environment(client, options.cache.resolve(), share_torch=options.share_torch)
        measured[client.name] = measure(client, environment, folders, sentences, references)
        print(json.dumps(measured[client.name], ensure_ascii=False), flush=True)
        write(options.output, options.model, measured)
    write(options.output, options.model, measured)


def write(output: Path, model: str, measured: dict[str, Any]) -> None:
    """Writes the results, with the order and texts of the table, and the page."""
    rows = {client.name: client.texts() | {"kinds": measured[client.name]["kinds"]} for client in CLIENTS
            if client.name in measured}  # fmt: skip
    results = {
        "model": model,
        "torch": TORCH,
        "sentences": list(choose_sentences()),
        "rows": rows,
        "read": {row.name: row.texts() for row in READ},
    }
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(write_page(results), encoding="utf-8")


class Environment:
    """A virtual environment with a client's packages, created once and identified by its requirements.

    Args:
        client: The client.
        cache: The folder of all environments.
        share_torch: Whether to use PyTorch from a separate, shared environment.
    """

    def __init__(self, client: Client, cache: Path, *, share_torch: bool) -> None:
        installed = repr((client.requirements, client.without, client.prepare, share_torch))
        name = re.sub(r"[^a-z0-9.]+", "-", client.requirements[0]).strip("-")
        self.client, self.cache, self.share_torch = client, cache, share_torch
        self.folder = cache / f"{name}-{zlib.crc32(installed.encode()):08x}"

    def install(self) -> None:
        """Installs the client, unless it is already installed.

        Raises:
            subprocess.CalledProcessError: If the installation fails.
        """
        if (self.folder / "finished").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.client.runtime == "node":
            packages = ["--ignore-scripts", "--prefix", self.folder, *self.client.requirements]
            _call("npm", "install", "--silent", *packages)
        else:
            shared = self._shared_torch() if self.share_torch else None
            _make_python(self.folder, shared)
            _pip(self.folder, "install", *(() if shared else (TORCH,)), *self.client.requirements)
            if self.client.without:
                _pip(self.folder, "uninstall", "--yes", *self.client.without)
            if self.client.prepare:
                _call(self.folder / "bin/python", "-c", self.client.prepare)
        (self.folder / "finished").touch()

    def _shared_torch(self) -> Path:
        """The environment of PyTorch and its dependencies."""
        folder = self.cache / "torch"
        if not (folder / "finished").exists():
            _make_python(folder, None)
            _pip(folder, "install", TORCH)
            (folder / "finished").touch()
        return folder

    def run(self, folders: dict[str, str], sentences: list[str]) -> dict[str, dict[str, Any]]:
        """Runs the client's program and returns its rows of numbers, or an error, for each folder."""
        node = self.client.runtime == "node"
        program = self.folder / ("program.mjs" if node else "program.py")
        answers, request = self.folder / "answers.jsonl", self.folder / "request.json"
        answers.unlink(missing_ok=True)
        program.write_text((NODE if node else PYTHON).format(program=self.client.program), encoding="utf-8")
        request.write_text(
            json.dumps({"folders": folders, "sentences": sentences, "answers": str(answers)}), encoding="utf-8"
        )
        command = ["node" if node else str(self.folder / "bin/python"), str(program), str(request)]
        done = subprocess.run(
            command, env=_environment(self.folder), capture_output=True, text=True, timeout=60 * MINUTES
        )
        (self.folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
        found = {answer.pop("kind"): answer for answer in map(json.loads, lines)}
        return {kind: found.get(kind, {"error": last}) for kind in folders}


def _make_python(folder: Path, shared: Path | None) -> None:
    venv.create(folder, with_pip=True, clear=True)
    if shared is not None:
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        elsewhere = sysconfig.get_path("purelib", "venv", {"base": str(shared)})
        (packages / "shared_torch.pth").write_text(f"{elsewhere}\n", encoding="utf-8")


def _pip(folder: Path, command: str, *arguments: str) -> None:
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    options = ["--quiet", *(["--constraint", constraints] if command == "install" else [])]
    _call(folder / "bin/python", "-m", "pip", command, *options, *arguments)


def _call(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


def _environment(folder: Path) -> dict[str, str]:
    """Returns the variables of this process without its Python path, and with the Hub offline."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    path = f"{folder / 'bin'}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def measure(
    client: Client,
    environment: Environment,
    folders: dict[str, str],
    sentences: dict[str, str],
    references: dict[str, dict[str, list[Any]]],
) -> dict[str, Any]:
    """Returns the client's difference to the reference for each kind of folder, or its error."""
    try:
        environment.install()
        answers = environment.run(folders, list(sentences.values()))
    except subprocess.CalledProcessError as error:
        answers = {kind: {"error": f"not installed: {_pip_error(error.stderr)}"} for kind in folders}
    except subprocess.TimeoutExpired:
        answers = {kind: {"error": f"not finished in {MINUTES} minutes"} for kind in folders}
    kinds = {}
    for kind, answer in answers.items():
        if "error" in answer:
            kinds[kind] = {"error": _first_sentence(answer["error"], folders)}
        else:
            compare = compare_embeddings if client.compares == "embeddings" else compare_ids
            kinds[kind] = compare(answer["rows"], references[kind][client.compares], list(sentences))
    return {"kinds": kinds}


def _pip_error(stderr: str) -> str:
    lines = stderr.strip().splitlines() or ["no message"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])


def _first_sentence(error: str, folders: dict[str, str]) -> str:
    for folder in folders.values():
        error = error.replace(folder, "FOLDER")
    line = next((line for line in error.splitlines() if line.strip()), "")
    return re.split(r"(?<=[.!?])\s", line)[0][:200]


def compare_embeddings(rows: list[list[float]], expected: list[Any], names: list[str]) -> dict[str, Any]:
    """Returns the smallest cosine, the smallest without the `different` sentences, and whether norms are equal."""
    ours, theirs = (np.asarray(matrix, dtype=np.float64) for matrix in (expected, rows))
    if ours.shape != theirs.shape:
        return {"error": f"rows of {theirs.shape[1:]} numbers where {ours.shape[1:]} are expected"}
    ours_length, length = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(axis=1) / (ours_length * length)
    same = cosine >= SAME
    return {
        "minimum": round(float(cosine.min()), 6),
        "different": [name for name, is_same in zip(names, same, strict=True) if not is_same],
        "others": round(float(cosine[same].min()), 6) if same.any() else None,
        "lengths": bool(np.allclose(length[same], ours_length[same], rtol=1e-4)),
    }


def compare_ids(rows: list[list[int]], expected: list[Any], names: list[str]) -> dict[str, Any]:
    """Returns the number of equal rows of token ids, and the names of the others."""
    different = [name for name, ours, theirs in zip(names, expected, rows, strict=True) if list(ours) != theirs]
    return {"equal": len(names) - len(different), "different": different}


if __name__ == "__main__":
    sys.exit(main())
