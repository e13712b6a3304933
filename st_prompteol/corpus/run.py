"""`encode_corpus`: files of any number and size to a folder of Parquet files, here or on a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_prompteol.corpus.cluster import RayEngine, open_cluster
from st_prompteol.corpus.encoder import CorpusPrecision, Job, calibrate
from st_prompteol.corpus.fragments import Fragment, SourceFile, cut, list_sources
from st_prompteol.corpus.local import LocalEngine
from st_prompteol.corpus.manifest import Manifest, check_files, check_identity, describe, packages, read_manifest
from st_prompteol.corpus.parts import EMBEDDING, PREFIX, Outcome, read_footers
from st_prompteol.corpus.storage import Storage
from st_prompteol.failures import check_whole

logger = logging.getLogger(__name__)

Address = str | os.PathLike[str]


@dataclass(frozen=True)
class CorpusReport:
    """What lies in the destination after a run.

    Args:
        rows: Rows of the output.
        bad_rows: Those of them without text, whose embedding is null.
        parts: Files of the output.
        encoded_rows: Rows that this run encoded, without those that earlier runs had.
        seconds: Time that this run took.
        padding: The share of padding in the batches that this run tokenised; None where other processes did.
        failures: What could not be read, a sentence each; its rows are missing, and the same call tries again.

    Example:
        >>> report = encode_corpus("tiny", "examples/sentences.tsv", "embedded", column="sentence")
        >>> report.bad_rows, report.failures
        (0, ())
    """

    rows: int
    bad_rows: int
    parts: int
    encoded_rows: int
    seconds: float
    padding: float | None
    failures: tuple[str, ...] = ()


def encode_corpus(
    model: str | SentenceTransformer,
    source: Address | Sequence[Address],
    destination: Address,
    *,
    column: str | None = None,
    header: bool | None = None,
    keep: Sequence[str] | None = None,
    engine: Literal["local", "ray"] = "local",
    batch_size: int = 32,
    precision: CorpusPrecision = "float32",
    normalize_embeddings: bool = False,
    fragment_rows: int = 32_768,
    model_options: Mapping[str, Any] | None = None,
    devices: Sequence[str] | None = None,
    address: str | None = None,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    show_progress_bar: bool = False,
) -> CorpusReport:
    """Encodes every row of a corpus; a run that was stopped, whatever by, goes on when it is called again.

    The output is a Parquet file for each fragment of the input, sorted by name as the input is, with the kept columns
    and `embedding`, and `_manifest.json`, which says what made it. Rows without text (null, not a string, not UTF-8,
    not JSON) have a null embedding. A destination holds the embeddings of one model.

    Args:
        model: The name or folder of a model that `PromptEOL` opens; for the local engine also an open
            `SentenceTransformer`.
        source: A file or folder, or several: `.parquet`, `.jsonl`, `.json`, `.csv`, `.tsv`, `.txt` with one sentence
            a line, all but Parquet also packed (`.gz`, `.zst`); a path of this machine or an address (`s3://`,
            `gs://`, `hf://datasets/…`, whatever fsspec opens).
        destination: The folder to write to, a path or an address likewise; a cluster's nodes all write to it.
        column: The column that holds the sentences; `"1"`, `"2"`, … in CSV and TSV files without a header. Defaults
            to None: the only one.
        header: Whether CSV and TSV files have a header. Defaults to None: found out by their content; an error if
            that is not certain.
        keep: The columns of the input that the output has in front of `embedding`: of Parquet as they are, of other
            formats as text, JSON's values as JSON. Defaults to None: the sentences.
        engine: `"local"` for this machine, `"ray"` for a cluster or a Ray of this machine's own. Defaults to
            `"local"`.
        batch_size: Sentences per forward pass, fewer where memory does not hold them. Defaults to 32.
        precision: Of the embeddings: `"float16"`, or as in `SentenceTransformer.encode`. `"int8"` and `"uint8"` are
            scaled by the ranges of sentences from all over the corpus, up to 4,096. Defaults to `"float32"`.
        normalize_embeddings: Whether to scale embeddings to length 1. Defaults to False.
        fragment_rows: About how many rows a fragment has, which is what a stopped worker has to do again. Defaults to
            32,768.
        model_options: What `PromptEOL` is opened with: `template`, `layer`, `revision`, … Defaults to nothing.
        devices: Of the local engine: with several, sentence-transformers starts a process for each. Defaults to None:
            all CUDA devices if there are several, the model's own otherwise.
        address: Of the cluster, as `ray.init` takes it. Defaults to None: `RAY_ADDRESS`, else a Ray is started here.
        workers: The most workers at a time. Defaults to None: one for each GPU of the cluster, or for each
            `cpus_per_worker` cores if it has none.
        cpus_per_worker: Cores of a worker of the Ray engine that has no GPU. Defaults to None: 1.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        What lies in the destination now.

    Raises:
        ValueError: If an argument is out of range, a column is missing, or a model cannot be opened.
        FileNotFoundError: If there is no such source or model.
        FileExistsError: If the destination holds something else, or embeddings of another model or other files.
        ConnectionError: If there is no cluster at the address.
        OSError: If the destination cannot be written; a full disk is named.
        ImportError: If an extra is missing.
        KeyboardInterrupt: When interrupted; parts that are done stay.

    Example:
        >>> report = encode_corpus("tiny", "examples/sentences.tsv", "embedded", column="sentence")
        >>> report.rows, report.parts
        (230, 1)
    """
    start = time.perf_counter()
    _check(model, engine, keep, batch_size, fragment_rows)
    of_ray = {"address": address, "workers": workers, "cpus_per_worker": cpus_per_worker}
    of_other: dict[str, Any] = {"devices": devices} if engine == "ray" else of_ray
    if unused := [f"{name}={value!r}" for name, value in of_other.items() if value is not None]:
        raise ValueError(f"{', '.join(unused)} has no effect with engine={engine!r}: leave it out.")
    addresses = [source] if isinstance(source, str | os.PathLike) else list(source)
    folder, sources = Storage(destination), [Storage(each).address for each in addresses]
    for each in sources:
        if folder.address == each or folder.address.startswith(each.rstrip("/") + "/"):
            raise ValueError(f"The destination {folder.address!r} lies in the source {each!r}: choose one outside.")
    files = list_sources(sources)
    fragments = cut(files, fragment_rows, column, keep or (), header)
    found = read_manifest(folder)
    job = Job(
        folder.address,
        column,
        None if keep is None else tuple(keep),
        batch_size,
        precision,
        normalize_embeddings,
        header=header,
    )
    options = dict(model_options or {})
    opened: AbstractContextManager[LocalEngine | RayEngine]
    if engine == "ray":
        opened = open_cluster(str(model), options, address, workers, cpus_per_worker or 1)
    else:
        opened = nullcontext(LocalEngine(model, options, devices))
    is_ours = False
    try:
        with opened as pool:
            of_model, about = pool.run(describe)
            identity = of_model | {
                "column": column,
                "keep": keep,
                "precision": precision,
                "normalize_embeddings": normalize_embeddings,
                "fragment_rows": fragment_rows,
            }
            if header is not None:
                identity["header"] = header
            about |= {"source": sources, "packages": packages()}
            manifest = Manifest(_as_json(identity), about, [asdict(file) for file in files])
            done: dict[str, Outcome] = {}
            if found is not None:
                check_identity(folder, found.identity, manifest.identity)
                manifest.ranges = found.ranges
                done = _finished(folder, found, files, fragments)
                if found.complete and len(done) == len(fragments):
                    logger.info("%r is complete: there is nothing to do.", folder.address)
                    return _report([done[fragment.part] for fragment in fragments], 0, [], start)
            if manifest.ranges is None and precision in ("int8", "uint8"):
                manifest.ranges = pool.run(calibrate, job, fragments)
            manifest.claim(folder)
            is_ours = True
            job = replace(job, identity=of_model, key=manifest.key, ranges=manifest.ranges)
            missing = [fragment for fragment in fragments if fragment.part not in done]
            outcomes = _encode(pool, job, missing, len(fragments), show_progress_bar)
    finally:
        if is_ours:
            folder.remove_staged(PREFIX)
    done |= {outcome.part: outcome for outcome in outcomes if not outcome.failure}
    manifest.failures = {outcome.part: outcome.failure for outcome in outcomes if outcome.failure}
    footers = read_footers(folder, list(done))
    for part in [part for part in done if footers.get(part, {}).get("key") != job.key]:
        del done[part]
        manifest.failures[part] = f"{part} is of another run to {folder.address!r}: run again, which replaces it."
    parts = [done[fragment.part] for fragment in fragments if fragment.part in done]
    manifest.complete = not manifest.failures
    manifest.parts = [{"name": part.part, "rows": part.rows, "bad_rows": part.bad_rows} for part in parts]
    manifest.totals = {
        name: sum(getattr(part, name) for part in parts) for name in ("rows", "bad_rows", "seconds", "tokens")
    }
    manifest.write(folder)
    return _report(parts, sum(outcome.rows for outcome in outcomes), list(manifest.failures.values()), start)


def _check(
    model: str | SentenceTransformer, engine: str, keep: Sequence[str] | None, batch_size: int, fragment_rows: int
) -> None:
    if engine not in ("local", "ray"):
        raise ValueError(f"Unknown engine {engine!r}: choose local or ray.")
    if engine == "ray" and not isinstance(model, str):
        raise ValueError("The Ray engine opens the model in every worker: pass its name or folder, not the model.")
    if isinstance(keep, str) or EMBEDDING in (keep or ()):
        raise ValueError(f"keep={keep!r} must be a list of columns, none of which is {EMBEDDING!r}, the output's own.")
    check_whole(batch_size=batch_size, fragment_rows=fragment_rows)


def _finished(
    folder: Storage, found: Manifest, files: Sequence[SourceFile], fragments: Sequence[Fragment]
) -> dict[str, Outcome]:
    """Returns the outcomes of the fragments whose parts are in place."""
    footers = read_footers(folder, [name for name in folder.names() if name.startswith(PREFIX)])
    footers = {name: footer for name, footer in footers.items() if footer["key"] == found.key}
    check_files(folder, found.files, files, {footer["fragment"]["file"]["number"] for footer in footers.values()})
    expected = {fragment.part: _as_json(asdict(fragment)) for fragment in fragments}
    return {
        name: Outcome(**footer["outcome"])
        for name, footer in footers.items()
        if footer["fragment"] == expected.get(name)
    }


def _encode(
    pool: LocalEngine | RayEngine, job: Job, missing: Sequence[Fragment], total: int, show_progress_bar: bool
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    rows, start = 0, time.perf_counter()
    bar = tqdm(total=total, initial=total - len(missing), unit=" fragments", disable=not show_progress_bar)
    try:
        with bar, closing(pool.encode(job, missing)) as encoded:
            for outcome in encoded:
                outcomes.append(outcome)
                rows += outcome.rows
                if outcome.failure:
                    logger.warning("%s", outcome.failure)
                speed, padding = rows / (time.perf_counter() - start), _padding(outcomes)
                bar.set_postfix_str(f"{speed:.0f} sentences/s" + (f", {padding:.0%} padding" if padding else ""))
                bar.update()
    except KeyboardInterrupt:
        finished = total - len(missing) + len(outcomes)
        raise KeyboardInterrupt(
            f"Interrupted: {finished} of {total} parts are in {job.destination!r}, and the same call goes on."
        ) from None
    return outcomes


def _report(parts: Sequence[Outcome], encoded_rows: int, failures: Sequence[str], start: float) -> CorpusReport:
    return CorpusReport(
        rows=sum(part.rows for part in parts),
        bad_rows=sum(part.bad_rows for part in parts),
        parts=len(parts),
        encoded_rows=encoded_rows,
        seconds=time.perf_counter() - start,
        padding=_padding(parts),
        failures=tuple(failures),
    )


def _padding(parts: Sequence[Outcome]) -> float | None:
    cells = sum(part.cells for part in parts)
    return 1 - sum(part.tokens for part in parts) / cells if cells else None


def _as_json(values: Any) -> Any:
    """Returns values as JSON gives them back."""
    return json.loads(json.dumps(values))
