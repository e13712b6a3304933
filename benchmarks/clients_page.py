"""The page docs/clients.md, made of docs/clients.json and nothing else."""

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


def write_page(results: dict[str, Any]) -> str:
    """Returns the page of the results that `benchmarks/clients.py` wrote."""
    rows, count = results["rows"], len(results["sentences"])
    parts = [
        f"""# Clients

What programs make of a saved model when it is given to them like any other: the smallest cosine to `PromptEOL`'s
embeddings over {count} sentences, about half of them odd ({_listed(results["sentences"][:8])} …), with the model
`{results["model"]}` in float32. Where token ids are compared, how many of the {count} sentences have the same. Every
client runs in an environment of its own with {results["torch"]}; repeat it with `python benchmarks/clients.py`, which
writes this page.
""",
        _table(["client", *KINDS.values()], [[name, *map(_cell(row, count), KINDS)] for name, row in rows.items()]),
        "`no`: the client refuses the folder with an error, listed below. In brackets: how many sentences differ, also\n"
        "listed below; all others are at 1.000000.\n",
        "## What to set\n",
        _table(
            ["client", "the folder is given as", "what to know"],
            [[name, row["given"], row["advice"]] for name, row in rows.items()],
        ),
        "Not run; this is what their sources and documentation say:\n",
        _table(
            ["client", "the folder is given as", "what to know"],
            [[f"{name} (read)", row["given"], row["advice"]] for name, row in results["read"].items()],
        ),
        "## What differs\n",
        "\n".join(_differences(rows)) + "\n",
        "## What is refused\n",
        "\n".join(_errors(rows)) + "\n",
        "## What was installed\n",
        _table(["client", "packages"], [[name, ", ".join(row["requirements"])] for name, row in rows.items()]),
    ]
    return "\n".join(parts)


def _cell(row: dict[str, Any], count: int) -> Any:
    """Returns the function from a kind of folder to what the table says of it."""

    def cell(kind: str) -> str:
        measured = row["kinds"].get(kind, {})
        if not measured:
            return ""
        if "error" in measured:
            return "no"
        if "equal" in measured:
            return f"{measured['equal']} of {count}"
        different = len(measured["different"])
        return f"{measured['minimum']:.6f}" + (f" ({different})" if different else "")

    return cell


def _differences(rows: dict[str, Any]) -> list[str]:
    """One item for each client and set of sentences that differ from the reference."""
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
    """One item for each client and error."""
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
