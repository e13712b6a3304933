"""Packs all files for a GPU machine without a network into an archive: packages, tokenizers and sentences.

    python -m benchmarks.speed.gpu_kit --tokenizers TOKENIZERS --data-dir SENTEVAL build/gpu-kit.tar.xz

The packages are those in `PACKAGES` in the versions of constraints.txt, for Python 3.12 on x86-64, without PyTorch and
other packages that such a machine has; of bitsandbytes only the library for CUDA 13, of Ray only the files for a
worker. TOKENIZERS contains the folders `opt` and `llama2`, SENTEVAL the STS tasks. The archive has 41 MiB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from st_prompteol.evaluation.senteval import STS_TASKS, read_task
from st_prompteol.files.atomic import replacing_file

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "3.12"
SENTENCES = 4096
# packages that are missing or too old on a machine with PyTorch, sentence-transformers 6.0 and their dependencies
PACKAGES = (
    "transformers sentence-transformers tokenizers huggingface_hub httpx2 httpcore2 truststore peft typer datasets "
    "dill multiprocess xxhash bitsandbytes ray jsonschema jsonschema-specifications referencing rpds-py attrs"
).split()
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
LEFT_OUT = (
    "bitsandbytes/libbitsandbytes_cuda1[12]*.so",
    "bitsandbytes/libbitsandbytes_cuda132.so",
    "bitsandbytes/libbitsandbytes_rocm*.so",
    "bitsandbytes/libbitsandbytes_xpu*.so",
    "ray/jars",
    "ray/dashboard/client",
    "ray/rllib",
    "bin",
)


def install(site: Path) -> None:
    """Installs the packages into a folder, without files that a GPU machine has or does not need."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--no-compile"]
    command += ["--implementation=cp", f"--python-version={PYTHON}", *platforms, f"--target={site}"]
    subprocess.run([*command, f"--constraint={ROOT / 'constraints.txt'}", *PACKAGES], check=True)
    for pattern in LEFT_OUT:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Collects and packs the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder with the folders opt and llama2")
    parser.add_argument("--data-dir", required=True, help="folder in SentEval's layout")
    parser.add_argument("output", type=Path, help="what is written, ending in .tar.xz")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        kit = Path(folder) / "gpu-kit"
        install(kit / "site")
        for name in ("opt", "llama2"):
            (kit / "tokenizers" / name).mkdir(parents=True)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(arguments.tokenizers / name / file, kit / "tokenizers" / name / file)
        examples = [part for task in STS_TASKS for part in read_task(arguments.data_dir, task).values()]
        every = list(dict.fromkeys(sentence for part in examples for column in part.columns for sentence in column))
        chosen = [every[number * len(every) // SENTENCES] for number in range(SENTENCES)]
        (kit / "sentences.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(arguments.output) as path, tarfile.open(path, "w:xz") as archive:
            archive.add(kit, "gpu-kit")
    print(f"{arguments.output}: {arguments.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
