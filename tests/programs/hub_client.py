"""A user of the Hub with this package, for test_hub.py: each function is what one test does in a process of its own.

The client library reads its environment once, when it is imported. All pushes share one clean process, which never
waits and reads Xet.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download, metadata_load
from typer.testing import CliRunner

from st_prompteol import Demonstration, PromptEOL, lora_config
from st_prompteol.cli import app
from st_prompteol.evaluation import Run, run_tasks
from st_prompteol.failures import explain_push
from st_prompteol.hub import CardOptions, build_model_card, check, push, push_to_hub
from st_prompteol.hub.folder import files_of
from st_prompteol.hub.repository import Repository

from ..helpers.sentences import SENTENCES
from .calls import answer_calls

Embeddings = list[list[float]]
NO_SLEEP = str(Path(__file__).parent / "no_sleep")


class Kept(check.CleanProcess):
    """A clean process that lives as long as this one."""

    def __exit__(self, *error: object) -> None:
        pass


@functools.cache
def kept() -> Kept:
    os.environ["PYTHONPATH"] += os.pathsep + NO_SLEEP
    os.environ.pop("HF_HUB_DISABLE_XET")
    tempdir, tempfile.tempdir = tempfile.tempdir, None
    try:
        return Kept()
    finally:
        tempfile.tempdir = tempdir


push.CleanProcess = kept


def embed(model: PromptEOL) -> Embeddings:
    return model.encode(SENTENCES).tolist()


def failure(act: Any) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was wrong"


def run_blocks(card: ModelCard) -> int:
    """Runs a card's Python code and counts its blocks."""
    found = re.findall(r"^```python\n(.*?)^```", card.text, flags=re.M | re.S)
    for block in found:
        exec(block, {})
    return len(found)


def push_both() -> dict[str, Any]:
    result: dict[str, Any] = {}
    model = PromptEOL("tiny/llama", demonstrations=[Demonstration("It rains.", "Weather")], layer=-2)
    report = model.push_to_hub("full", card=CardOptions(license="mit"))
    result.update(full=embed(model), full_commit=report.commit, files=report.files, url=str(report))
    model = PromptEOL("bob/adapter")
    report = model.push_to_hub("alice/adapter", private=True, tag="v1", merge_to="lab/merged")
    result.update(adapter=embed(model), adapter_commit=report.commit)
    result["again"] = embed(PromptEOL("alice/adapter", revision="v1"))
    result["cached"] = embed(PromptEOL("alice/adapter", local_files_only=True, revision="v1"))
    for name in ("alice/full", "alice/adapter"):
        card = ModelCard.load(name)
        card.validate()
        result[f"blocks of {name}"] = run_blocks(card)
    return result


def fail(local: str, calls: list[str]) -> dict[str, Any]:
    """How each call fails, and how many clean processes that took."""
    names = {
        **globals(),
        "model": PromptEOL("tiny/llama"),
        "adapter": PromptEOL("bob/refused"),
        "local": PromptEOL(local),
    }
    started = []
    push.CleanProcess = lambda: started.append(1) or kept()
    try:
        answers = [failure(lambda call=call: eval(call, names)) for call in calls]
    finally:
        push.CleanProcess = kept
    return {"answers": answers, "started": len(started)}


def fill(folder: Path, left: int) -> None:
    """Fills a disk but for so many bytes."""
    disk = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))


