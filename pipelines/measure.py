"""Running a sample through one backend: rows/s, and how far labels and scores are from those of fp32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.spec import Classifier, OnnxBackend, PyTorchBackend
from transforms.backends import load_backend
from transforms.engine import Engine

Array = np.ndarray
WARM_UP_ROWS = 64
TRIAL_ROWS = 256
BLOCK_ROWS = 2048
LABELS_DIFFER, TOO_SLOW = "labels differ", "too slow"
HOPELESS = 0.75
"""A candidate that is slower than this share of the best in the trial is not run to the end."""


@dataclass(frozen=True)
class Candidate:
    """A backend to try. `file`: the ONNX file it needs, None for PyTorch."""

    name: str
    backend: PyTorchBackend | OnnxBackend
    file: Path | None = None


@dataclass(frozen=True)
class Measured:
    """rows_per_s: engine alone; agreement and drift against fp32, see `Certificate`; all of the first `rows` rows.

    `stopped`: why the rest of the sample was not run; empty if all of it was. trial_rows_per_s: of TRIAL_ROWS.
    `device`: kind of it.
    """

    candidate: Candidate
    scores: Array
    rows_per_s: float
    trial_rows_per_s: float
    token_budget: int
    device: str
    agreement: float = 1.0
    drift_p99: float = 0.0
    drift_max: float = 0.0
    stopped: str = ""

    @property
    def rows(self) -> int:
        return len(self.scores)


def measure(
    classifier: Classifier,
    candidate: Candidate,
    sample: pa.LargeStringArray,
    fp32: Measured | None = None,
    least_agreement: float = 0.0,
    best: Measured | None = None,
) -> Measured:
    """The whole sample, in an engine of its own, without loading and warm-up. Raises ModelError.

    It ends after a trial if so many labels differ from fp32's that `least_agreement` is out of reach, or if it is much
    slower there than `best`.
    """
    engine = Engine(load_backend(classifier.model_copy(update={"backend": candidate.backend})))
    try:
        engine.submit(sample.slice(0, WARM_UP_ROWS)).result()
        scores, seconds = _timed(engine, sample.slice(0, TRIAL_ROWS))
        trial_rows_per_s = len(scores) / seconds
        head, stopped = engine.backend.head, ""
        usual = 0.5 if head.activation == "sigmoid" else 0.0
        thresholds = np.array([classifier.thresholds.get(label, usual) for label in head.names], np.float32)
        rest = sample.slice(TRIAL_ROWS)
        if len(rest) and fp32 and _equal(scores, fp32.scores, head.activation, thresholds).mean() < least_agreement:
            stopped = LABELS_DIFFER
        elif len(rest) and best and trial_rows_per_s < HOPELESS * best.trial_rows_per_s:
            stopped = TOO_SLOW
        elif len(rest):
            more, more_seconds = _timed(engine, rest)
            scores, seconds = np.concatenate([scores, more]), seconds + more_seconds
        budget, device = engine.token_budget, engine.backend.device.partition(":")[0]
    finally:
        engine.close()
    rows_per_s = len(scores) / seconds
    if fp32 is None:
        return Measured(candidate, scores, rows_per_s, trial_rows_per_s, budget, device)
    drift = np.abs(np.nan_to_num(scores) - np.nan_to_num(fp32.scores[: len(scores)])).max(axis=1)
    return Measured(
        candidate,
        scores,
        rows_per_s,
        trial_rows_per_s,
        budget,
        device,
        agreement=float(_equal(scores, fp32.scores, head.activation, thresholds)[: len(scores)].mean()),
        drift_p99=float(np.quantile(drift, 0.99)),
        drift_max=float(drift.max()),
        stopped=stopped,
    )


def same_labels(scores: Array, reference: Array, activation: str, thresholds: Array | None = None) -> Array:
    """Bool [rows]: the same best label; the same set of labels; for regression within 1 % of the reference's spread.

    `thresholds`: by label, [labels]; a best label below its own is none.
    """
    if activation == "softmax":
        least = np.zeros(scores.shape[1]) if thresholds is None else thresholds
        labels = [np.where(s.max(axis=1) < least[s.argmax(axis=1)], -1, s.argmax(axis=1)) for s in (scores, reference)]
        return np.asarray(labels[0] == labels[1])
    if activation == "sigmoid":
        least = np.full(scores.shape[1], 0.5) if thresholds is None else thresholds
        return np.asarray(((scores >= least) == (reference >= least)).all(axis=1))
    return np.asarray((np.abs(scores - reference) <= 0.01 * reference.std(axis=0)).all(axis=1))


def _equal(scores: Array, reference: Array, activation: str, thresholds: Array | None = None) -> Array:
    """`same_labels` of all rows of the reference, those that have no scores yet taken as equal; a row that only one of
    them could label is not.
    """
    scores = np.concatenate([scores, reference[len(scores) :]])
    failed, expected = np.isnan(scores).any(axis=1), np.isnan(reference).any(axis=1)
    same = same_labels(np.nan_to_num(scores), np.nan_to_num(reference), activation, thresholds)
    return np.asarray((same & ~failed & ~expected) | (failed & expected))


def _timed(engine: Engine, texts: pa.LargeStringArray) -> tuple[Array, float]:
    """Scores, NaN for rows that failed, and seconds."""
    started = time.perf_counter()
    futures = [engine.submit(texts.slice(at, BLOCK_ROWS)) for at in range(0, len(texts), BLOCK_ROWS)]
    found = [future.result() for future in futures]
    seconds = time.perf_counter() - started
    for prediction in found:
        prediction.scores[list(prediction.errors)] = np.nan
    return np.concatenate([prediction.scores for prediction in found]), seconds
