"""The results in docs/clients.md, from docs/clients.json alone; the rest of the page is written by hand."""

from __future__ import annotations

import re
from typing import Any

from st_prompteol.files.output import to_markdown

BEGIN, END = "<!-- results of benchmarks/clients -->\n", "<!-- end of the results -->\n"
KINDS = {
    "full": "full model",
    "demonstrations": "two demonstrations",
    "adapter": "adapter",
    "inner": "inner layer",
    "cut": "cut at the inner layer",
    "normalized": "`Normalize` behind",
    "standardized": "`Dense`, `Normalize` behind",
}


def with_results(page: str, results: dict[str, Any]) -> str:
    """Returns the page with these results between the two marks."""
    return re.sub(f"(?<={BEGIN}).*(?={END})", lambda _: f"\n{_write(results)}\n", page, flags=re.DOTALL)


def _write(results: dict[str, Any]) -> str:
    rows, count = results["rows"], len(results["sentences"])
    lines = [
        [name, *(_cell(row["kinds"].get(kind), count) for kind in KINDS), _lengths(row)] for name, row in rows.items()
    ]
    installed = [[name, ", ".join(row["requirements"])] for name, row in rows.items()]
    table, packages = (
        to_markdown([head, *body], text_columns=head)
        for head, body in ((["client", *KINDS.values(), "lengths"], lines), (["client", "packages"], installed))
    )
    return f"""\
{count} sentences, the model `{results["model"]}`, {results["torch"]}:

{table}
In parentheses: the number of sentences that differ; all others are at 1.000000. `no`: an error. Both are
listed below.

### Differences

{_list(rows, _difference)}
### Errors

{_list(rows, lambda measured: f"`{measured['error'].replace('`', '')}`" if "error" in measured else None)}
### Installed packages

{packages}"""


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


def _difference(measured: dict[str, Any]) -> str | None:
    different = measured.get("different", [])
    if any(name.startswith("sentence ") for name in different):
        return f"{len(different)} sentences, ordinary ones among them"
    return ", ".join(different) or None


def _list(rows: dict[str, Any], describe: Any) -> str:
    """Returns one item for each client and description."""
    items = ""
    for name, row in rows.items():
        groups: dict[str, list[str]] = {}
        for kind, measured in row["kinds"].items():
            if (described := describe(measured)) is not None:
                groups.setdefault(described, []).append(KINDS[kind])
        items += "".join(f"- {name} ({', '.join(kinds)}): {described}\n" for described, kinds in groups.items())
    return items or "Nothing.\n"