def meet_a_full_disk(source: str, small: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    staging, cache = Path(small, "tmp"), Path(small, "cache")
    staging.mkdir()
    cache.mkdir()
    opened = functools.partial(PromptEOL, "tiny/llama", device="cpu", cache_folder=str(cache))
    model = PromptEOL(source, device="cpu")
    tempfile.tempdir = str(staging)
    try:
        fill(staging, 30_000)
        result["push"] = failure(lambda: push_to_hub(model, "alice/full-disk"))
        result["staged"] = sorted(path.name for path in staging.rglob("*"))
        (staging / "ballast").unlink()
        result["again"] = sorted(push_to_hub(model, "alice/full-disk").files)
    finally:
        tempfile.tempdir = None
    fill(cache, 50_000)
    result["open"] = failure(opened)
    result["cached"] = [str(path) for path in cache.rglob("*") if path.suffix in (".safetensors", ".incomplete")]
    (cache / "ballast").unlink()
    result["embeddings"] = embed(opened())
    return result


class Attempts:
    """Pushes, or commits alone, to a server that fails at its n-th request: what is there afterwards, and said."""

    repo_id = "alice/model"

    def __init__(self, source: str, is_push: bool) -> None:
        self.api, self.source = HfApi(), Path(source)
        self.model = PromptEOL(source, device="cpu") if is_push else None
        self.problems: list[Any] = []
        self.counts = {"old": 0, "new": 0}
        self.trouble(99, "once", "503")
        self.before = self.state()
        self.files = self.act()
        self.after = (self.files, self.before[1] + 1)

    def act(self) -> list[str]:
        if self.model is None:
            with explain_push(self.repo_id):
                Repository(self.repo_id).commit(self.source, "new")
            return sorted(files_of(self.source))
        for folder in (constants.HF_HUB_CACHE, kept()._folder.name):  # what was read from the Hub is read again
            shutil.rmtree(Path(folder, "models--alice--model"), ignore_errors=True)
        return sorted(self.model.push_to_hub(self.repo_id, force=True).files)

    def trouble(self, at: int, lasting: str, how: str) -> None:
        urllib.request.urlopen(f"{self.api.endpoint}/_trouble/{at}/{lasting}/{how}").read()

    def state(self) -> tuple[list[str], int]:
        self.trouble(0, "once", "none")
        info = self.api.model_info(self.repo_id)
        return sorted(sibling.rfilename for sibling in info.siblings), len(self.api.list_repo_commits(self.repo_id))

    def attempt(self, how: str, lasting: str, at: int) -> Exception | None:
        self.trouble(at, lasting, how)
        failed, problems = None, []
        try:
            self.act()
        except Exception as error:
            failed = error
        now = self.state()
        if now != self.after and (now != self.before or failed is None):
            problems.append("half")
        if failed and (lasting == "once" or not isinstance(failed, ConnectionError) or "\n" in str(failed)):
            problems.append("failed")
        if failed and self.model and (now == self.after) != ("but the check from the Hub failed" in str(failed)):
            problems.append("untrue")
        self.counts["new" if now == self.after else "old"] += 1
        if self.act() != self.files or self.state() != self.after:
            problems.append("not repeatable")
        if problems:
            self.problems.append([*problems, how, lasting, at, f"{type(failed).__name__}: {failed}", now])
        return failed


def meet_trouble(source: str, is_push: bool, hows: list[str]) -> dict[str, Any]:
    sleep, time.sleep = time.sleep, lambda seconds: None  # upstream's waits between its own tries, and ours
    try:
        attempts, requests = Attempts(source, is_push), 0
        for how in hows:
            requests = 1
            while attempts.attempt(how, "lasting", requests):
                requests += 1
            for at in range(1, 1 if is_push else requests + 1):
                attempts.attempt(how, "once", at)
    finally:
        time.sleep = sleep
    return {"problems": attempts.problems, "requests": requests, **attempts.counts}


def push_beside_another() -> dict[str, Any]:
    model = PromptEOL("tiny/llama")
    options = {"force": True, "replace_model_card": False}
    branch = model.push_to_hub("alice/old", revision="dev", **options).commit
    report = model.push_to_hub("alice/old", force=True, create_pr=True)
    opened = embed(PromptEOL("alice/old", revision="refs/pr/1"))
    return {"branch": branch, "pr": report.url, "pr_commit": report.commit, "model": embed(model), "opened": opened}


def card_of_results(data_dir: str) -> dict[str, Any]:
    model = PromptEOL("tiny/llama", device="cpu")
    run = Run.of(model, "tiny/llama", "PromptEOL")
    run_tasks(model, run, data_dir, ["STSBenchmark"], results_dir="of-hub")
    card = build_model_card(model, "alice/model", CardOptions(results_dir="of-hub")).text
    return {"folder": str(run.folder("results")), "card": card}


def push_quantized(source: str) -> str:
    model = PromptEOL(source, quantization="nf4", device="cpu")
    return push_to_hub(model, "alice/nf4", CardOptions("tiny/llama")).commit


def push_adapter_on(kind: str) -> str:
    """Pushes a new adapter on a base that comes quantized; returns what is wrong with that."""
    model = PromptEOL(f"tiny/{kind}", device="cpu")
    model.add_adapter(lora_config(r=4, init_lora_weights=False))
    return failure(lambda: push_to_hub(model, f"alice/on-{kind}"))


def open_and_save(source: str, target: str) -> Embeddings:
    logging.getLogger().handlers = [logging.StreamHandler(sys.stdout)]
    model = PromptEOL(source)
    embeddings = embed(model)
    model.save(target, create_model_card=False)
    logging.getLogger().handlers = []
    return embeddings


def push_by_xet(names: dict[str, str]) -> dict[str, Embeddings]:
    constants.HF_HUB_DISABLE_XET = False
    result = {}
    try:
        for source, name in names.items():
            model = PromptEOL(source)
            model.push_to_hub(name, private=True)
            result[name] = embed(model)
    finally:
        constants.HF_HUB_DISABLE_XET = True
    return result


def encode_dataset(model: str, source: str, out: str) -> None:
    from st_prompteol.corpus import encode_corpus

    encode_corpus(model, source, out, column="text")


def fetch_senteval() -> list[str]:
    from st_prompteol.evaluation import senteval_folder

    return [str(senteval_folder()), str(senteval_folder())]


def dry_runs(source: str) -> dict[str, list[Any]]:
    """Exit code, output and messages by option."""
    constants.HF_HUB_OFFLINE = True
    result = {}
    try:
        for option in ("--dry-run", "--branch=b"):
            done = CliRunner().invoke(app, ["push", source, "alice/dry", option])
            result[option] = [done.exit_code, done.stdout, done.stderr]
    finally:
        constants.HF_HUB_OFFLINE = False
    return result


def tune_and_publish(data_dir: str, results_dir: str, saved: str, output_dir: str) -> dict[str, Any]:
    from datasets import load_dataset
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    def evaluate(name: str, method: str) -> PromptEOL:
        model = PromptEOL(name, device="cpu")
        tasks = ["STSBenchmark", "SICKRelatedness"]
        run_tasks(model, Run.of(model, name, method), data_dir, tasks, results_dir=results_dir)
        return model

    model = evaluate("tinyllamas/stories260k", "PromptEOL")
    model[0].model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    options = SentenceTransformerTrainingArguments(
        output_dir=output_dir,
        max_steps=8,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        logging_steps=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        seed=1,
    )
    triplets = load_dataset("nli/snli-triplets", split="train[:512]")
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, options, train_dataset=triplets, loss=loss).train()
    model.eval().save(saved)
    embeddings = embed(evaluate(saved, "PromptEOL + adapter"))
    card_options = CardOptions(license="mit", language="en", results_dir=results_dir)
    report = push_to_hub(PromptEOL(saved), "alice/tuned", card_options, source=saved)
    card = ModelCard.load("alice/tuned")
    card.validate()
    run_blocks(card)
    metadata = metadata_load(hf_hub_download("alice/tuned", "README.md"))
    return {"embeddings": embeddings, "files": list(report.files), "card": str(card), "metadata": metadata}


if __name__ == "__main__":
    answer_calls(globals())
