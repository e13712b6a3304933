"""The output files of `gpu.py`: JSON, a Markdown page with tables, and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_encode import PLAIN

from st_prompteol.output import to_markdown

WAYS = {
    "reference": "the reference's way",
    "without padding": "plain, flash",
    "sdpa": "plain, sdpa",
    "ours": "PromptEOL",
}
# Target speed-ups for a 7B shape over the fastest plain method, by number of demonstrations
AIMS = {("llama-7b", 1): 1.5, ("llama-7b", 16): 6.0}
Results = dict[str, dict[str, Any]]


def write_page(rows: list[dict[str, Any]], machine: dict[str, Any], output: Path) -> None:
    """Writes `gpu.json`, `gpu.md`, `gpu-encode.png` and `gpu-train.png`.

    Args:
        rows: The rows of `gpu.py`.
        machine: Date, device and versions.
        output: The folder.
    """
    (output / "gpu.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    results: dict[str, Results] = {}
    for row in rows:
        if "result" in row:
            results.setdefault(row["section"], {})[row["row"]] = row["result"]
    lines = [f"# {machine['gpu'] or machine['machine']}, {machine['date']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("gpu", "date")), ""]
    writers = {"right": right, "encode": encode, "train": train, "nf4": nf4, "corpora": corpora}
    for section, write in writers.items():
        if section in results:
            lines += [f"## {section}", "", *write(results[section])]
    failed = [f"- {row['section']}, {row['row']}: {row['error']}" for row in rows if "error" in row]
    lines += ["## Rows that failed", "", *failed, ""] if failed else []
    (output / "gpu.md").write_text("\n".join(lines), encoding="utf-8")
    if "encode" in results:
        plot_encoding(results["encode"], output / "gpu-encode.png")
    if "train" in results:
        plot_training(results["train"], output / "gpu-train.png")


def table(header: str, body: list[list[Any]], texts: int = 1) -> list[str]:
    """Returns the lines of a table, whose first columns are texts; cells that are None stay empty."""
    names = header.split(" | ")
    cells = [["" if cell is None else str(cell) for cell in line] for line in body]
    return [*to_markdown([names, *cells], text_columns=names[:texts]).splitlines(), ""]


def yes(result: dict[str, Any]) -> str:
    """Describes whether a measurement used the prefix cache."""
    return "yes" if result["is behind a shared head"] else "no"


def right(results: Results) -> list[str]:
    """Differences to the reference implementation, synchronizations with the device, and the tests."""
    body: list[list[Any]] = []
    others: list[str] = []
    for name, result in results.items():
        if "ours" in result:
            numbers = f"{result['ours']:.0e}", f"{result['plain']:.0e}", f"{result['cosine']:.5f}"
            body.append(
                [
                    *name.removesuffix(" demonstrations").split(", "),
                    *numbers,
                    yes(result),
                ]
            )
        elif "waits" in result:
            waits = [f"{count} x {Path(line).name}" for line, count in result["waits"].items()]
            others.append(f"- {name}: {', '.join(waits) or 'nothing waits for the device'}")
        else:
            others.append(f"- {name}: {result['outcome']}")
            others += [f"  - {test}: {reason}" for test, reason in result["failed"].items()]
    header = "shape | dtype | demonstrations | PromptEOL | plain | lowest cosine | behind a shared head"
    return [*table(header, body, texts=3), *others, ""]


def encode(results: Results) -> list[str]:
    """Sentences per second of every method with targets; latency of one sentence; kernels."""
    peak = results.get("peak", {})
    lines = [f"A product of matrices reaches {peak['flops'] / 1e12:.3g} TFLOP/s.", ""] if peak else []
    body = []
    for (shape, count, batch_size), result in settings(results):
        done = {way: result[way] for way in WAYS if "per_second" in result.get(way, {})}
        speeds = {way: measured["per_second"] for way, measured in done.items()}
        aim = f" ({AIMS[shape, count]}x)" if (shape, count) in AIMS else ""
        cells: list[Any] = [shape, count, batch_size]
        cells += [f"{speeds[way]:.0f}" if way in speeds else result.get(way, {}).get("error") for way in WAYS]
        fastest = max((speeds[way] for way in PLAIN if way in speeds), default=None)
        for other, what in ((speeds.get("reference"), ""), (fastest, aim)):
            cells.append(f"{speeds['ours'] / other:.2f}x{what}" if other and "ours" in speeds else None)
        if peak and "ours" in done:
            cells.append(f"{speeds['ours'] * result['flops'] / peak['flops']:.0%}")
            cells.append(f"{done['ours']['waiting']:.0%}")
        else:
            cells += [None, None]
        cells += [f"{done[way]['peak'] / 2**30:.1f}" if way in done else None for way in ("ours", "sdpa")]
        body.append([*cells, f"{result['difference']:.0e}", yes(result)])
    header = f"shape | demonstrations | batch | {' | '.join(WAYS.values())} | vs reference"
    header += " | vs the fastest plain | of the peak | no forward pass | peak GiB | plain's | difference | shared head"
    lines += table(header, body)
    single = {
        name.split(", ")[0]: (result["forward"], result["encode"])
        for name, result in results.items()
        if name.endswith(", one sentence")
    }
    body = [
        [shape, *(f"{1e3 * seconds:.2f}" for seconds in (forward, encoding, encoding - forward))]
        for shape, (forward, encoding) in single.items()
    ]
    lines += table("shape | forward pass alone, ms | encode, ms | above, ms", body)
    for name, result in results.items():
        if name.endswith(", kernels"):
            most = ", ".join(f"{share:.0%} `{kernel}`" for kernel, share in list(result["kernels"].items())[:8])
            lines += [f"- {name}: busy {result['busy']:.0%} of the time; {most}"]
    return [*lines, ""]


def settings(results: Results) -> Iterator[tuple[tuple[str, int, int], dict[str, Any]]]:
    """Yields shape, demonstrations and batch size of the rows that compare methods."""
    names = [name.split(", ") for name, result in results.items() if "ours" in result]
    shapes = list(dict.fromkeys(shape for shape, *_ in names))
    keys = [(shape, int(count.split()[0]), int(batch_size.split()[1])) for shape, count, batch_size in names]
    for shape, count, batch_size in sorted(keys, key=lambda key: (shapes.index(key[0]), -key[2], key[1])):
        yield (shape, count, batch_size), results[f"{shape}, {count} demonstrations, batch {batch_size}"]


def train(results: Results) -> list[str]:
    """Steps per second and memory of both methods at the same batch size, the largest batches, and the recipes."""
    body, recipes = [], []
    for name, result in results.items():
        if name.startswith("recipe "):
            memory = f"{result['peak'] / 2**30:.1f}" if "peak" in result else result["error"]
            speed = f"{result['steps_per_second']:.2f}" if "peak" in result else None
            recipes.append([name.removeprefix("recipe "), result["batch"], result["mini-batch"], speed, memory])
            continue
        shape, way = name.split(", ")
        reference = results.get(f"{shape}, reference", {})
        for batch, measured in result.items():
            if "error" in measured:
                body.append([shape, way, batch, measured["error"], *[None] * 4])
                continue
            same = reference.get(batch.split()[0], {})
            numbers = [f"{measured['steps_per_second']:.2f}", f"{measured['tokens_per_second']:,.0f}"]
            numbers.append(f"{measured['peak'] / 2**30:.1f}")
            ratios: list[Any] = [None, None]
            if way == "ours" and "peak" in same:
                steps = measured["steps_per_second"] / same["steps_per_second"]
                ratios = [f"{steps:.2f}x (2x)", f"{measured['peak'] / same['peak']:.2f} (0.6)"]
            body.append([shape, way, batch, *numbers, *ratios])
    lines = table("shape | way | batch | steps/s | tokens/s | peak GiB | steps/s, ratio | peak, ratio", body, texts=2)
    return lines + table("recipe | batch | mini-batch | steps/s | peak GiB", recipes)


def nf4(results: Results) -> list[str]:
    """Speed without and with prefix cache, and whether rows depend on other rows."""
    body, others = [], []
    for name, result in results.items():
        if "whole" not in result:
            says = "depends" if result["mixes rows"] else "does not depend"
            others.append(f"- {name}: by the check a row's result {says} on its neighbours")
            for layer, differences in result.items():
                if isinstance(differences, dict):
                    each = ", ".join(f"{count}: {difference:.0e}" for count, difference in differences.items())
                    others.append(f"  - {layer}, rows computed together against 256 of them: {each}")
            continue
        whole, shared = result["whole"], result["behind a shared head"]
        speeds = f"{whole['per_second']:.0f}", f"{shared['per_second']:.0f}"
        peaks = f"{whole['peak'] / 2**30:.1f}", f"{shared['peak'] / 2**30:.1f}"
        body.append([name, *speeds, f"{shared['per_second'] / whole['per_second']:.1f}x", *peaks])
        body[-1] += [f"{result['difference']:.0e}", yes(result)]
    header = "model | whole, sentences/s | behind a head | ratio | peak GiB, whole | behind a head"
    header += " | difference | possible"
    return [*table(header, body), *others, ""]


def corpora(results: Results) -> list[str]:
    """Sentences per second of `model.encode` and of the engines, and tokenization."""
    body, others = [], []
    for name, result in results.items():
        if "rows" not in result:
            others.append(f"- {name}: {1e6 * result['seconds']:.0f} µs a sentence of {result['tokens']:.1f} tokens")
            continue
        work = f"{result['per_second_of_work']:.0f}" if "work" in result else None
        speeds = f"{result['seconds']:.1f}", f"{result['per_second']:.0f}"
        body.append([*name.split(", "), f"{result['rows']:,}", *speeds, work])
    return [*table("model | way | rows | seconds | rows/s | rows/s of work alone", body, texts=2), *others, ""]


def plot_encoding(results: Results, path: Path) -> None:
    """Plots sentences per second by number of demonstrations at the largest batch size, one panel per shape."""
    from matplotlib.figure import Figure

    rows = list(settings(results))
    largest = max((batch_size for (_, _, batch_size), _ in rows), default=0)
    shapes = list(dict.fromkeys(shape for (shape, _, _), _ in rows))
    figure = Figure(figsize=(3.6 * max(1, len(shapes)), 3.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(shapes)), squeeze=False)[0]
    for axes, shape in zip(panels, shapes, strict=False):
        mine = sorted((count, result) for (name, count, size), result in rows if (name, size) == (shape, largest))
        for (way, label), style in zip(WAYS.items(), ("^:", "d-.", "s--", "o-"), strict=True):
            speeds = [(count, result[way]["per_second"]) for count, result in mine if "per_second" in result[way]]
            if speeds:
                axes.plot(*zip(*speeds, strict=True), style, label=label)
        axes.set_yscale("log")
        axes.set_xticks([count for count, _ in mine])
        axes.set_title(shape)
        axes.set_xlabel("demonstrations")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel(f"sentences per second, batch {largest}")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=160)


def plot_training(results: Results, path: Path) -> None:
    """Plots steps per second and memory of both methods, by shape and batch size."""
    from matplotlib.figure import Figure

    bars = [
        (f"{name}, {batch} triplets", measured)
        for name, result in results.items()
        if not name.startswith("recipe ")
        for batch, measured in result.items()
        if "peak" in measured
    ]
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(bars)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [name for name, _ in bars]
    colors = ["tab:blue" if ", ours, " in name else "tab:gray" for name in names]
    panels[0].barh(names, [each["steps_per_second"] for _, each in bars], color=colors)
    panels[1].barh(names, [each["peak"] / 2**30 for _, each in bars], color=colors)
    for axes, label in zip(panels, ("steps per second", "peak memory, GiB"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=160)
