"""Finding the fastest backend of this machine whose labels are those of fp32, and writing the certificate for it.

Each candidate runs the same sample through an engine of its own, model loading and a warm-up left out. A candidate
counts only if its labels agree with fp32's in enough rows. int8 is tried from the fastest way of quantising to the
most careful one, until one agrees.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from schemas.errors import ModelError, SourceError
from schemas.spec import Classifier, OnnxBackend, PyTorchBackend
from transforms.backends import load_backend
from transforms.backends.huggingface import files_of
from transforms.backends.onnx_export import INT8_WAYS, Int8, cache_folder, export_fp32, quantise
from transforms.certificate import Certificate, hash_file
from transforms.engine import Engine
from transforms.model_files import ModelFiles
from transforms.text import as_text, is_text, unfit_rows

Array = np.ndarray
WARM_UP_ROWS = 64
BLOCK_ROWS = 2048
LEAST_TOKENS = 64
WORTHWHILE = 1.03
"""A budget that is faster by less ends the search."""


@dataclass(frozen=True)
class Candidate:
    """A backend to try. `file`: the ONNX file it needs, None for PyTorch."""

    name: str
    backend: PyTorchBackend | OnnxBackend
    file: Path | None = None


@dataclass(frozen=True)
class Measured:
    """rows_per_s: engine alone; agreement and drift against fp32, see `Certificate`."""

    candidate: Candidate
    scores: Array
    rows_per_s: float
    token_budget: int
    agreement: float = 1.0
    drift_p99: float = 0.0
    drift_max: float = 0.0


def optimize_classifier(
    classifier: Classifier, sample: pa.LargeStringArray, folder: Path | None, min_agreement: float, console: Console
) -> tuple[Certificate, list[Measured], list[tuple[str, str]]]:
    """Certificate of the winner, everything measured, and candidates that failed with their reason.

    Certificate and the winner's file are written to `folder`, by default the model's cache folder. Raises ModelError.
    """
    files = files_of(classifier)
    folder = folder or cache_folder(files)
    with console.status("measuring fp32"):
        fp32 = _measure(classifier, Candidate("pytorch fp32", PyTorchBackend(precision="fp32")), sample, None)
    measured, failed, int8_agrees = [fp32], [], False
    for name, prepare in _candidates(classifier, folder):
        if name.startswith("onnx int8") and int8_agrees:
            continue
        with console.status(f"measuring {name}"):
            try:
                result = _measure(classifier, prepare(), sample, fp32)
            except ModelError as error:
                failed.append((name, str(error)))
                continue
        measured.append(result)
        int8_agrees |= name.startswith("onnx int8") and result.agreement >= min_agreement
    with console.status("looking for the token budget"):
        measured += _other_budgets(classifier, _fastest(measured, min_agreement), sample, fp32)
    winner = _fastest(measured, min_agreement)
    file = winner.candidate.file
    certificate = Certificate(
        weights=files.weights_hash(),
        tokenizer=files.tokenizer_hash(),
        backend=winner.candidate.backend.model_dump(mode="json", exclude={"file"}),
        file=file.name if file else None,
        file_hash=hash_file(file) if file else None,
        sample=hash_texts(sample),
        sample_rows=len(sample),
        agreement=winner.agreement,
        drift_p99=winner.drift_p99,
        drift_max=winner.drift_max,
        rows_per_s=round(winner.rows_per_s, 1),
        fp32_rows_per_s=round(fp32.rows_per_s, 1),
        machine=f"{_cpu()}, {os.cpu_count()} cores",
        versions=dict(_versions("torch", "transformers", "onnxruntime")),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
    )
    certificate.write(folder)
    for m in measured:
        if m.candidate.file not in (None, file):
            m.candidate.file.unlink(missing_ok=True)
    return certificate, measured, failed


def read_sample(path: str, column: str, rows: int) -> pa.LargeStringArray:
    """The first `rows` fit texts of a Parquet file. Raises SourceError."""
    try:
        with fsspec.open(path, "rb") as opened:
            file = pq.ParquetFile(opened)
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise SourceError(f"--sample {path}: no column {column!r}; there are: {names}")
            if not is_text(file.schema_arrow.field(column).type):
                raise SourceError(f"--sample {path}: column {column!r} is no text; choose another with --text")
            batches = []
            for batch in file.iter_batches(min(rows, BLOCK_ROWS), columns=[column]):
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
    """What was tried, and what won."""
    table = Table()
    for column in ("backend", "rows/s", "labels as fp32", "drift p99", "drift max"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for m in sorted(measured, key=lambda m: -m.rows_per_s):
        cells = (f"{m.rows_per_s:,.0f}", f"{m.agreement:.2%}", f"{m.drift_p99:.4f}", f"{m.drift_max:.4f}")
        table.add_row(m.candidate.name, *cells)
    console.print(table)
    for name, reason in failed:
        console.print(f"not tried: {name}: {reason}", highlight=False, markup=False)
    ratio = certificate.rows_per_s / certificate.fp32_rows_per_s
    backend = " ".join(str(certificate.backend[key]) for key in ("type", "precision") if key in certificate.backend)
    console.print(
        f"certified: {backend}{f' ({certificate.file})' if certificate.file else ''}, {ratio:.1f} x fp32, "
        f"labels equal in {certificate.agreement:.2%} of {certificate.sample_rows:,} rows. "
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


def _candidates(classifier: Classifier, folder: Path) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Names, and what makes each ready; that may raise ModelError."""
    files = files_of(classifier)

    def onnx(name: str, make: Callable[[], Path]) -> Candidate:
        path = make()
        return Candidate(name, OnnxBackend(file=str(path)), path)

    yield "pytorch bf16", lambda: Candidate("pytorch bf16", PyTorchBackend(precision="bf16"))
    yield "onnx fp32", lambda: onnx("onnx fp32", lambda: export_fp32(files, folder))
    for number, way in enumerate(INT8_WAYS):
        make = functools.partial(_quantised, files, folder, way, folder / f"int8-{number}.onnx")
        yield f"onnx {way.name}", functools.partial(onnx, f"onnx {way.name}", make)


