"""Renders and pushes the cards of released models, and the playground: `python hub_cards/push.py --help`.

To release a model:

1. add it to `RELEASED`; `path` is the training output folder, relative to the root of the checkout;
2. evaluate it and its base, also from the root:
   `st-prompteol evaluate PATH BASE --results-dir hub_cards/<user>__<name>/evaluation`;
3. `python hub_cards/push.py --render` collects the facts for the card from the model (training report, template,
   dimensions) in `hub_cards/<user>__<name>/facts.json`, and renders `hub_cards/<user>__<name>.md`;
4. review the card and commit all three; a test renders it again from the other two, without the model;
5. `python hub_cards/push.py --dry-run`, then without it.

No number in a card is typed by hand: new measurements or changes of the card's template show up after `--render`.

The playground is not a model: `python hub_cards/push.py --space user/name` pushes `hub_cards/space` as a Space,
together with the library of this checkout.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from st_prompteol import PromptEOL
from st_prompteol.failures import explain_push
from st_prompteol.hub import CardOptions, PushOptions, push_to_hub
from st_prompteol.hub.card import render_card
from st_prompteol.hub.facts import CardFacts, collect_facts, run_of
from st_prompteol.hub.results import read_results

FOLDER = Path(__file__).parent
LIBRARY = FOLDER.parent / "st_prompteol"
COMMAND = "python hub_cards/push.py --render"


@dataclass(frozen=True)
class Release:
    """A model to release.

    Args:
        path: The output folder of training.
        repo_id: The repository.
        card: The author's additions to the card; `results_dir` is given by `results_folder`.
        merge_to: The repository of the merged model. Defaults to None.
    """

    path: str
    repo_id: str
    card: CardOptions
    merge_to: str | None = None


RELEASED: tuple[Release, ...] = (
    Release(
        path="runs/prompteol-tiny/merged",
        repo_id="st-prompteol/prompteol-tiny",
        # the training texts have licenses of their own, some non-commercial
        card=CardOptions(license="other", language="en", hardware="two CPU cores"),
    ),
)


def card_file(release: Release, folder: Path = FOLDER) -> Path:
    """Returns the path of a release's rendered card."""
    return folder / f"{release.repo_id.replace('/', '__')}.md"


def facts_file(release: Release, folder: Path = FOLDER) -> Path:
    """Returns the path of the facts about a release's model."""
    return card_file(release, folder).with_suffix("") / "facts.json"


def results_folder(release: Release, folder: Path = FOLDER) -> Path:
    """Returns the results folder of a release, the `--results-dir` of `st-prompteol evaluate`."""
    return card_file(release, folder).with_suffix("") / "evaluation"


def rendered(release: Release, folder: Path = FOLDER) -> ModelCard:
    """Renders the card of a release from its files in the folder."""
    facts = CardFacts.from_json(facts_file(release, folder).read_text(encoding="utf-8"))
    return render_card(facts, read_results(results_folder(release, folder), facts.run, facts.evaluated_base))


def render(release: Release, folder: Path = FOLDER) -> Path:
    """Writes the facts and the card of a release, for review."""
    model = PromptEOL(release.path)
    run = run_of(model, release.path)
    facts = collect_facts(model, release.repo_id, release.card, source=release.path, run=run)
    facts_file(release, folder).write_text(facts.to_json(), encoding="utf-8")
    card_file(release, folder).write_text(str(rendered(release, folder)), encoding="utf-8")
    return card_file(release, folder)


def gather_space(folder: Path) -> list[str]:
    """Writes the files of the playground's Space to a folder, and returns their paths."""
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER / "space", folder, dirs_exist_ok=True, ignore=unwanted)
    shutil.copytree(LIBRARY, folder / LIBRARY.name, ignore=unwanted)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push_space(repo_id: str, *, dry_run: bool = False) -> str:
    """Pushes the playground to the Hub in one commit, and removes outdated files from the Space.

    Returns:
        The URL of the Space, or for a dry run the paths of its files.

    Raises:
        ValueError: If `repo_id` is not a valid name of a Space.
        PermissionError: If the token has no write access.
        ConnectionError: If the Hub cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder, explain_push(repo_id):
        paths = gather_space(Path(folder))
        if dry_run:
            return "\n".join(paths)
        api = HfApi()
        page = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="space",
            commit_message="Put the playground here",
            delete_patterns="*",
        )
        return str(page)


def main() -> None:
    """Renders or pushes the listed releases, or pushes the playground."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo_ids", nargs="*", help="Only these; all that are listed if none is given.")
    parser.add_argument("--render", action="store_true", help="Only write the cards into this folder.")
    parser.add_argument("--dry-run", action="store_true", help="Check and list, send nothing.")
    parser.add_argument("--space", metavar="REPO_ID", help="Push the playground instead, as this Space.")
    arguments = parser.parse_args()
    if arguments.space:
        print(push_space(arguments.space, dry_run=arguments.dry_run))
        return
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
        card = replace(release.card, results_dir=results_folder(release))
        options = PushOptions(merge_to=release.merge_to, dry_run=arguments.dry_run)
        print(push_to_hub(PromptEOL(release.path), release.repo_id, card, options, source=release.path))


if __name__ == "__main__":
    main()
