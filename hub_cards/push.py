"""Renders the cards of released models into this folder, and pushes what is listed: `python hub_cards/push.py --help`.

A model is released by adding it to `RELEASED`, rendering its card with `--render`, and reviewing the difference. No
model has been released yet, so the list and the folder are empty.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from st_prompteol import PromptEOL, build_model_card, push_to_hub

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Release:
    """A model to publish.

    Args:
        path: The folder that training wrote.
        repo_id: The repository.
        results_dir: Where `st-prompteol evaluate` has put its results.
        license: Its licence.
        language: Its languages.
        hardware: What it was trained on.
        merge_to: Repository of the merged model. Defaults to None.
    """

    path: str
    repo_id: str
    results_dir: str
    license: str
    language: tuple[str, ...]
    hardware: str
    merge_to: str | None = None


RELEASED: tuple[Release, ...] = ()


def card_file(release: Release, folder: Path = FOLDER) -> Path:
    """Returns where the rendered card of a release lies."""
    return folder / f"{release.repo_id.replace('/', '__')}.md"


def render(release: Release, folder: Path = FOLDER) -> Path:
    """Writes the card of a release, for review."""
    card = build_model_card(
        PromptEOL(release.path),
        release.repo_id,
        source=release.path,
        results_dir=release.results_dir,
        license=release.license,
        language=release.language,
        hardware=release.hardware,
    )
    card_file(release, folder).write_text(str(card), encoding="utf-8")
    return card_file(release, folder)


def main() -> None:
    """Renders or pushes the releases that are listed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo_ids", nargs="*", help="Only these; all that are listed if none is given.")
    parser.add_argument("--render", action="store_true", help="Only write the cards into this folder.")
    parser.add_argument("--dry-run", action="store_true", help="Check and list, send nothing.")
    arguments = parser.parse_args()
    unknown = set(arguments.repo_ids) - {release.repo_id for release in RELEASED}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is not in RELEASED: add it there.")
    chosen = [release for release in RELEASED if not arguments.repo_ids or release.repo_id in arguments.repo_ids]
    if not chosen:
        print("No model has been released: RELEASED is empty.")
    for release in chosen:
        if arguments.render:
            print(render(release))
            continue
        report = push_to_hub(
            release.path,
            release.repo_id,
            results_dir=release.results_dir,
            license=release.license,
            language=release.language,
            hardware=release.hardware,
            merge_to=release.merge_to,
            dry_run=arguments.dry_run,
        )
        print(report.url or f"{len(report.files)} files, {report.size:,} bytes would go to {report.repo_id}")


if __name__ == "__main__":
    main()
