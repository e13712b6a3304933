"""`st-prompteol candidates`: builds candidate demonstrations for a search."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from st_prompteol.cli.options import Column, Device, Header, quiet, refuse_unused

DataDir = Annotated[str | None, typer.Option(help="Folder in SentEval's layout, for STS-B; downloaded if not given.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn at random.")]


def candidates(
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
    sentences: Annotated[str | None, typer.Option(help="File of sentences; STS-B train if none.")] = None,
    column: Column = None,
    header: Header = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that an answer may take.")] = 60.0,
    data_dir: DataDir = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Build demonstrations for a search to try, from a dictionary, from an LLM, or from both."""
    if dictionary is None:
        refuse_unused(context, "without --dictionary", "dictionary_count", "min_frequency")
    if llm is None:
        refuse_unused(context, "without --llm", "llm_count", "sentences", "data_dir")
    if sentences is None:
        refuse_unused(context, "without --sentences", "column", "header")
    if llm is None or sentences is not None:
        refuse_unused(context, "where no sentences of STS-B are drawn", "data_dir")
    if base_url is None and provider is None:
        refuse_unused(context, "on an LLM that is run here", "key_variable", "concurrency", "timeout")
    else:
        refuse_unused(context, "on an LLM at an endpoint", "device")
    quiet()
    from st_prompteol.corpus.formats import read_all_sentences
    from st_prompteol.recipes import Endpoint, LocalLM, build_demonstrations

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
        )
    elif base_url is not None or provider is not None:
        raise ValueError("--base-url and --provider say where an LLM is, but not which one: add --llm NAME.")
    built = build_demonstrations(
        output,
        dictionary=dictionary,
        llm=asked,
        sentences=None if sentences is None else read_all_sentences(sentences, column, header),
        dictionary_count=dictionary_count,
        llm_count=llm_count,
        min_frequency=min_frequency,
        data_dir=data_dir,
        seed=seed,
        show=lambda line: typer.echo(line, err=True),
        show_progress_bar=sys.stderr.isatty(),
    )
    typer.echo(f"{len(built)} candidates in {output}", err=True)
