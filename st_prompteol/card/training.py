"""The training section of a card: data, loss, hyperparameters and logs, as recorded by upstream's callbacks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from st_prompteol.card.markdown import code, escape, fence, one_line
from st_prompteol.files.output import to_markdown

_FIRST = ("Epoch", "Step", "Training Loss", "Validation Loss")
_LONGEST = 300  # maximum characters of a shown sentence


def describe_training(data: Any, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the escaped template variables for a training in this process.

    Args:
        data: The model's card data, filled by a trainer.
        upstream: The variables that upstream derives from it.
    """
    return {
        "datasets": [
            {"kind": kind, **_describe_dataset(dataset)}
            for kind, datasets in (("Training", data.train_datasets), ("Evaluation", data.eval_datasets))
            for dataset in datasets
        ],
        "hyperparameters": [
            (code(name), escape(value))
            for name, value in data.non_default_hyperparameters.items()
            if name != "resume_from_checkpoint"  # only a local path
        ],
        "logs": _describe_logs(data.training_logs, data.best_model_step),
        "kept_step": data.best_model_step,
        "times": {
            name.capitalize(): upstream[f"{name}_time"]
            for name in ("training", "evaluation", "total")
            if upstream.get(f"{name}_time")
        },
        "emissions": upstream.get("co2_eq_emissions"),
        "versions": {name.replace("_", " "): version for name, version in data.version.items()},
        "citations": [(escape(name), fence(text.strip(), "bibtex")) for name, text in data.citations.items()],
    }


def describe_evaluators(measured: Mapping[Any, Mapping[str, Any]]) -> str:
    """Formats the results of sentence-transformers' evaluators as Markdown.

    Args:
        measured: Evaluator -> metric -> value.
    """
    lines = ["### Evaluators of the training"]
    for evaluator, metrics in measured.items():
        name = one_line(getattr(evaluator, "name", None) or "")
        header = ["metric", "value"]
        rows = [[escape(metric.removeprefix(f"{name}_")), escape(_number(value))] for metric, value in metrics.items()]
        about = f"{escape(evaluator.description)}, by {code(type(evaluator).__name__)}"
        about += f" on {code(name)}" * bool(name)
        lines += ["", f"{about}:", "", _table([header, *rows], ("metric",))]
    return "\n".join(lines)


def _describe_dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    # without upstream's tags
    columns = [column.removeprefix("<code>").removesuffix("</code>") for column in dataset.get("columns", ())]
    loss = dataset.get("loss", {})
    loss_name = str(loss.get("fullname", ""))
    config = [line for line in str(loss.get("config_code", "")).splitlines() if "```" not in line]
    return {
        "name": escape(dataset.get("name") or "a dataset without a name"),
        "id": one_line(dataset["id"]) if re.fullmatch(r"[\w.-]+/[\w.-]+", str(dataset.get("id", ""))) else None,
        "revision": dataset["revision"][:12] if re.fullmatch("[0-9a-f]{40}", str(dataset.get("revision"))) else None,
        "size": dataset.get("size"),
        "columns": [code(column) for column in columns],
        "lengths": _describe_lengths(dataset.get("stats", {})),
        "examples": _describe_examples(dataset.get("examples") or {}),
        "loss": code(loss_name.rsplit(".", 1)[-1]) if loss_name else None,
        "loss_config": fence("\n".join(line.removeprefix("  ") for line in config), "json") if config else None,
    }


def _describe_lengths(stats: Mapping[str, Any]) -> list[str]:
    return [
        f"{code(column)} {escape(str(data['min']).partition(' ')[0])} to {escape(data['max'])}"
        for column, one in stats.items()
        if {"min", "mean", "max"} <= (data := one.get("data") or {}).keys()
    ]


def _describe_examples(examples: Mapping[str, Sequence[Any]]) -> str | None:
    if not examples:
        return None
    rows = [[_shorten(value) for value in row] for row in zip(*examples.values(), strict=False)]
    header = [escape(name) for name in examples]
    return _table([header, *rows], header)


def _describe_logs(rows: Sequence[Mapping[str, Any]], kept_step: int | None) -> str | None:
    rows = [row for row in rows if row.get("Step", 0) >= 0]  # -1: evaluated after training, see the evaluators
    if not rows:
        return None
    names = [*_FIRST, *dict.fromkeys(name for row in rows for name in row if name not in _FIRST)]
    names = [name for name in names if any(name in row for row in rows)]
    lines = [[escape(name) for name in names]]
    for row in rows:
        cells = [escape(_number(row[name])) if name in row else "-" for name in names]
        lines.append([f"**{cell}**" for cell in cells] if row["Step"] == kept_step else cells)
    return _table(lines, ())


def _table(lines: Sequence[Sequence[str]], text_columns: Sequence[str]) -> str:
    """Formats a table of escaped cells."""
    return to_markdown([[cell.replace("\\|", "|") for cell in line] for line in lines], text_columns).strip()


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _shorten(value: Any) -> str:
    text = one_line(value)
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
