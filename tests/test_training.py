"""Runs from the command line to the saved adapter; killed, resumed, and every way that they fail."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from st_prompteol import PromptEOL, lora_config

from . import ROOT

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from training import train as script
from training.arguments import DEV_METRIC, ModelArguments, RunArguments
from training.data import PREPROCESSING, sts_benchmark
from training.failures import explain, explained
from training.loss import build_loss
from training.report import describe_scores
from training.run_folder import claimed, find_checkpoint
from training.trainer import AdapterTrainer

from .helpers.models import publish_adapter, quick
from .helpers.oracles import assert_alike
from .helpers.processes import Forked, PlainProcess
from .helpers.sentences import SENTENCES, WORDS
from .helpers.senteval import build_senteval
from .helpers.training import logged, run_to_the_end, run_two, state_of

Words = Callable[..., list[str]]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*lr_scheduler.step.*:UserWarning",  # upstream's order of calls on a step without gradients
    "ignore:.*tokenizers.*fork.*",
)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS.split(), k=draw.randint(3, 9)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Triplets of which a positive repeats words of its anchor, and STS-B in small."""
    folder, draw = tmp_path_factory.mktemp("world"), random.Random(0)
    with open(folder / "triplets.jsonl", "w", encoding="utf-8") as file:
        for _ in range(64):
            anchor = sentence(draw)
            row = {"anchor": anchor, "positive": " ".join(anchor.split()[::-1]), "negative": sentence(draw)}
            file.write(json.dumps(row) + "\n")
    build_senteval(folder)
    return {"train_file": str(folder / "triplets.jsonl"), "sts_data_dir": str(folder)}


def command_line(world: dict[str, str], base: str, output_dir: Path, *more: str) -> list[str]:
    """The command line of a run of 8 steps with dropout, a checkpoint after every two."""
    fixed = {"model_name_or_path": base, "output_dir": str(output_dir), "lora_r": 4, "lora_dropout": 0.2, **world}
    fixed |= {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2, "precision": "float32"}
    fixed |= {"eval_steps": 2, "save_steps": 2, "logging_steps": 1, "save_total_limit": 10, "disable_tqdm": "true"}
    return [*(f"--{key}={value}" for key, value in fixed.items()), *more]


