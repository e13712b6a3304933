"""Renders the page docs/clients.md from docs/clients.json alone."""

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
- Give it plain sentences, and leave prompts, prefixes and instructions empty: the template is the prompt, and whatever
  a client pastes in front of a sentence lands inside it.
- Clients that prepare sentences themselves embed what they made of them: LangChain puts spaces for newlines.
  sentence-transformers before 5.4 strips white space around a sentence; so does the paper's preparation, but
  `preprocessing="none"` does not.
- An empty or blank sentence becomes the BOS and the template's last words: no normaliser puts text around it.
- An inner layer is read by sentence-transformers 5.4 and newer, and by what builds on it. Older ones refuse it. What
  loads the weights by itself (transformers, txtai, servers) reads the last layer and does not say so:
  `st-prompteol export MODEL FOLDER --cut` makes the inner layer the last one.
- The same programs do not see a `Dense` behind the pooling, unless the table says otherwise.
- An adapter wants transformers 5.7 or newer: 5.5 takes the base without it and does not say so, and
  sentence-transformers 5.4 to 5.7 refuse it with transformers 4. A merged model opens everywhere.
- `split_special_tokens` in `tokenizer_config.json` makes `</s>` in a sentence plain text. What reads `tokenizer.json`
  alone takes it as the token, and puts a template around each piece.
- `sentence-transformers[onnx]` cannot be installed beside sentence-transformers 6, and OpenVINO 2026.4 computes wrong
  embeddings for a bare Llama, with any tokenizer.
- A `.gguf` carries no normaliser: llama.cpp and Ollama take the text of `model.template.render(sentence)`.
"""


def write_page(results: dict[str, Any]) -> str:
    """Returns the page for the results of `benchmarks/clients.py`."""
    rows, count = results["rows"], len(results["sentences"])
    parts = [
        f"""# Clients

What other programs make of a saved model that is given to them as any model is: the smallest cosine to `PromptEOL`'s
embeddings in float32 over {count} sentences, half of them odd, with the model `{results["model"]}`; where token ids
are compared, how many of the {count} sentences have the same. Each client ran in an environment of its own, with
{results["torch"]}. `python benchmarks/clients.py` measures it again and writes this page.
""",
        _table(
            ["client", *KINDS.values(), "lengths"],
            [[name, *(_cell(row["kinds"].get(kind), count) for kind in KINDS), _lengths(row)]
             for name, row in rows.items()],
        ),
        "In brackets: how many sentences differ; all others are at 1.000000. `no`: refused with an error. Both are\n"
        "listed [below](#what-differs).\n",
        "## What to set\n",
        RULES,
        _table(
            ["client", "the folder is given as", "what to know"],
            [[name, row["given"], row["advice"]] for name, row in rows.items()]
            + [[f"{name} (read)", row["given"], row["advice"]] for name, row in results["read"].items()],
        ),
        "\"Read\" is what a client's sources say; it was not run.\n",
        "## What differs\n",
        "\n".join(_differences(rows)) + "\n",
        "## What is refused\n",
        "\n".join(_errors(rows)) + "\n",
        "## What was installed\n",
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
