"""What a search found, for people: sentences, a table, a plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from st_prompteol.demonstrations.search import SearchResult, Trial
from st_prompteol.files import replacing_file
from st_prompteol.output import import_figure

_HEADER = ("rank", "sentence", "word", "source", "layer", "pairs", "score", "gain over none", "low", "high")


def summarize(result: SearchResult) -> list[str]:
    """Says what was found, and calls what may be chance by its name."""
    winner, baseline = result.winner, result.baseline
    share = result.encodings / result.exhaustive_encodings
    lines = []
    if winner.demonstrations:
        for shot in winner.demonstrations:
            lines.append(f'winner: "{shot.sentence}" = {shot.word}')
        lines.append(
            f"Spearman {winner.score:.2f} at layer {winner.layer} on {winner.pairs} pairs; {winner.gain} over no "
            f"demonstration ({baseline.score:.2f} at layer {baseline.layer})"
            + (": inside the noise, this search found nothing" if winner.gain.is_noise else "")
        )
    else:
        lines.append(
            f"winner: no demonstration, Spearman {winner.score:.2f} at layer {winner.layer} on {winner.pairs} pairs; "
            "no candidate beats it"
        )
    if result.runner_up is not None and result.over_runner_up is not None:
        noise = ": inside the noise, either would do" if result.over_runner_up.is_noise else ""
        lines.append(f"{result.over_runner_up} over the runner-up, {_words(result.runner_up)}{noise}")
    lines.append(
        f"{result.encodings:,} sentence encodings, {share:.0%} of the {result.exhaustive_encodings:,} of an exhaustive"
        " search for one demonstration"
    )
    lines.append(
        "intervals are of 95 %, from resampled pairs; they do not know that the winner was chosen on these pairs"
    )
    return lines


def table(result: SearchResult) -> list[list[str]]:
    """Lays the trials out as text, the header first."""
    lines = [list(_HEADER)]
    for rank, trial in enumerate((*result.trials, result.baseline), start=1):
        gain = trial.gain
        lines.append(
            [
                str(rank) if trial.demonstrations else "",
                " + ".join(shot.sentence for shot in trial.demonstrations) or "(no demonstration)",
                " + ".join(shot.word for shot in trial.demonstrations),
                trial.source,
                str(trial.layer),
                str(trial.pairs),
                *(f"{value:.2f}" for value in (trial.score, gain.value, gain.low, gain.high)),
            ]
        )
    return lines


def write_table(result: SearchResult, path: str | Path) -> None:
    """Writes all trials to a `.md` or `.csv` file.

    Raises:
        ValueError: If the suffix is another.
    """
    suffix = Path(path).suffix
    if suffix not in (".md", ".csv"):
        raise ValueError(f"Unknown table format {str(path)!r}: end its name in .md or .csv.")
    rows = table(result)
    with replacing_file(path) as staged:
        if suffix == ".md":
            rows.insert(1, ["---:" if name not in ("sentence", "word", "source") else "---" for name in _HEADER])
            text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
        else:
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows(rows)
            text = buffer.getvalue()
        staged.write_text(text, encoding="utf-8")


def plot(result: SearchResult, path: str | Path) -> None:
    """Draws each trial's gain over no demonstration with its interval, a colour per source.

    Trials on different numbers of pairs are not comparable by score, but by their gain on the same pairs. Those that
    were tried on all pairs are filled.

    Args:
        result: What a search found.
        path: The picture, `.png` or `.svg`; the other one is written beside it.

    Raises:
        ValueError: If the suffix is another.
        ImportError: If matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"Unknown picture format {str(path)!r}: end its name in .png or .svg.")
    figure = import_figure()(figsize=(9, 5), layout="constrained")
    from matplotlib.lines import Line2D

    axes = figure.subplots()
    most = result.baseline.pairs
    sources = list(dict.fromkeys(trial.source for trial in result.trials))
    for rank, trial in enumerate(result.trials, start=1):
        colour, full = f"C{sources.index(trial.source) % 10}", trial.pairs == most
        gain = trial.gain
        axes.plot([rank, rank], [gain.low, gain.high], color=colour, alpha=0.8 if full else 0.2, linewidth=1)
        face = colour if full else "white"
        axes.plot(rank, gain.value, "o", color=colour, markerfacecolor=face, markersize=4, alpha=1 if full else 0.5)
    axes.axhline(0, color="black", linewidth=0.8)
    for edge in [i for i, trial in enumerate(result.trials) if i and trial.pairs != result.trials[i - 1].pairs]:
        axes.axvline(edge + 0.5, color="grey", linewidth=0.8, linestyle=":")
    start = 0
    for pairs in dict.fromkeys(trial.pairs for trial in result.trials):
        count = sum(trial.pairs == pairs for trial in result.trials)
        axes.annotate(
            str(pairs),
            (start + count / 2 + 0.5, 1.01),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            ha="center",
        )
        start += count
    axes.set_xlabel("rank, those on most pairs first (their number above)")
    axes.set_ylabel("gain over no demonstration, Spearman x100, with 95 % interval")
    axes.grid(alpha=0.3, axis="y")
    handles = [
        Line2D([], [], color=f"C{place % 10}", marker="o", label=source or "unnamed")
        for place, source in enumerate(sources)
    ]
    axes.legend(handles=handles, fontsize=8)
    # without its word, for which a plot's font may have no letters
    title = f"best {result.winner.score:.2f}, no demonstration {result.baseline.score:.2f}"
    figure.suptitle(title, fontsize=9)
    for suffix in (".png", ".svg"):
        with replacing_file(path.with_suffix(suffix)) as staged:
            figure.savefig(staged, format=suffix[1:], dpi=160)


def _words(trial: Trial) -> str:
    return " + ".join(shot.word for shot in trial.demonstrations) or "no demonstration"
