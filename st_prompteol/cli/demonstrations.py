"""`st-prompteol demonstrations`: building candidates, and searching for the best ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from st_prompteol.cli.options import BatchSize, Device, Model, open_model, quiet, refuse_unused, takes_model_options

DataDir = Annotated[str | None, typer.Option(help="Folder in SentEval's layout, for STS-B; downloaded if not given.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn at random.")]


def build(
    context: typer.Context,
    output: Annotated[str, typer.Argument(help="File of candidates to write: .jsonl or .tsv.")],
    dictionary: Annotated[
        str | None, typer.Option(help="Folder of WordNet's files, or a .tsv file of definition and word.")
    ] = None,
    dictionary_count: Annotated[int | None, typer.Option(min=1, help="Entries to draw; 200 beside an LLM.")] = None,
    min_frequency: Annotated[int, typer.Option(min=0, help="Meanings of a word in WordNet's tagged texts.")] = 1,
    llm: Annotated[
        str | None, typer.Option(help="Model that finds a word for each sentence: here, or at an endpoint.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://host:8000/v1.")] = None,
    provider: Annotated[str | None, typer.Option(help="Hugging Face provider that serves the LLM, or auto.")] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key, e.g. OPENAI_API_KEY.")
    ] = None,
    llm_count: Annotated[
        int | None, typer.Option(min=1, help="Sentences to ask for; 100 beside a dictionary.")
    ] = None,
    sentences: Annotated[str | None, typer.Option(help="File of sentences, one a line; STS-B train if none.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that an answer may take.")] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="How often a question is asked, at most.")] = 5,
    data_dir: DataDir = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Build candidates from a dictionary, from an LLM, or from both."""
    if dictionary is None:
        refuse_unused(context, "without --dictionary", "dictionary_count", "min_frequency")
    if llm is None:
        refuse_unused(context, "without --llm", "llm_count", "sentences", "data_dir")
    if llm is None or sentences is not None:
        refuse_unused(context, "where no sentences of STS-B are drawn", "data_dir")
    if base_url is None and provider is None:
        refuse_unused(context, "on an LLM that is run here", "key_variable", "concurrency", "timeout", "attempts")
    else:
        refuse_unused(context, "on an LLM at an endpoint", "device")
    quiet()
    from st_prompteol.demonstrations import Endpoint, LocalLM, build_demonstrations
    from st_prompteol.demonstrations.build import read_sentences

    asked: Endpoint | LocalLM | None = None
    if llm is not None and base_url is None and provider is None:
        asked = LocalLM(llm, device=device)
    elif llm is not None:
        asked = Endpoint(
            llm,
            base_url=base_url,
            provider=provider,
            key_variable=key_variable,
            timeout=timeout,
            concurrency=concurrency,
            attempts=attempts,
        )
    elif base_url is not None or provider is not None:
        raise ValueError("--base-url and --provider say where an LLM is, but not which one: add --llm NAME.")
    candidates = build_demonstrations(
        output,
        dictionary=dictionary,
        llm=asked,
        sentences=None if sentences is None else read_sentences(sentences),
        dictionary_count=dictionary_count,
        llm_count=llm_count,
        min_frequency=min_frequency,
        data_dir=data_dir,
        seed=seed,
        show=lambda line: typer.echo(line, err=True),
        show_progress_bar=sys.stderr.isatty(),
    )
    typer.echo(f"{len(candidates)} candidates in {output}", err=True)


@takes_model_options
def search(
    context: typer.Context,
    model: Model,
    candidates: Annotated[str, typer.Argument(help="Candidates: .jsonl, .tsv, or lines in the paper's spelling.")],
    model_options: dict[str, Any],
    output_dir: Annotated[
        str, typer.Option("--output-dir", "-o", help="Where log, table and plot go; a search goes on from its log.")
    ] = "search",
    save: Annotated[str | None, typer.Option(help="Folder to save the model with the winner in.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="File with sentence1, sentence2, score: .jsonl, .csv or .tsv; else STS-B dev.")
    ] = None,
    data_dir: DataDir = None,
    shots: Annotated[int, typer.Option(min=1, help="At most this many demonstrations.")] = 1,
    layers: Annotated[str | None, typer.Option(help="Layers to choose from, e.g. -1,-2,-5.")] = None,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Try every candidate on all pairs.")] = False,
    devices: Annotated[str | None, typer.Option(help="Devices to spread over, e.g. cuda:0,cuda:1.")] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Find the best demonstrations for a model among candidates."""
    refuse_unused(context, "where they are searched for", "demonstrations")
    if pairs is not None:
        refuse_unused(context, "beside --pairs", "data_dir")
    if layers is not None:
        refuse_unused(context, "beside --layers", "layer")
    quiet()
    from st_prompteol.demonstrations import read_candidates, read_pairs, search_demonstrations, sts_b_dev
    from st_prompteol.demonstrations.report import plot, summarize, write_table
    from st_prompteol.output import import_figure

    import_figure()  # before hours of work rather than after them
    read_layers = None if layers is None else _numbers(layers)
    tried = read_candidates(candidates)
    scored = sts_b_dev(data_dir) if pairs is None else read_pairs(pairs)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_model(model, model_options)
    result = search_demonstrations(
        opened,
        tried,
        scored,
        shots=shots,
        layers=read_layers,
        exhaustive=exhaustive,
        log=folder / "search.jsonl",
        batch_size=batch_size,
        devices=devices.split(",") if devices else None,
        seed=seed,
        show=lambda line: typer.echo(line, err=True),
        show_progress_bar=sys.stderr.isatty(),
    )
    write_table(result, folder / "table.md")
    plot(result, folder / "candidates.png")
    for line in summarize(result):
        typer.echo(line)
    typer.echo(f"log, table and plot in {folder}", err=True)
    if save is not None:
        opened.save_pretrained(save)
        typer.echo(f"saved in {save}: open it with SentenceTransformer({save!r})", err=True)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers {text!r} is no list of layers: write numbers and commas, e.g. -1,-2,-5.") from None
