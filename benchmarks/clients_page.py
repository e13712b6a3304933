"""Generates docs/clients.md from docs/clients.json alone."""

from __future__ import annotations

from typing import Any

KINDS = {
    "full": "full model",
    "demonstrations": "two demonstrations",
    "adapter": "adapter",
    "inner": "inner layer",
    "cut": "cut at the inner layer",
    "normalised": "`Normalize` behind",
    "centred": "`Dense`, `Normalize` behind",
}


RULES = """\
- Send plain sentences, and leave prompts, prefixes and instructions empty: the template is the prompt, and any text
  that a client inserts before a sentence ends up inside it.
- Clients that preprocess sentences embed the result: LangChain replaces newlines by spaces. sentence-transformers
  before 5.4 strips white space around a sentence; so does the paper's preprocessing, but `preprocessing="none"` does
  not.
- An empty or blank sentence is encoded as BOS plus the end of the template: normalizers cannot prepend text to it.
- Inner layers are read by sentence-transformers 5.4 and newer, and by clients that build on it. Older versions raise
  an error. Clients that load the weights themselves (transformers, txtai, servers) silently read the last layer:
  `st-prompteol export MODEL FOLDER --cut` makes the inner layer the last one.
- The same clients ignore a `Dense` behind the pooling, unless the table shows otherwise.
- Adapters need transformers 5.7 or newer: 5.5 silently opens the base without the adapter, and sentence-transformers
  5.4 to 5.7 raise an error with transformers 4. A merged model opens everywhere.
- `split_special_tokens` in `tokenizer_config.json` makes `</s>` in a sentence plain text. Clients that read only
  `tokenizer.json` treat it as the special token, and add a template to each piece.
- `sentence-transformers[onnx]` cannot be installed together with sentence-transformers 6, and OpenVINO 2026.4 computes
  wrong embeddings for a bare Llama, with any tokenizer.
- A `.gguf` has no normalizer: send llama.cpp and Ollama the text of `model.template.render(sentence)`.
"""


def write_page(results: dict[str, Any]) -> str:
    """Returns the page for the results of `benchmarks/clients.py`."""
    rows, count = results["rows"], len(results["sentences"])
    parts = [
        f"""# Clients

The embeddings of saved models in other programs, opened there like any model: the smallest cosine similarity to
`PromptEOL`'s embeddings in float32 over {count} sentences, half of them odd, with the model `{results["model"]}`;
where token ids are compared, the number of sentences out of {count} with equal ids. Each client ran in a separate
environment with {results["torch"]}. `python benchmarks/clients.py` repeats the measurement and writes this page.
""",
        _table(
            ["client", *KINDS.values(), "lengths"],
            [[name, *(_cell(row["kinds"].get(kind), count) for kind in KINDS), _lengths(row)]
             for name, row in rows.items()],
        ),
        "In parentheses: the number of sentences that differ; all others are at 1.000000. `no`: an error. Both are\n"
        "listed [below](#differences).\n",
        "## Settings\n",
        RULES,
        _table(
            ["client", "how to open the folder", "notes"],
            [[name, row["given"], row["advice"]] for name, row in rows.items()]
            + [[f"{name} (read)", row["given"], row["advice"]] for name, row in results["read"].items()],
        ),
        "\"(read)\": according to the client's source code; not run.\n",
        "## Differences\n",
        "\n".join(_differences(rows)) + "\n",
        "## Errors\n",
        "\n".join(_errors(rows)) + "\n",
        "## Installed packages\n",
        _table(["client", "packages"], [[name, ", ".join(row["requirements"])] for name, row in rows.items()]),
    ]  # fmt: skip
    return "\n".join(parts)


def _lengths(row: dict[str, Any]) -> str:
    """Describes whether embeddings have the same norms as the model's, which cosines do not show."""
    kept = row["kinds"].get("full", {}).get("lengths")
    return "" if kept is None else "kept" if kept else "1"


def _cell(measured: dict[str, Any] | None, count: int) -> str:
    if measured is None:
        return ""
    if "error" in measured:
        return "no"
    if "equal" in measured:
        return f"{measured['equal']} of {count}"
    different = len(measured["different"])
    return f"{measured['minimum']:.6f}" + (f" ({different})" if different else "")


def _differences(rows: dict[str, Any]) -> list[str]:
    """Returns one item for each client and set of sentences that differ from the reference."""
    items = []
    for name, row in rows.items():
        groups: dict[str, list[str]] = {}
        for kind, measured in row["kinds"].items():
            if measured.get("different"):
                groups.setdefault(_described(measured), []).append(KINDS[kind])
        items += [f"- {name} ({_listed(kinds)}): {described}" for described, kinds in groups.items()]
    return items or ["Nothing."]


def _described(measured: dict[str, Any]) -> str:
    different = measured["different"]
    named = [name for name in different if not name.startswith("sentence ")]
    if len(named) < len(different):
        return f"{len(different)} sentences, ordinary ones among them"
    return _listed(named)


def _errors(rows: dict[str, Any]) -> list[str]:
    """Returns one item for each client and error."""
    items = []
    for name, row in rows.items():
        groups: dict[str, list[str]] = {}
        for kind, measured in row["kinds"].items():
            if "error" in measured:
                groups.setdefault(measured["error"], []).append(KINDS[kind])
        items += [f"- {name} ({_listed(kinds)}): `{error.replace('`', '')}`" for error, kinds in groups.items()]
    return items or ["Nothing."]


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
