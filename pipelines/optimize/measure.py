"""Runs a sample through one backend: measures rows/s, and how far labels and scores differ from those of fp32."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry, OnnxBackend, PyTorchBackend
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.inference.self_check import load_checked
from tagstream.transforms.tasks.head import Head, Values

Array = np.ndarray
WARM_UP_ROWS = 64
TRIAL_ROWS = 256
BLOCK_ROWS = 2048
PROOF_ROWS = 256
"""Rows of the sample that fp32 labels one at a time as well, because all others are compared with its micro-batches."""
SAME = 1e-3
"""How much a score of fp32 may differ between a micro-batch and a row alone (a regression value: a share of it)."""
LABELS_DIFFER, TOO_SLOW, HELD_DIFFER = "labels differ", "too slow", "labels differ where held out"
HOPELESS = 0.75
"""A candidate is stopped after the trial if it is slower than this share of the best candidate's trial."""


@dataclass(frozen=True)
class Sample:
    """The sample in two parts, because a backend looks too good on the rows by which it was chosen.

    `searched`: texts for measuring ranges and choosing a backend. `held`: texts for the certificate's figures.
    """

    searched: pa.LargeStringArray
    held: pa.LargeStringArray

    @classmethod
    def halves(cls, texts: pa.LargeStringArray) -> Self:
        """Hold out every second distinct text, together with its copies."""
        held = texts.dictionary_encode().indices.to_numpy() % 2 == 1
        return cls(texts.filter(pa.array(~held)), texts.filter(pa.array(held)))


@dataclass(frozen=True)
class Candidate:
    """A backend to try. `file`: its ONNX file; None for PyTorch."""

    name: str
    backend: PyTorchBackend | OnnxBackend
    file: Path | None = None


@dataclass(frozen=True)
class Measured:
    """The result for one candidate.

    `scores`: of the first `rows` rows of the sample, those that were run. `rows_per_s`: the engine alone, over these
    rows. `trial_rows_per_s`: over the first TRIAL_ROWS rows. `device`: cpu, cuda or mps. Agreement and drift are
    measured against fp32, see `Certificate`: on the rows held out, or on the others if none of those was run.
    `stopped`: why the candidate can't be certified; empty if it can. `notice`: says if it runs one row at a time.
    """

    candidate: Candidate
    scores: Values
    rows_per_s: float
    trial_rows_per_s: float
    token_budget: int
    device: str
    agreement: float = 1.0
    drift_p99: float = 0.0
    drift_max: float = 0.0
    stopped: str = ""
    notice: str = ""

    @property
    def rows(self) -> int:
        return len(self.scores)


def measure(
    entry: InferEntry,
    candidate: Candidate,
    sample: Sample,
    fp32: Measured | None = None,
    least_agreement: float = 0.0,
    best: Measured | None = None,
) -> Measured:
    """Run the sample in a new engine. Loading and warm-up are not timed. Raises ModelError.

    The run stops after the trial if so many labels differ from fp32's that `least_agreement` is out of reach, or if
    the trial was much slower than that of `best`. It stops before the rows held out if too many labels of the other
    rows differ.

    Without `fp32` the candidate is the reference: it must give rows the scores that it gives them one at a time.
    """
    first, searched = sample.searched.slice(0, TRIAL_ROWS), len(sample.searched)
    backend, works, notice = load_checked(entry.model_copy(update={"backend": candidate.backend}))
    engine = Engine(backend, works=works)
    try:
        engine.submit(first.slice(0, WARM_UP_ROWS)).result()
        scores, seconds = _timed(engine, first)
        trial_rows_per_s = len(scores) / seconds
        head = backend.head
        equal = functools.partial(_equal, head=head)
        start, stopped = 0, ""
        if fp32 and equal(scores, fp32.scores[:searched]).mean() < least_agreement:
            stopped = LABELS_DIFFER
        elif best and trial_rows_per_s < HOPELESS * best.trial_rows_per_s:
            stopped = TOO_SLOW
        parts = (sample.searched.slice(TRIAL_ROWS), 0, LABELS_DIFFER), (sample.held, searched, HELD_DIFFER)
        for texts, begin, differ in parts:
            if stopped or not len(texts):
                continue
            more, more_seconds = _timed(engine, texts)
            start = begin
            scores, seconds = _joined([scores, more]), seconds + more_seconds
            if fp32 and equal(scores[start:], fp32.scores[start : len(scores)]).mean() < least_agreement:
                stopped = differ
        if fp32 is None:
            _prove(engine, pa.concat_arrays([sample.searched, sample.held]), scores, entry.as_)
        budget, device = engine.token_budget, engine.backend.device.partition(":")[0]
    finally:
        engine.close()
    rows_per_s = len(scores) / seconds
    if fp32 is None:
        return Measured(candidate, scores, rows_per_s, trial_rows_per_s, budget, device, notice=notice)
    ours, theirs = scores[start:], fp32.scores[start : len(scores)]
    drift = head.drift(_filled(ours), _filled(theirs))
    drift[_failed(ours) & _failed(theirs)] = 0.0
    return Measured(
        candidate,
        scores,
        rows_per_s,
        trial_rows_per_s,
        budget,
        device,
        agreement=float(equal(ours, theirs).mean()),
        drift_p99=float(np.quantile(drift, 0.99)),
        drift_max=float(drift.max()),
        stopped=stopped,
        notice=notice,
    )


