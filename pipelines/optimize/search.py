"""Finds the fastest backend on this machine whose labels agree with fp32, and writes its certificate.

Candidates form ladders. Each ladder goes from the fastest candidate to the most exact one; dynamic int8 is one ladder,
int8 with static ranges another. The search climbs a ladder until a candidate's labels agree with fp32's in enough rows
of the sample. It leaves the ladder early if a candidate is much slower than the best that agrees, because the following
ones are slower still. A backend looks too good on the rows by which it was chosen. So ranges, sensitivity and the first
choice use one half of the sample; the labels of the other half must agree as well, and give the certificate's figures.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tagstream.pipelines.optimize.measure import TOO_SLOW, Candidate, Measured, Sample, measure
from tagstream.schemas.errors import ModelError, SourceError
from tagstream.schemas.spec import InferEntry, OnnxBackend, PyTorchBackend
from tagstream.transforms.inference.backends.auto import certificate_folder
from tagstream.transforms.inference.backends.huggingface import files_of
from tagstream.transforms.inference.backends.onnx_export import export_fp32
from tagstream.transforms.inference.backends.onnx_int8 import DYNAMIC_WAYS, STATIC_WAYS, Int8, by_sensitivity, quantise
from tagstream.transforms.inference.backends.onnx_smooth import Inputs
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.inference.certificate import Certificate, hash_file
from tagstream.transforms.runtime.machine import cpu_name
from tagstream.transforms.tokenization.text_checks import as_text, is_text, unfit_rows

READ_ROWS = 2048
RANGE_ROWS = 256
"""How many texts of the sample are run to find the ranges for smoothing and static int8."""
ABANDONED_SECONDS = 24 * 3600
LEAST_ROWS = 200
"""Fewest rows to certify with. With fewer, one changed label would be more than half a percent."""
LEAST_TOKENS = 64
WORTHWHILE = 1.03
"""The search for a token budget ends when a budget is not faster by this factor."""


def optimize_entry(
    entry: InferEntry,
    sample: pa.LargeStringArray,
    folder: Path | None,
    min_agreement: float,
    console: Console,
    *,
    compiled: bool = False,
) -> tuple[Certificate, list[Measured], list[tuple[str, str]]]:
    """Returns the winner's certificate, all measurements, and the candidates that failed, each with its reason.

    Writes the certificate and the winner's ONNX file to `folder`, by default the folder where `backend: auto` looks.
    `compiled`: try torch.compile as well. Raises ModelError, and SourceError for a sample that is too small.
    """
    halves = Sample.halves(sample)
    if len(halves.held) < LEAST_ROWS:
        raise SourceError(
            f"--sample: {len(halves.held):,} texts to certify with (half of {len(sample):,}, copies together) are too "
            f"few to tell how many labels change. At least {LEAST_ROWS} are needed"
        )
    folder = folder or certificate_folder(entry)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".candidates-*"):  # left by a search that was killed
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".candidates-")
    except OSError as error:
        raise ModelError(f"{folder}: the certificate can't be written there: {error.strerror}") from None
    with scratch as candidates:
        return _search(entry, halves, Path(candidates), folder, min_agreement, console, compiled=compiled)


def _search(
    entry: InferEntry,
    sample: Sample,
    candidates: Path,
    folder: Path,
    min_agreement: float,
    console: Console,
    *,
    compiled: bool,
) -> tuple[Certificate, list[Measured], list[tuple[str, str]]]:
    with console.status("measuring pytorch fp32"):
        fp32 = measure(entry, Candidate("pytorch fp32", PyTorchBackend(precision="fp32")), sample)
    measured, failed = [fp32], []
    for ladder in _ladders(entry, sample.searched, candidates, compiled):
        for name, prepare in ladder:
            with console.status(f"measuring {name}"):
                try:
                    best = _fastest(measured)
                    result = measure(entry, prepare(), sample, fp32, min_agreement, best)
                except ModelError as error:
                    failed.append((name, str(error)))
                    continue
            measured.append(result)
            if result.stopped in ("", TOO_SLOW):
                break
    with console.status("looking for the token budget"):
        measured += _other_budgets(entry, _fastest(measured), sample, fp32, min_agreement)
    winner = _fastest(measured)
    certificate = _certificate(entry, winner, fp32, sample)
    before = _certified_file(folder)
    if winner.candidate.file and certificate.file:
        winner.candidate.file.replace(folder / certificate.file)
    certificate.write(folder)  # both files exist now, so a job that starts here reads a complete pair, old or new
    in_cache = folder.is_relative_to(files_of(entry).cache_folder())  # elsewhere a SPEC may name the old file
    if before and before != certificate.file and in_cache:
        (folder / before).unlink(missing_ok=True)
    return certificate, measured, failed


def _certified_file(folder: Path) -> str | None:
    with suppress(ModelError):
        certificate = Certificate.read(folder)
        return certificate.file if certificate else None
    return None


def _certificate(entry: InferEntry, winner: Measured, fp32: Measured, sample: Sample) -> Certificate:
    files, file, head = files_of(entry), winner.candidate.file, describe(entry)[0]
    digest = hash_file(file) if file else None
    return Certificate(
        weights=files.weights_hash(),
        tokenizer=files.tokenizer_hash(),
        max_length=entry.max_length,
        long_text=head.long_text,
        task=head.certified,
        thresholds=entry.thresholds,
        function_to_apply=entry.function_to_apply,
        device=winner.device,
        backend=winner.candidate.backend.model_dump(mode="json", exclude={"file"}),
        file=f"{file.stem}-{digest[:8]}.onnx" if file and digest else None,
        file_hash=digest,
        sample=hash_texts(sample.held),
        sample_rows=len(sample.held),
        agreement=winner.agreement,
        drift_p99=winner.drift_p99,
        drift_max=winner.drift_max,
        rows_per_s=round(winner.rows_per_s, 1),
        fp32_rows_per_s=round(fp32.rows_per_s, 1),
        machine=cpu_name(),
        versions=dict(_versions("torch", "transformers", "onnxruntime")),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
    )


def read_sample(path: str, column: str, rows: int) -> pa.LargeStringArray:
    """The first `rows` texts of a Parquet file that can be tokenised. Raises SourceError."""
    try:
        with fsspec.open(path, "rb") as opened:
            file = pq.ParquetFile(opened)
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise SourceError(f"--sample {path}: no column {column!r}; there are: {names}")
            if not is_text(file.schema_arrow.field(column).type):
                raise SourceError(f"--sample {path}: column {column!r} is not text; choose another with --text")
            batches = []
            for batch in file.iter_batches(min(rows, READ_ROWS), columns=[column]):
                texts = as_text(batch.column(0), column)
                unfit, _ = unfit_rows(texts)
                alive = np.ones(len(texts), bool)
                alive[unfit] = False
                batches.append(texts.filter(pa.array(alive)))
                if sum(map(len, batches)) >= rows:
                    break
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"--sample {path}: {error}") from None
    sample = pa.concat_arrays(batches).slice(0, rows) if batches else pa.array([], pa.large_string())
    if not len(sample):
        raise SourceError(f"--sample {path}: column {column!r} holds no text")
    return sample


def print_measured(
    console: Console, certificate: Certificate, measured: list[Measured], failed: list[tuple[str, str]]
) -> None:
    """Print a table of all measurements, the candidates that failed, and the winner."""
    table = Table()
    for column in ("backend", "rows/s", "labels as fp32", "drift p99", "drift max", "rows"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for m in sorted(measured, key=lambda m: -m.rows_per_s):
        cells = (f"{m.rows_per_s:,.0f}", f"{m.agreement:.2%}", f"{m.drift_p99:.4f}", f"{m.drift_max:.4f}")
        rows = f"{m.rows:,}: {m.stopped}" if m.stopped else f"{m.rows:,}"
        table.add_row(m.candidate.name, *cells, rows)
    console.print(table)
    for notice in dict.fromkeys(m.notice for m in measured if m.notice):
        console.print(notice, highlight=False, markup=False)
    for name, reason in failed:
        console.print(f"not tried: {name}: {reason}", highlight=False, markup=False)
    ratio = certificate.rows_per_s / certificate.fp32_rows_per_s
    backend = " ".join(str(certificate.backend[key]) for key in ("type", "precision") if key in certificate.backend)
    backend += " compiled" if certificate.backend.get("compile") else ""
    console.print(
        f"certified: {backend}{f' ({certificate.file})' if certificate.file else ''}, {ratio:.1f} x fp32, "
        f"labels equal in {certificate.agreement:.2%} of {certificate.sample_rows:,} held-out rows. "
        "`backend: {type: auto}` uses it",
        highlight=False,
    )


def hash_texts(texts: pa.LargeStringArray) -> str:
    """16 hexadecimal digits of the SHA-256 over the texts with their lengths."""
    digest = hashlib.sha256()
    for text in texts.to_numpy(zero_copy_only=False):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _ladders(
    entry: InferEntry, sample: pa.LargeStringArray, folder: Path, compiled: bool
) -> Iterator[list[tuple[str, Callable[[], Candidate]]]]:
    """Ladders of (name, function that prepares the candidate). The function may raise ModelError."""
    files, head = files_of(entry), describe(entry)[0]

    @functools.cache
    def rows() -> list[Inputs]:
        return _single_rows(entry, sample)

    @functools.cache
    def ranked() -> list[str]:
        return by_sensitivity(export_fp32(files, folder, head), rows())

    def onnx(name: str, make: Callable[[], Path]) -> Candidate:
        path = make()
        return Candidate(name, OnnxBackend(file=str(path)), path)

    def int8(name: str, way: Int8, path: Path) -> Candidate:
        ranges = rows() if way.smooth or way.static else ()
        kept = ranked() if way.keep else ()
        return onnx(name, lambda: quantise(export_fp32(files, folder, head), way, path, ranges, kept))

    def pytorch(name: str, **settings: Any) -> tuple[str, Callable[[], Candidate]]:
        return name, lambda: Candidate(name, PyTorchBackend(**settings))

    yield [pytorch("pytorch bf16", precision="bf16")]
    if compiled:
        yield [pytorch("pytorch fp32 compiled", precision="fp32", compile=True)]
        yield [pytorch("pytorch bf16 compiled", precision="bf16", compile=True)]
    if head.output == "text":  # no export of a model writes texts
        return
    yield [("onnx fp32", lambda: onnx("onnx fp32", lambda: export_fp32(files, folder, head)))]
    for kind, ways in (("dynamic", DYNAMIC_WAYS), ("static", STATIC_WAYS)):
        names = [(f"onnx {way.name}", way, folder / f"int8-{kind}-{n}.onnx") for n, way in enumerate(ways)]
        yield [(name, functools.partial(int8, name, way, path)) for name, way, path in names]


def _single_rows(entry: InferEntry, sample: pa.LargeStringArray) -> list[Inputs]:
    """Model inputs of texts from all parts of the sample, one text each, so that there is no padding."""
    head = describe(entry)[0]
    tokenizer = head.tokenizer(files_of(entry))
    at = np.linspace(0, len(sample) - 1, min(RANGE_ROWS, len(sample))).astype(np.int64)
    encoded = head.encode(tokenizer, sample.take(pa.array(at)))
    rows = np.arange(len(encoded.lengths))[encoded.lengths > 1, None]
    return [tokenizer.inputs([(encoded, row)]) for row in rows]


def _fastest(measured: list[Measured]) -> Measured:
    """The fastest candidate that can be certified. There is always one, because fp32 can be."""
    return max((m for m in measured if not m.stopped), key=lambda m: m.rows_per_s)


def _other_budgets(
    entry: InferEntry, best: Measured, sample: Sample, fp32: Measured, min_agreement: float
) -> Iterator[Measured]:
    """Measure the fastest candidate with larger token budgets, as long as each is faster than the one before.

    If no larger budget is faster, try smaller ones.
    """
    for factor in (2.0, 0.5):
        before, budget, grown = best, best.token_budget, False
        while (budget := int(budget * factor)) >= LEAST_TOKENS:
            backend = before.candidate.backend.model_copy(update={"token_budget": budget})
            name = f"{best.candidate.name}, {budget:,} tokens"
            found = measure(entry, Candidate(name, backend, best.candidate.file), sample, fp32, min_agreement)
            yield found
            if found.stopped or found.rows_per_s < before.rows_per_s * WORTHWHILE:
                break
            before, grown = found, True
        if grown:
            return


def _versions(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