def sentence_of_exit(argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        script.main(argv)
    message = str(stopped.value)
    assert message.startswith("train.py: ")
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def finished(
    world: dict[str, str], causal_lms: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An unbroken run, and what it said; read only."""
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_to_the_end(script.main, command_line(world, causal_lms["llama"], output_dir, "--merge"), output_dir)


@pytest.fixture
def words(world: dict[str, str], causal_lms: dict[str, str], tmp_path: Path) -> Words:
    """Returns the command line of a run into `run`, as `words("--flag", "value", base="opt")`."""
    return lambda *more, base="llama": command_line(world, causal_lms[base], tmp_path / "run", *more)


def test_a_run_leaves_an_adapter_that_opens_everywhere(
    finished: tuple[Path, str], causal_lms: dict[str, str], plain: PlainProcess
) -> None:
    output_dir, _ = finished
    model = PromptEOL(str(output_dir))
    embeddings = model.encode(SENTENCES)
    assert model.adapters == ["default"]
    scale = np.abs(embeddings).max()
    assert_alike(plain.encode(output_dir, SENTENCES), embeddings)
    assert np.abs(PromptEOL(causal_lms["llama"]).encode(SENTENCES) - embeddings).max() / scale > 0.01
    merged = PromptEOL(str(output_dir / "merged"))
    assert merged.adapters == []
    assert_alike(merged.encode(SENTENCES), embeddings, 1e-4)
    config = json.loads((output_dir / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == causal_lms["llama"]
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 16, "none")
    names = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert set(config["target_modules"]) == names


def test_a_run_tells_what_it_trains_and_what_it_cost(finished: tuple[Path, str]) -> None:
    output_dir, said = finished
    for pattern in (
        r"trained: [\d,]+ of [\d,]+ parameters \(\d+\.\d\d%\)",
        r"batch: 8 triplets \(8 on each of 1 processes\)",
        r"negatives: 15 for each anchor",
        r"computing in: float32, because as asked",
        r"speed: .* s a step, .* triplets/s, .* tokens/s",
        r"peak memory: \d+\.\d\d GiB",
        r"\| STS-B dev \| -?\d+\.\d\d \| -?\d+\.\d\d \|\n\| STS-B test \| -?\d+\.\d\d \| -?\d+\.\d\d \|",
    ):
        assert re.search(pattern, said), (pattern, said)
    assert (output_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "MultipleNegativesRankingLoss" in (output_dir / "README.md").read_text(encoding="utf-8")
    assert len(logged(output_dir, 8)) == 8


def test_a_run_prints_a_line_for_each_log(finished: tuple[Path, str]) -> None:
    output_dir, said = finished
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert lines[0] == "step 0 of 8: evaluating before the first step"
    dev = logged(output_dir, 8, DEV_METRIC)
    assert lines[1].startswith(f"step 0 of 8: STS-B dev {100 * dev[0]:.2f} before training; ")
    for step, loss in logged(output_dir, 8).items():
        rate = logged(output_dir, 8, "learning_rate")[step]
        told = f"step {step} of 8: loss {loss:.4f}, learning rate {rate:.2e}; "
        (line,) = (line for line in lines if line.startswith(told))
        assert re.fullmatch(r"\d+(\.\d)? (s|min \d\d s) elapsed, \d+(\.\d)? (s|min \d\d s) left", line[len(told) :])
    best = max(dev[step] for step in dev if step)
    assert f"STS-B dev {100 * dev[8]:.2f}, best {100 * best:.2f} at step " in lines[-1]
    assert "{'" not in said
    assert "per_second" not in said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_that_is_resumed_changes_nothing(words: Words, finished: tuple[Path, str]) -> None:
    before = contents(finished[0])
    for checkpoint in ("auto", str(finished[0] / "checkpoint-8")):
        argv = words("--resume_from_checkpoint", checkpoint, "--merge")
        _, said = run_to_the_end(script.main, argv, finished[0])
        assert said == f"complete: {finished[0]} holds the result of this run already, and nothing was changed\n"
        assert contents(finished[0]) == before
    argv = words("--resume_from_checkpoint", "auto", "--output_dir", str(finished[0]), "--learning_rate", "0.5")
    assert "learning_rate was 0.01 and is 0.5" in sentence_of_exit(argv)
    assert contents(finished[0]) == before


@pytest.mark.parametrize("stopped", ["before the save", "in the save", "after the save"])
def test_a_run_that_was_stopped_around_its_last_save_is_only_saved(
    words: Words, finished: tuple[Path, str], tmp_path: Path, stopped: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "trainer_state.json").unlink()
    if stopped == "before the save":
        for path in run.iterdir():
            if path.is_file() and path.name != "run.json":
                path.unlink()
    elif stopped == "in the save":
        (run / "trainer_state.json").write_text('{"epoch', encoding="utf-8")
        (run / "adapter_model.safetensors").write_bytes(b"half")
    _, said = run_to_the_end(script.main, words("--resume_from_checkpoint", "auto"), run)
    assert "\nstep " not in said
    scores = [line for line in finished[1].splitlines() if line.startswith("| STS-B")]
    assert [line for line in said.splitlines() if line.startswith("| STS-B")] == scores
    kept, expected = (load_file(folder / "adapter_model.safetensors") for folder in (run, finished[0]))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert state_of(run, 8)["global_step"] == 8
    assert not (run / "checkpoint-9").exists()
    before = contents(run)
    assert run_to_the_end(script.main, words("--resume_from_checkpoint", "auto"), run)[1].startswith("complete: ")
    assert contents(run) == before


def test_a_damaged_record_is_as_none(
    words: Words, finished: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for content in ("[1]", "{", ""):
        (run / "run.json").write_text(content, encoding="utf-8")
        run_to_the_end(script.main, words("--resume_from_checkpoint", "auto"), run)
        assert caplog.text.count("has no record of the arguments") == 1
        caplog.clear()


def test_an_interrupted_run_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, explained():
        raise KeyboardInterrupt
    assert (stopped.value.code, capsys.readouterr().err) == (130, "train.py: interrupted\n")


@pytest.mark.slow
def test_a_run_that_is_told_to_end_does_so_in_order(words: Words, tmp_path: Path) -> None:
    process, deadline = Forked(child, words()), time.monotonic() + 120
    while not (tmp_path / "run/checkpoint-2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_kept_is_the_best_checkpoint(finished: tuple[Path, str]) -> None:
    output_dir, _ = finished
    state, dev = state_of(output_dir, 8), logged(output_dir, 8, DEV_METRIC)
    best = max((step for step in dev if step), key=lambda step: dev[step])
    assert state["best_metric"] == pytest.approx(dev[best])
    kept, expected = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (output_dir, Path(state["best_model_checkpoint"]))
    )
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def child(argv: list[str], limit: int | None = None) -> None:
    """A process of its own that runs the script, with at most `limit` bytes of memory beyond what it has."""
    if limit is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit,) * 2)
    script.main(argv)


@pytest.mark.slow
def test_a_killed_run_that_is_resumed_ends_as_an_unbroken_one(
    words: Words, finished: tuple[Path, str], tmp_path: Path
) -> None:
    argv = words("--resume_from_checkpoint", "auto")
    process, deadline = Forked(child, argv), time.monotonic() + 120
    while not (tmp_path / "run/checkpoint-2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    script.main(argv)
    unbroken, resumed = logged(finished[0], 8), logged(tmp_path / "run", 8)
    assert resumed.keys() == unbroken.keys()
    np.testing.assert_allclose(list(resumed.values()), list(unbroken.values()), atol=1e-4)
    kept, expected = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run", finished[0]))
    for name, tensor in expected.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-4, rtol=0)


def test_an_incomplete_checkpoint_is_passed_over(finished: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (4, 6, 8):
        shutil.copytree(finished[0] / f"checkpoint-{step}", run / f"checkpoint-{step}")
    assert find_checkpoint(str(run), "auto") == str(run / "checkpoint-8")
    state = run / "checkpoint-8/trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:100], encoding="utf-8")
    (run / "checkpoint-6/trainer_state.json").unlink()
    assert find_checkpoint(str(run), "auto") == str(run / "checkpoint-4")
    assert find_checkpoint(str(tmp_path / "new"), "auto") is None
    with pytest.raises(ValueError, match="checkpoint-6' is incomplete: name another"):
        find_checkpoint(str(run), str(run / "checkpoint-6"))


def test_a_folder_that_has_a_run_is_left_alone(words: Words, finished: tuple[Path, str]) -> None:
    message = sentence_of_exit(words("--output_dir", str(finished[0])))
    assert "has a run already: pass --resume_from_checkpoint auto" in message


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (["--layer", "-2"], "layer was None and is -2"),
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size was 8 and is 4"),
        (["--learning_rate", "0.5"], "learning_rate was 0.01 and is 0.5"),
        (["--train_file"], "train_file was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"),
    ],
)
def test_a_run_is_resumed_with_its_own_arguments_or_not_at_all(
    words: Words,
    finished: tuple[Path, str],
    world: dict[str, str],
    tmp_path: Path,
    changed: list[str],
    difference: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "checkpoint-6", run / "checkpoint-6")
    shutil.copy(finished[0] / "run.json", run)
    if changed == ["--train_file"]:
        other = tmp_path / "other.jsonl"
        rows = Path(world["train_file"]).read_text(encoding="utf-8").splitlines()
        other.write_text("\n".join(rows[::-1]) + "\n", encoding="utf-8")
        changed = ["--train_file", str(other)]
    argv = words("--resume_from_checkpoint", "auto", *changed)
    message = sentence_of_exit(argv)
    told = rf"began with other arguments \({difference}\): resume it .* If the change is intended, remove .*run\.json"
    assert re.search(told, message)


def test_of_two_runs_into_one_folder_the_second_is_refused_and_leftovers_go(words: Words, tmp_path: Path) -> None:
    run = tmp_path / "run"
    leftovers = [
        run / ".saving-0123abcd" / "new" / "model.safetensors",
        run / "checkpoint-4" / ".saving-0123abcd" / "new" / "model.safetensors",
        run / ".run.json.0123abcd.tmp",
    ]
    kept = [run / "notes.tmp", tmp_path / ".run.0123abcd.tmp" / "x", run / ".mine.0123abcd.tmp" / "x"]
    for path in (*leftovers, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half", encoding="utf-8")
    with claimed(str(run)):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in kept)
        assert "Another run is using" in sentence_of_exit(words())
    with claimed(str(run)):
        pass


def test_a_run_that_diverged_ends_in_an_error_and_saves_nothing(words: Words, tmp_path: Path) -> None:
    argv = words(
        "--learning_rate=1e30", "--warmup_steps=0", "--max_steps=1", "--eval_strategy=no", "--save_strategy=no"
    )
    assert "NaN or infinite numbers, so it is not saved: lower learning_rate" in sentence_of_exit(argv)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_run_says_that_it_made_the_model_worse() -> None:
    assert "WARNING" not in describe_scores({"STS-B dev": (0.5, 0.6), "STS-B test": (0.5, 0.5)})
    told = describe_scores({"STS-B dev": (0.5, 0.6), "STS-B test": (0.7, 0.65)})
    assert told.count("WARNING: on STS-B test the trained model is worse than its base, 65.00 where that has 70") == 1
    with pytest.raises(FloatingPointError, match="no score on STS-B dev"):
        describe_scores({"STS-B dev": (0.5, float("nan"))})


@pytest.mark.slow
def test_a_published_adapter_is_trained_further(
    words: Words, causal_lms: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = publish_adapter(causal_lms["opt"], tmp_path / "published")
    argv = words("--adapter", adapter, "--max_steps", "2", base="opt")
    script.main([*argv, "--mini_batch_size", "4", "--gradient_checkpointing", "--matryoshka_dims", "32", "16"])
    assert "in passes of 4 sentences" in capsys.readouterr().out
    before, after = PromptEOL(adapter), PromptEOL(str(tmp_path / "run"))
    one, other = (dict(model.named_parameters()) for model in (before, after))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert np.abs(before.encode(SENTENCES) - after.encode(SENTENCES)).max() > 0


@pytest.mark.slow
def test_all_weights_are_trained_and_saved_small(
    words: Words, world: dict[str, str], causal_lms: dict[str, str], tmp_path: Path, plain: PlainProcess
) -> None:
    run = tmp_path / "run"
    full = ["--lora_r", "0", "--learning_rate", "1e-3", "--precision", "bf16", "--merge", "--merge_dtype", "float16"]
    full += ["--max_steps", "4", "--merge_layer", "-2"]
    script.main(words(*full))
    before, trained, small = (PromptEOL(str(path)) for path in (causal_lms["llama"], run, run / "merged"))
    assert trained.adapters == []
    for name, parameter in trained[0].model.named_parameters():
        assert not torch.equal(parameter, before[0].model.get_parameter(name)), name
    state = state_of(run, 4)
    best, kept = (load_file(Path(path) / "model.safetensors") for path in (state["best_model_checkpoint"], run))
    assert all(torch.equal(best[name], kept[name]) for name in best)
    dev = sts_benchmark("dev", world["sts_data_dir"], 64)
    assert dev(trained)["sts-dev_spearman_cosine"] == pytest.approx(state["best_metric"], abs=1e-6)
    embeddings = trained.encode(SENTENCES)
    scale = np.abs(embeddings).max()
    trained.layer = -2
    assert trained.similarity_pairwise(small.encode(SENTENCES), trained.encode(SENTENCES)).min() > 0.999
    assert small[0].model.config.num_hidden_layers == 2
    np.testing.assert_allclose(plain.encode(run / "merged", SENTENCES), small.encode(SENTENCES), atol=1e-4 * scale)
    assert {tensor.dtype for tensor in load_file(run / "merged/model.safetensors").values()} == {torch.float16}
    assert json.loads((run / "merged/config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    resumed = words(*full, "--resume_from_checkpoint", str(run / "checkpoint-2"))
    script.main(resumed)
    np.testing.assert_allclose(PromptEOL(str(run)).encode(SENTENCES), embeddings, atol=1e-4 * scale)
    quantized = words("--output_dir", str(tmp_path / "other"), "--lora_r", "0", "--quantization", "int8")
    assert "lora_r=0 trains all weights, which are then neither" in sentence_of_exit(quantized)


def test_a_dry_run_forecasts_and_leaves_nothing(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(words("--dry_run", base="opt"))
    said = capsys.readouterr().out
    assert re.search(r"forecast: 8 steps in \d+\.\d\d h", said)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_checkpoints(
    words: Words, finished: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "checkpoint-4", tmp_path / "run/checkpoint-4")
    optimizer = torch.load(tmp_path / "run/checkpoint-4/optimizer.pt")
    for group in optimizer["param_groups"]:
        group["lr"] = group["initial_lr"] = 1e38
    torch.save(optimizer, tmp_path / "run/checkpoint-4/optimizer.pt")
    argv = words("--resume_from_checkpoint", "auto")
    assert re.search(r"The loss of step [56] is (nan|inf): lower learning_rate", sentence_of_exit(argv))
    assert find_checkpoint(str(tmp_path / "run"), "auto") == str(tmp_path / "run/checkpoint-4")


@pytest.mark.slow
def test_the_log_of_a_run_has_no_progress_bars(words: Words) -> None:
    command = [sys.executable, str(ROOT / "training/train.py"), *words("--dry_run", "--eval_strategy", "no")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "forecast: " in done.stdout, done.stderr
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_leaves_no_half_of_a_checkpoint(words: Words, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    argv = words("--resume_from_checkpoint", "auto")
    full = tmp_path / "run/checkpoint-4"
    full.mkdir(parents=True)
    (full / "optimizer.pt").symlink_to("/dev/full")
    assert "The disk is full" in sentence_of_exit(argv)
    assert not full.exists()
    assert find_checkpoint(str(tmp_path / "run"), "auto") == str(tmp_path / "run/checkpoint-2")
    assert not list((tmp_path / "run").glob(".*tmp"))


@pytest.mark.slow
def test_memory_that_runs_out_ends_in_a_sentence_that_says_which_knob_helps(words: Words, tmp_path: Path) -> None:
    long = [{"anchor": f"{i} {'a cat ' * 15}", "positive": f"{i} {'a dog ' * 15}"} for i in range(4096)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, long)), encoding="utf-8")
    argv = words("--train_file", str(tmp_path / "long.jsonl"))
    argv += ["--per_device_train_batch_size", "4096", "--eval_strategy", "no", "--use_cpu"]
    process = Forked(child, argv, 700 * 2**20)
    errors = process.communicate()
    assert process.returncode == 1, errors
    assert "train.py: Out of memory: pass a small --mini_batch_size" in errors
    assert "Traceback" not in errors


def test_what_a_user_cannot_mend_keeps_its_traceback() -> None:
    assert explain(KeyError("x")) is None
    assert explain(RuntimeError("shape mismatch")) is None
    assert "--mini_batch_size" in str(explain(torch.OutOfMemoryError("CUDA out of memory")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--per_device_train_batch_size", "65"], "64 rows do not fill a batch of 65: lower"),
        (["--lora_target_modules", "query"], "lora_target_modules query match no layer of .*: choose among down_proj"),
        (["--streaming"], "A stream has no known end: pass --max_steps"),
        (["--quantization", "int3"], "Unknown quantization 'int3'"),
        (["--matryoshka_dims", "64"], "cannot exceed the model's embedding dimension of 32"),
        (["--push_to_hub"], "The adapter 'run' sits on '.*', a folder that nobody else has: give `st-prompteol push`"),
        (["--push_to_hub", "--hub_strategy", "every_save"], "hub_strategy='every_save' .* would publish checkpoints"),
        (["--push_to_hub", "--hub_always_push", "true"], "hub_always_push=True would publish checkpoints"),
        (["--config", "gone.yaml"], "No such file or directory: 'gone.yaml'"),
    ],
)
def test_a_mistake_ends_in_a_sentence(words: Words, more: list[str], message: str) -> None:
    assert re.search(message, sentence_of_exit(words(*more)))


@pytest.mark.parametrize(("method", "packages"), [("gptq", "gptqmodel optimum"), ("awq", "gptqmodel")])
def test_a_base_that_comes_quantized_names_the_package_that_reads_it(
    words: Words, causal_lms: dict[str, str], tmp_path: Path, method: str, packages: str
) -> None:
    if importlib.util.find_spec("gptqmodel"):
        pytest.skip("gptqmodel is installed")
    shutil.copytree(causal_lms["llama"], tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32, "zero_point": True}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert f"pip install {packages}" in sentence_of_exit(words("--model_name_or_path", str(tmp_path / "base")))


def test_an_adapter_that_changes_nothing_is_refused(causal_lms: dict[str, str], tmp_path: Path) -> None:
    model, arguments = PromptEOL(causal_lms["llama"]), (ModelArguments(), RunArguments(output_dir=str(tmp_path)))
    model.add_adapter(lora_config(r=4))  # its B is zero
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"Training changed nothing, the embeddings of .* are those of the base LLM"):
        script.check_saved(model, str(tmp_path), *arguments)
    for message in ("is not what was trained", None):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        if message:
            with pytest.raises(ValueError, match=message):
                script.check_saved(model, str(tmp_path), *arguments)
    model.save_pretrained(str(tmp_path))
    script.check_saved(model, str(tmp_path), *arguments)
    assert (model.adapters, model.active_adapters()) == (["default"], ["default"])


def test_the_paper_s_preprocessing_is_left_out_of_its_training_only(causal_lms: dict[str, str]) -> None:
    model = PromptEOL(causal_lms["llama"])
    ids = {
        kind: script.preprocess_with(model, PREPROCESSING[kind][0])(['He said "no"', "Who"])["input_ids"].tolist()
        for kind in ("paper", "paper-train", "none")
    }
    assert ids["paper"] == model.preprocess(['He said "no"', "Who"])["input_ids"].tolist()
    assert ids["paper-train"] == ids["none"] != ids["paper"]
    decoded = model.tokenizer.decode(ids["none"][0], skip_special_tokens=True)
    assert decoded == 'This sentence : "He said "no"" means in one word:"'


@pytest.mark.parametrize("process_index", [0, 1])
def test_gathered_weights_are_saved_by_the_first_process(
    causal_lms: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_index: int
) -> None:
    """Where weights are sharded, the parameters in memory are not those to save."""
    monkeypatch.setattr(RunArguments, "process_index", process_index)
    model = PromptEOL(causal_lms["llama"])
    model.add_adapter(lora_config(r=4, init_lora_weights=False))
    gathered = {name: tensor.cpu() + 1 for name, tensor in model.state_dict().items()}
    args = RunArguments(output_dir=str(tmp_path), precision="float32")
    trainer = AdapterTrainer(model=model, args=args, loss=build_loss(model, args))
    trainer._save(str(tmp_path / "saved"), state_dict=gathered)
    if process_index:
        assert not (tmp_path / "saved").exists()
        return
    saved = load_file(tmp_path / "saved/adapter_model.safetensors")
    assert len(saved) == 2 * 7 * 3
    for name, tensor in saved.items():
        part = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        torch.testing.assert_close(tensor, gathered[f"0.model.{part}"])


@pytest.mark.slow
def test_a_stream_trains_and_stops_early(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = words("--streaming", "--max_steps", "60")
    script.main([*argv, "--learning_rate", "0.1", "--early_stopping_patience", "1", "--preprocessing", "paper-train"])
    steps = [int(path.name.rpartition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")]
    assert 4 <= max(steps) < 60
    assert "negatives: 15 for each anchor" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft says that it sets it right
@pytest.mark.parametrize("target", quick(["all-linear", "c_attn"], "c_attn"))
def test_layers_of_gpt2_are_trained(words: Words, tmp_path: Path, target: str) -> None:
    script.main(words("--lora_target_modules", target, "--max_steps", "2", "--eval_strategy", "no", base="gpt2"))
    model = PromptEOL(str(tmp_path / "run"))
    adapted = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "lora_A")}
    assert adapted == ({target} if target == "c_attn" else {"c_attn", "c_proj", "c_fc"})


@pytest.mark.slow
def test_two_processes_train_and_save_once(words: Words, tmp_path: Path) -> None:
    argv = words("--mini_batch_size", "4", "--max_steps", "4", "--use_cpu")  # there may be one GPU only
    run_two(child, argv)
    assert PromptEOL(str(tmp_path / "run")).adapters == ["default"]
    assert len(logged(tmp_path / "run", 4)) == 4