def _prove(engine: Engine, texts: pa.LargeStringArray, scores: Values, name: str) -> None:
    """Raises ModelError if a row of the sample has other scores in a micro-batch than alone. Nothing else may run.

    `scores`: of `texts`, by micro-batches.
    """
    at = np.unique(np.linspace(0, len(texts) - 1, PROOF_ROWS).astype(np.int64))
    most, engine.backend.max_rows = engine.backend.max_rows, 1
    try:
        alone, _ = _timed(engine, texts.take(pa.array(at)))
    finally:
        engine.backend.max_rows = most
    together = scores[at] if isinstance(scores, np.ndarray) else scores.take(pa.array(at))
    head = engine.backend.head
    if isinstance(scores, np.ndarray):
        scale = np.maximum(1.0, np.abs(np.nan_to_num(alone)))
        differ = (np.abs(np.nan_to_num(together) - np.nan_to_num(alone)) / scale).max(axis=1)
    else:
        differ = head.drift(together, alone)
    differ[_failed(together) != _failed(alone)] = np.inf
    worst = int(differ.argmax())
    if (by := float(differ[worst])) > SAME:
        text = texts[int(at[worst])].as_py()
        raise ModelError(
            f"{name}: nothing is certified: in fp32 the text {text[:60]!r} gets other scores in a micro-batch than "
            f"alone (by {by:.2g}), so there are no scores to compare with"
        )


def _equal(scores: Values, reference: Values, head: Head) -> Array:
    """Whether answers agree, for every row of the reference. Rows that have no scores yet count as equal.

    A row that failed in both runs is equal; a row that failed in only one is not.
    """
    scores = _joined([scores, reference[len(scores) :]])
    failed, expected = _failed(scores), _failed(reference)
    same = head.agree(_filled(scores), _filled(reference))
    return np.asarray((same & ~failed & ~expected) | (failed & expected))


def _timed(engine: Engine, texts: pa.LargeStringArray) -> tuple[Values, float]:
    """Answers, NaN or null for rows that failed, and the seconds that they took."""
    started = time.perf_counter()
    futures = [engine.submit(texts.slice(at, BLOCK_ROWS)) for at in range(0, len(texts), BLOCK_ROWS)]
    found = [future.result() for future in futures]
    seconds = time.perf_counter() - started
    return _joined([_without_failed(prediction) for prediction in found]), seconds


def _without_failed(prediction: Prediction) -> Values:
    values, failed = prediction.values, list(prediction.errors)
    if isinstance(values, np.ndarray):
        values[failed] = np.nan
        return values
    mask = np.zeros(len(values), bool)
    mask[failed] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, values.type), values) if failed else values


def _failed(values: Values) -> Array:
    """Bool [rows]: rows without an answer."""
    if isinstance(values, np.ndarray):
        return np.asarray(np.isnan(values).any(axis=1))
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def _filled(values: Values) -> Values:
    """The values with zeros for rows without an answer, so that they can be compared."""
    return np.nan_to_num(values) if isinstance(values, np.ndarray) else values


def _joined(parts: list[Values]) -> Values:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)
