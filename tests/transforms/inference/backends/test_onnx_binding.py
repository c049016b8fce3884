"""Inputs and logits bound to a device, as on CUDA: here the device is the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tests.models import make_model, random_texts


def test_bound_inputs_give_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sequences padded, and one alone."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    model = str(make_model(tmp_path / "model"))
    backend = load_backend(InferEntry.model_validate({"model": model, "backend": {"type": "onnx", "device": "cpu"}}))
    encoded = backend.encode(pa.array(random_texts(40, seed=1, longest=30), pa.large_string()))
    for rows in (np.arange(40, dtype=np.int32), np.array([3], np.int32)):
        found = backend._bound(backend._tokenizer.inputs([(encoded, rows)]))
        np.testing.assert_allclose(found, backend.forward([(encoded, rows)]), atol=1e-6)
    backend.close()
