"""Models whose micro-batches would be wrong are found at load, and run one row at a time, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.inference.self_check import load_checked
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tokenization.padding import Padding
from tests.models import ARCHITECTURES, DECODERS, OTHERS, make_model, random_texts

TEXTS = pa.array(random_texts(30, seed=3, longest=20), pa.large_string())
ABSOLUTE = ["bert", "gpt2", "openai-gpt", "electra", "albert", "distilbert"]


def wrong(monkeypatch: pytest.MonkeyPatch, **padding: Any) -> None:
    """Makes the tokenizer pad in a way that does not fit the model."""
    monkeypatch.setattr(
        "tagstream.transforms.tokenization.tokenizer.padding_of", lambda *_: Padding(**{"pad_id": 1, **padding})
    )


def entry_of(folder: Path, **backend: Any) -> InferEntry:
    return InferEntry.model_validate({"model": str(folder), "as": "tag", "backend": {"type": "pytorch", **backend}})


def runs_alone(entry: InferEntry) -> None:
    """Asserts that the check sets the model to single rows with a notice, and that their labels are right."""
    backend, works, notice = load_checked(entry)
    backend.close()
    assert works is not None
    assert backend.max_rows == 1
    assert notice.startswith(f"tag: {entry.model}: rows of different lengths get other logits together than alone")
    assert "run one at a time" in notice
    engine = Engines(JobContext()).of(entry)
    scores = engine.submit(TEXTS).result(60).values
    encoded, every = engine.backend.encode(TEXTS), range(len(TEXTS))
    alone = np.concatenate([engine.backend.forward([(encoded, np.array([row]))]) for row in every])
    engine.close()
    exact = np.exp(alone - alone.max(axis=1, keepdims=True))
    np.testing.assert_allclose(scores, exact / exact.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("architecture", sorted([*ARCHITECTURES, *DECODERS, "xlnet"]))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_right_models_run_in_micro_batches(tmp_path: Path, architecture: str, precision: str) -> None:
    """Rounding is no difference."""
    if (architecture, precision) == ("xlnet", "bf16"):
        pytest.skip("transformers' XLNet mixes fp32 into bf16 and fails, which is an error at load")
    folder = make_model(tmp_path, architecture)
    backend, works, notice = load_checked(entry_of(folder, precision=precision))
    backend.close()
    assert (notice, works is None) == ("", False)
    assert backend.max_rows > 1


@pytest.mark.parametrize("architecture", sorted(DECODERS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_padding_that_the_head_takes_for_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, precision: str
) -> None:
    """Padded with another id than the head looks for: it pools the padding."""
    wrong(monkeypatch, pad_id=0)
    runs_alone(entry_of(make_model(tmp_path, architecture, pad_token_id=1), precision=precision))


@pytest.mark.parametrize("architecture", ABSOLUTE)
def test_padding_that_shifts_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """Padded on the left, where the model counts positions from the left."""
    wrong(monkeypatch, left=True)
    runs_alone(entry_of(make_model(tmp_path, architecture)))


def test_padding_that_is_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLNet takes the last position, whatever it is."""
    wrong(monkeypatch, left=False)
    runs_alone(entry_of(make_model(tmp_path, "xlnet")))


def test_model_without_an_attention_mask(tmp_path: Path) -> None:
    """FNet's backend leaves out the mask; every position is mixed with every other."""
    folder = make_model(tmp_path, "fnet")
    backend, _, notice = load_checked(entry_of(folder))
    backend.close()
    assert (backend.max_rows, "run one at a time" in notice) == (1, True)


def test_end_of_text_as_padding(tmp_path: Path) -> None:
    """T5 pools by the end of the text and refuses rows with different numbers of ends."""
    folder = make_model(tmp_path, "t5", bytewise={"end": True}, pad_token_id=0)
    assert "t5" in OTHERS
    backend, _, notice = load_checked(entry_of(folder))
    backend.close()
    assert "several rows at once fail (ValueError: All examples must have the same number of <eos>" in notice


def test_onnx_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export has the same faults as its model."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    folder = make_model(tmp_path / "model", "gpt2")
    entry = InferEntry.model_validate({"model": str(folder), "as": "tag", "backend": {"type": "onnx", "device": "cpu"}})
    backend, _, notice = load_checked(entry)
    backend.close()
    assert notice == ""
    wrong(monkeypatch, pad_id=0)
    runs_alone(entry)


def test_compiled_graphs_need_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that padding changes is refused, because a single row is padded too."""
    entry = entry_of(make_model(tmp_path, "fnet"))
    backend = load_backend(entry)
    backend.buckets = (32, 64)
    monkeypatch.setattr("tagstream.transforms.inference.self_check.load_backend", lambda _: backend)
    with pytest.raises(ModelError, match=r"padding changes what this model answers .* remove compile from backend"):
        load_checked(entry)


def test_the_user_is_told(tmp_path: Path) -> None:
    """Once for each engine, where notes of a run are shown."""
    folder = make_model(tmp_path, "fnet")
    context = JobContext()
    engines = Engines(context)
    engines.of(entry_of(folder))
    engines.of(entry_of(folder))
    engines.close()
    assert sum("run one at a time" in note for note in context.metrics.snapshot().notes) == 1


def test_tiny_length_with_dead_letters_has_nothing_to_try(tmp_path: Path) -> None:
    """Every text of the check may be too long. That is no fault of the model."""
    spec = {"model": str(make_model(tmp_path)), "max_length": 4, "long_text": "dead_letter"}
    backend, _, notice = load_checked(InferEntry.model_validate(spec))
    backend.close()
    assert notice == ""
