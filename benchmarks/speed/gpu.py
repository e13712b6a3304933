"""All measurements on a GPU in at most 25 minutes: the tests, speed and memory.

    make gpu-kit                                 # with a package registry: all files for the GPU machine in an archive
    make gpu                                     # on the GPU machine: all measurements, into build/gpu
    make gpu GPU="--steps encode-7b nf4 --minutes 9"
    python -m benchmarks.speed.gpu --trial       # toy shapes on a CPU, to test the script

Each step is a command with a share of the time, which also runs by itself; one that fails or crashes is repeated once,
for the rows that are missing. Rows with a result are not measured again, so repeat the same command after an
interruption. `gpu.md` in the output folder has the tables of all steps.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from benchmarks.speed.measuring import machine, page, read_rows

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "modules fast shared_head adapters model standardization cut linear quantization training_loss training corpus"
).split()
PYTEST = "pytest -v -n 8 --dist loadfile --color no -p no:cacheprovider -m 'not slow'"
ENCODE = "benchmarks.speed.encode --sentences {kit}/sentences.txt"
CORPUS = "benchmarks.speed.corpus --sentences {kit}/sentences.txt --ways encode preprocess local ray"
OPT, LLAMA = "--tokenizer {kit}/tokenizers/opt", "--tokenizer {kit}/tokenizers/llama2"
ON_GPU = "--device cuda --dtype bfloat16 --count 4096 --batch-size 256 32 --calls 50"
TRAIN = "benchmarks.speed.train --threads 8 --device cuda"
STEPS = {  # share of 25 minutes, command
    "tests": (3.5, f"{PYTEST} {' '.join(f'tests/test_{name}.py' for name in TESTS)}"),
    "float32": (1.5, f"{ENCODE} {OPT} --model opt-125m opt-350m --device cuda --dtype float32 --rounds 1"),
    "encode-7b": (5.0, f"{ENCODE} {LLAMA} --model llama-7b {ON_GPU}"),
    "encode-opt": (3.0, f"{ENCODE} {OPT} --model opt-125m opt-2.7b {ON_GPU}"),
    "encode-small": (2.0, f"{ENCODE} {LLAMA} --model smollm2-135m qwen3-0.6b {ON_GPU}"),
    "nf4": (2.0, f"{ENCODE} {LLAMA} --model llama-7b --device cuda --dtype nf4 --count 1024 --batch-size 256"),
    "train": (4.0, f"{TRAIN} --model llama-7b opt-2.7b --precision nf4 --batches 32 128 256 512 128/16 256/64"),
    "recipes": (2.0, f"{TRAIN} --recipes --steps 1"),
    "corpus": (
        2.0,
        f"{CORPUS} {LLAMA} --model qwen3-0.6b --device cuda --dtype bfloat16 --rows 65536 --fragment-rows 32768 "
        "--batch-size 256",
    ),
}
ON_CPU = "--count 48 --rounds 1 --demonstrations 0 1 --batch-size 8"
TRIAL = {
    "tests": (1.0, "pytest -v --color no -p no:xdist -p no:cacheprovider tests/test_template.py"),
    "encode": (1.0, f"{ENCODE} {OPT} --model toy {ON_CPU} --dtype float32 --calls 2"),
    "nf4": (1.0, f"{ENCODE} {LLAMA} --model stories260k {ON_CPU} --dtype nf4"),
    "train": (1.0, "benchmarks.speed.train --model toy --precision float32 nf4 --batches 2 4/2 --steps 1 --threads 1"),
    "corpus": (1.0, f"{CORPUS} {OPT} --model toy --rows 64"),
}


def run_step(words: list[str], output: Path, ends: float) -> None:
    """Runs a command, and once again if it fails, until its time is over."""
    is_test = words[0] == "pytest"
    command = [sys.executable, "-m", *words, *([] if is_test else ["--output", str(output)])]
    for _ in range(1 if is_test else 2):
        with open(output.with_suffix(".txt"), "w", encoding="utf-8") as printed:
            process = subprocess.Popen(command, cwd=ROOT, stdout=printed, start_new_session=True)
            try:
                if process.wait(timeout=max(1.0, ends - time.time())) == 0:
                    return
            except subprocess.TimeoutExpired:
                print(f"{output.name}: ended, its time is over", flush=True)
                return
            finally:
                with suppress(ProcessLookupError):  # including its child processes
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def write_page(steps: dict[str, tuple[float, str]], output: Path) -> None:
    """Writes the tables of all steps from their logs, and what the tests printed."""
    text = f"# {', '.join(f'{name} {value}' for name, value in machine().items())}\n"
    for name, (_, command) in steps.items():
        log = output / f"{name}.jsonl"
        if log.exists():
            text += f"\n## {name}\n\n{page(read_rows(log), import_module(command.split()[0]).to_markdown).rstrip()}\n"
        elif command.startswith("pytest") and (printed := output / f"{name}.txt").exists():
            lines = printed.read_text(encoding="utf-8").splitlines()
            said = [line for line in lines[:-1] if line.startswith(("FAILED", "ERROR"))] + lines[-1:]
            text += f"\n## {name}\n\n" + "".join(f"- {line.strip('= ')}\n" for line in said)
    (output / "gpu.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Runs the steps; unused time is passed on to the next ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=Path("build/gpu-kit"), help="tokenizers and sentences")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument("--steps", nargs="+", choices=sorted({**STEPS, **TRIAL}), help="all by default")
    parser.add_argument("--minutes", type=float, default=25, help="that all steps take together")
    parser.add_argument("--trial", action="store_true", help="toy shapes on a CPU: does it run at all?")
    args = parser.parse_args()
    steps = TRIAL if args.trial else STEPS
    chosen = [name for name in steps if args.steps is None or name in args.steps]
    args.output.mkdir(parents=True, exist_ok=True)
    ends = time.time()
    for name in chosen:
        minutes, command = steps[name]
        ends += 60 * args.minutes * minutes / sum(steps[each][0] for each in chosen)
        run_step(shlex.split(command.format(kit=args.kit.resolve())), args.output.resolve() / name, ends)
        write_page(steps, args.output)


if __name__ == "__main__":
    main()
