"""Every recipe loads; its keys are flags; a wrong key names the right one; the paper's values are in them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from training.arguments import choose_precision, parse_arguments

from . import ROOT

SHARDING = ROOT / "training/recipes/fsdp_qlora.accelerate.yaml"
RECIPES = sorted(path for path in (ROOT / "training/recipes").glob("*.yaml") if path != SHARDING)
PAPER = {"opt-125m": 256, "opt-350m": 256, "opt-1.3b": 256, "opt-2.7b": 256, "opt-6.7b": 256, "opt-13b": 200}
PAPER |= {"llama-7b": 256, "llama-13b": 200}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_is_for(path: Path) -> None:
    model, _, run = parse_arguments(["--config", str(path)])
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert model.model_name_or_path
    assert run.output_dir == f"runs/{path.stem}"
    assert run.save_steps % run.eval_steps == 0
    readme = (ROOT / "training/README.md").read_text(encoding="utf-8")
    assert f"{path.stem}.yaml" in readme


@pytest.mark.parametrize(("name", "batch"), PAPER.items())
def test_a_paper_s_recipe_has_its_values(name: str, batch: int) -> None:
    path = ROOT / f"training/recipes/{name}.yaml"
    model, data, run = parse_arguments(["--config", str(path)])
    assert (model.lora_r, model.lora_alpha, model.lora_dropout, model.quantization) == (64, 16, 0.05, "nf4")
    assert model.lora_target_modules == ["all-linear"]
    assert (run.learning_rate, run.warmup_steps, run.num_train_epochs, run.max_grad_norm) == (5e-4, 100, 1, 1.0)
    assert (run.lr_scheduler_type, run.seed, run.eval_steps) == ("linear", 42, 50)
    assert (data.dataset_name, data.max_sentence_tokens) == ("sentence-transformers/all-nli", 32)
    processes = {256: 2 if name[-4:] in ("125m", "350m", "1.3b", "2.7b") else 4, 200: 8}[batch]
    assert run.per_device_train_batch_size * processes == batch


def test_the_sharding_configuration_is_accelerate_s() -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    config = config_args.ClusterConfig.from_yaml_file(yaml_file=str(SHARDING))
    assert (config.fsdp_config["fsdp_sharding_strategy"], config.num_processes) == ("FULL_SHARD", 8)


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "output_dir: a\nlearning_rate: 1e-3\nmatryoshka_dims: [32, 8]\nmerge: true\nlayer: -2\nadapter:\n"
    )
    model, _, run = parse_arguments(["--config", str(recipe), "--learning_rate", "2e-3"])
    assert (run.output_dir, run.learning_rate, run.matryoshka_dims, run.merge) == ("a", 2e-3, [32, 8], True)
    assert (model.layer, model.adapter) == (-2, None)
    assert not parse_arguments([f"--config={recipe}", "--merge=false"])[2].merge


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("learning_rat", "learning_rate"), ("lora_alfa", "lora_alpha"), ("mini_batch", "mini_batch_size")],
)
def test_an_unknown_key_or_flag_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    (tmp_path / "r.yaml").write_text(f"output_dir: a\n{key}: 1\n")
    with pytest.raises(ValueError, match=rf"r\.yaml', '{key}': did you mean '{nearest}'\?"):
        parse_arguments(["--config", str(tmp_path / "r.yaml")])
    with pytest.raises(ValueError, match=rf"Unknown flag '--{key}': did you mean '--{nearest}'\?"):
        parse_arguments(["--output_dir", "a", f"--{key}", "1"])


def test_a_value_of_another_type_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("output_dir: a\nlora_r: many\n")
    with pytest.raises(SystemExit):
        parse_arguments(["--config", str(tmp_path / "r.yaml")])
    told = capsys.readouterr().err
    assert told.startswith("train.py: argument --lora_r")
    assert "invalid int value: 'many'" in told
    assert told.count("\n") == 1


def test_sharded_weights_are_not_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--output_dir", "a", "--push_to_hub"]
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert parse_arguments(arguments)[2].push_result
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` says it to each process
    with pytest.raises(ValueError, match=r"push_to_hub does not work with sharded weights.*`st-prompteol push`"):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("- a\n", [], "must be a list of `key: value` lines"),
        ("seed: 1\n", [], "needs an output_dir"),
        ("output_dir: a\n", ["--mini_batch_size", "0"], "mini_batch_size=0 must be at least 1"),
        (
            "output_dir: a\n",
            ["--per_device_train_batch_size", "0"],
            "per_device_train_batch_size=0 must be at least 1",
        ),
        ("output_dir: a\n", ["--per_device_eval_batch_size=-1"], "per_device_eval_batch_size=-1 must be at least 1"),
        ("output_dir: a\n", ["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0 must be at least"),
        ("output_dir: a\n", ["--max_sentence_tokens", "0"], "max_sentence_tokens=0 must be at least 1"),
        ("output_dir: a\n", ["--max_train_samples=-1"], "max_train_samples=-1 must be at least 1"),
        ("output_dir: a\n", ["--max_seq_length", "0"], "max_seq_length=0 must be at least 1"),
        ("output_dir: a\n", ["--matryoshka_dims", "8", "0"], "matryoshka_dims=0 must be at least 1"),
        ("output_dir: a\n", ["--lora_r=-1"], "lora_r=-1 must be at least 0"),
        ("output_dir: a\n", ["--lora_dropout", "1.5"], "lora_dropout=1.5 is out of range"),
        ("output_dir: a\n", ["--learning_rate", "nan"], "learning_rate=nan is out of range"),
        ("output_dir: a\n", ["--num_train_epochs", "0"], "num_train_epochs=0.0 leaves nothing to train"),
        ("output_dir: a\n", ["--seed=-1"], "seed=-1 must be at least 0"),
        ("output_dir: a\n", ["--early_stopping_patience", "0"], "early_stopping_patience=0 must be at least 1"),
        ("output_dir: [a\n", [], "is not YAML .*: mend it"),
        ("seed: 'x\n", [], "is not YAML"),
        ("", [], "must be a list of `key: value` lines, got None"),
        ("\x00", [], "is not YAML"),
    ],
)
def test_a_recipe_without_sense_is_refused(tmp_path: Path, recipe: str, arguments: list[str], message: str) -> None:
    (tmp_path / "r.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(tmp_path / "r.yaml"), *arguments])


def test_the_precision_has_a_reason() -> None:
    assert choose_precision("fp16", True) == ("fp16", "as asked")
    precision, reason = choose_precision("auto", True)
    assert (precision, reason) in {
        ("bf16", "this CPU multiplies bfloat16 natively"),
        ("float32", "this CPU has no native bfloat16"),
    }
