"""`encode_corpus`: encodes any number of files into a folder of Parquet files, locally or on a Ray cluster."""

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
from st_prompteol.corpus.manifest import PACKAGES, Manifest, check_files, check_identity, describe, read_manifest
from st_prompteol.corpus.parts import EMBEDDING, PREFIX, Outcome, read_footers
from st_prompteol.corpus.storage import Storage
from st_prompteol.extras import versions_of
from st_prompteol.failures import check_whole
from st_prompteol.files import import_pyarrow
from st_prompteol.saved.identity import digest
from st_prompteol.standardization import Method

logger = logging.getLogger(__name__)

Address = str | os.PathLike[str]


@dataclass(frozen=True)
class CorpusReport:
    """The state of the destination after a run.

    Args:
        rows: Number of output rows.
        bad_rows: Number of output rows without text, whose embedding is null.
        parts: Number of output files.
        encoded_rows: Number of rows encoded by this run, excluding earlier runs.
        seconds: Duration of this run, in seconds.
        padding: Fraction of padding in the tokenized batches; None if other processes tokenized them.
        failures: Error messages for unreadable input, whose rows are missing; call again to retry.

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
    standardize: Sequence[str] = (),
    standardization: Method = "scale",
    fragment_rows: int = 32_768,
    model_options: Mapping[str, Any] | None = None,
    devices: Sequence[str] | None = None,
    address: str | None = None,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    show_progress_bar: bool = False,
) -> CorpusReport:
    """Encodes every row of a corpus. Resumable: call again with the same arguments.

    The output consists of a Parquet file per fragment of the input, whose names sort in the order of the input, with
    the kept columns and `embedding`, and of `_manifest.json`, which describes model, settings and input. Rows without
    text (null, not a string, not UTF-8, not JSON) have a null embedding. A destination holds the embeddings of one
    model.

    Args:
        model: The name or folder of a model for `PromptEOL`; for the local engine also a loaded `SentenceTransformer`.
        source: One or more files or folders: `.parquet`, `.jsonl`, `.json`, `.csv`, `.tsv`, `.txt` with one sentence
            per line, all but Parquet optionally compressed (`.gz`, `.zst`); as a local path or an address (`s3://`,
            `gs://`, `hf://datasets/…`, any that fsspec supports).
        destination: The output folder, as a local path or an address; all nodes of a cluster write to it.
        column: The column of the sentences; `"1"`, `"2"`, … in CSV and TSV files without a header. Defaults to None:
            the only column.
        header: Whether CSV and TSV files have a header. Defaults to None: detected from their content, with an error
            if that is ambiguous.
        keep: The input columns to write before `embedding`: from Parquet unchanged, from other formats as text (JSON
            values other than strings as JSON). Defaults to None: the sentences.
        engine: `"local"` for this machine, `"ray"` for a cluster or a local Ray. Defaults to `"local"`.
        batch_size: Number of sentences per forward pass; halved when out of memory. Defaults to 32.
        precision: Precision of the embeddings: `"float16"`, or see `SentenceTransformer.encode`. `"int8"` and
            `"uint8"` are scaled by the ranges of up to 4,096 sentences from the whole corpus. Defaults to `"float32"`.
        normalize_embeddings: Whether to scale embeddings to length 1. Defaults to False.
        standardize: Sentences by whose statistics to standardize embeddings, see `PromptEOL.standardize`. Defaults to
            none: embeddings are not standardized, except by a model that is.
        standardization: How to standardize: `"center"`, `"scale"` or `"whiten"`. Defaults to `"scale"`.
        fragment_rows: Approximate number of rows per fragment, which a stopped worker has to repeat. Defaults to
            32,768.
        model_options: Arguments of `PromptEOL`: `template`, `layer`, `revision`, … Defaults to none.
        devices: Devices of the local engine; for several, sentence-transformers starts a process each.
            Defaults to None: all CUDA devices if there are several, else the model's own.
        address: Address of the cluster, see `ray.init`. Defaults to None: `RAY_ADDRESS`, else a local Ray is started.
        workers: Maximum number of workers. Defaults to None: one per GPU of the cluster, or per `cpus_per_worker`
            cores if it has none.
        cpus_per_worker: Number of cores of a Ray worker without a GPU. Defaults to None: 1.
        show_progress_bar: Whether to show a progress bar. Defaults to False.

    Returns:
        The state of the destination.

    Raises:
        ValueError: If an argument is out of range, a column is missing, or a model cannot be loaded.
        FileNotFoundError: If a source or the model does not exist.
        FileExistsError: If the destination holds other files, or embeddings of another model or other input.
        ConnectionError: If there is no cluster at the address.
        OSError: If the destination cannot be written, e.g. because the disk is full.
        ImportError: If an extra is missing.
        KeyboardInterrupt: When interrupted; finished parts are kept.

    Example:
        >>> report = encode_corpus("tiny", "examples/sentences.tsv", "embedded", column="sentence")
        >>> report.rows, report.parts
        (230, 1)
    """
    start = time.perf_counter()
    _check(model, engine, keep, batch_size, fragment_rows)
    if standardization != "scale" and not standardize:
        raise ValueError(f"standardization={standardization!r} has no effect without standardize=…: leave it out.")
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
            if standardize:  # by its sentences, because the statistics of another machine have other rounding errors
                identity["standardization"] = [standardization, digest(list(standardize))]
            about |= {"source": sources, "packages": versions_of(PACKAGES)}
            manifest = Manifest(_as_json(identity), about, [asdict(file) for file in files])
            done: dict[str, Outcome] = {}
            if found is not None:
                check_identity(folder, found.identity, manifest.identity)
                manifest.ranges = found.ranges
                done = _finished(folder, found, files, fragments)
                if found.complete and len(done) == len(fragments):
                    logger.info("%r is complete: there is nothing to do.", folder.address)
                    return _report([done[fragment.part] for fragment in fragments], 0, [], start)
            if standardize:
                of_model = pool.standardize(standardize, standardization)
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
    import_pyarrow()  # parts are Parquet files
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
    """Returns the outcomes of the fragments whose parts are complete."""
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
    """Returns values after a JSON round trip."""
    return json.loads(json.dumps(values))