def _quantised(files: ModelFiles, folder: Path, way: Int8, path: Path) -> Path:
    return quantise(export_fp32(files, folder), way, path)


def _fastest(measured: list[Measured], min_agreement: float) -> Measured:
    return max((m for m in measured if m.agreement >= min_agreement), key=lambda m: m.rows_per_s)


def _other_budgets(
    classifier: Classifier, best: Measured, sample: pa.LargeStringArray, fp32: Measured
) -> Iterator[Measured]:
    """The fastest candidate with larger micro-batches, and if these don't help smaller ones, while each is faster."""
    for factor in (2.0, 0.5):
        before, budget, grown = best, best.token_budget, False
        while (budget := int(budget * factor)) >= LEAST_TOKENS:
            backend = before.candidate.backend.model_copy(update={"token_budget": budget})
            name = f"{best.candidate.name}, {budget:,} tokens"
            found = _measure(classifier, Candidate(name, backend, best.candidate.file), sample, fp32)
            yield found
            if found.rows_per_s < before.rows_per_s * WORTHWHILE:
                break
            before, grown = found, True
        if grown:
            return


def _measure(
    classifier: Classifier, candidate: Candidate, sample: pa.LargeStringArray, fp32: Measured | None
) -> Measured:
    engine = Engine(load_backend(classifier.model_copy(update={"backend": candidate.backend})))
    try:
        engine.submit(sample.slice(0, WARM_UP_ROWS)).result()
        started = time.perf_counter()
        futures = [engine.submit(sample.slice(at, BLOCK_ROWS)) for at in range(0, len(sample), BLOCK_ROWS)]
        scores = np.concatenate([future.result().scores for future in futures])
        seconds = time.perf_counter() - started
        activation, budget = engine.backend.head.activation, engine.token_budget
    finally:
        engine.close()
    rows_per_s = len(sample) / seconds
    if fp32 is None:
        return Measured(candidate, scores, rows_per_s, budget)
    drift = np.abs(scores - fp32.scores).max(axis=1)
    agreement = float(same_labels(scores, fp32.scores, activation).mean())
    return Measured(
        candidate, scores, rows_per_s, budget, agreement, float(np.quantile(drift, 0.99)), float(drift.max())
    )


def same_labels(scores: Array, reference: Array, activation: str) -> Array:
    """Bool [rows]: the same best label; the same set of labels; for regression within 1 % of the reference's spread."""
    if activation == "softmax":
        return np.asarray(scores.argmax(axis=1) == reference.argmax(axis=1))
    if activation == "sigmoid":
        return np.asarray(((scores >= 0.5) == (reference >= 0.5)).all(axis=1))
    return np.asarray((np.abs(scores - reference) <= 0.01 * reference.std(axis=0)).all(axis=1))


def _versions(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
