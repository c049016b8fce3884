"""A backend is measured by its task's own answers: spans, answers, vectors; rows that fail in both agree."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tagstream.pipelines.optimize.measure import Candidate, Sample, measure
from tagstream.schemas.spec import InferEntry, OnnxBackend, PyTorchBackend
from tests.models import random_texts
from tests.task_models import entry_of

TEXTS = [text or "!" for text in random_texts(300, seed=1, longest=12)]


@pytest.mark.parametrize(
    "task", ["token-classification", "question-answering", "feature-extraction", "zero-shot-classification"]
)
def test_an_export_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """fp32 by ONNX gives the answers of PyTorch; a text that is too long fails in both."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    entry = InferEntry.model_validate({**entry_of(task, tmp_path / "model"), "long_text": "dead_letter"})
    sample = Sample.halves(pa.array([*TEXTS, "free " * 300, "now " * 300], pa.large_string()))
    fp32 = measure(entry, Candidate("fp32", PyTorchBackend()), sample)
    found = measure(entry, Candidate("onnx", OnnxBackend()), sample, fp32)
    assert (found.agreement, found.stopped) == (1.0, "")
    assert found.drift_max < 1e-4


def test_other_answers_do_not_agree(tmp_path: Path) -> None:
    """In bf16 some spans of a random model are others."""
    entry = InferEntry.model_validate(entry_of("token-classification", tmp_path / "model"))
    sample = Sample.halves(pa.array(TEXTS, pa.large_string()))
    fp32 = measure(entry, Candidate("fp32", PyTorchBackend()), sample)
    half = measure(entry, Candidate("bf16", PyTorchBackend(precision="bf16")), sample, fp32)
    assert half.agreement < 1
    assert half.drift_max == 1
