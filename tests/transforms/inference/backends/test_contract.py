"""The promises that the engine relies on, tested for every backend: see `inference.backends.contracts`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.inference.backends.registry import describe, identify, load_backend
from tests.models import make_model, random_texts

TEXTS = ["good", "", *random_texts(30, seed=4, longest=20), "free " * 200]
BACKENDS = {
    "constant": {"type": "constant", "label": "x"},
    "pytorch": {"type": "pytorch"},
    "onnx": {"type": "onnx"},
}


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def entry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InferEntry:
    folder = tmp_path_factory.mktemp("contract")
    patch = pytest.MonkeyPatch()
    patch.setenv("TAGSTREAM_CACHE", str(folder / "cache"))
    model = make_model(folder / "model", labels=("a", "b", "c"))
    yield InferEntry.model_validate({"model": str(model), "as": "x", "backend": BACKENDS[request.param]})
    patch.undo()


@pytest.fixture(scope="module")
def backend(entry: InferEntry) -> Backend:
    loaded = load_backend(entry)
    yield loaded
    loaded.close()


def strings(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def test_head_is_the_described_one(entry: InferEntry, backend: Backend) -> None:
    """The loaded backend has the head that `plan` shows without loading. Its identity is stable and of JSON values."""
    head = describe(entry)[0]
    assert (backend.head, backend.head.width) == (head, len(head.names))
    assert identify(entry) == identify(entry)
    assert all(isinstance(value, str) for value in identify(entry).values())
    assert backend.token_budget > 0
    assert backend.max_rows > 0


def test_token_budget_that_is_given_is_not_looked_for(entry: InferEntry, backend: Backend) -> None:
    """A given budget is kept. Without one the engine may search, and the result is stored for this device."""
    given = entry.model_copy(update={"backend": entry.backend.model_copy(update={"token_budget": 64})})
    loaded = load_backend(given)
    loaded.close()
    assert (loaded.token_budget, loaded.speed_key) == (64, "")
    assert bool(backend.speed_key) is (entry.backend.type != "constant")


def test_encode_gives_sequences_of_every_text(backend: Backend) -> None:
    """Every text has one or more sequences, in the order of texts, each longer than 0. The dtypes are as documented."""
    encoded = backend.encode(strings(*TEXTS))
    assert not encoded.errors
    assert (encoded.lengths.dtype, encoded.text.dtype) == (np.int32, np.int32)
    assert encoded.tokens.dtype == np.int32
    assert encoded.truncated.dtype == bool
    assert len(encoded.lengths) == len(encoded.text)
    assert encoded.lengths.min() > 0
    assert (np.diff(encoded.text) >= 0).all()
    assert sorted(set(encoded.text.tolist())) == list(range(len(TEXTS)))
    assert len(encoded.tokens) == len(encoded.truncated) == len(TEXTS)


def test_forward_keeps_the_order_of_what_it_is_given(backend: Backend) -> None:
    """Logits come in the order of the picked sequences, also over several submissions."""
    first, second = backend.encode(strings(*TEXTS)), backend.encode(strings(*TEXTS[::-1]))
    n = len(first.lengths)
    whole = backend.forward([(first, np.arange(n, dtype=np.int32))])
    assert whole.shape == (n, backend.head.width)
    assert whole.dtype == np.float32
    some = np.array([5, 0, n - 1, 7], np.int32)
    mixed = backend.forward([(first, some), (second, np.array([0, n - 1], np.int32))])
    np.testing.assert_allclose(mixed, whole[[5, 0, n - 1, 7, n - 1, 0]], atol=1e-4)
    alone = [backend.forward([(first, np.array([i], np.int32))])[0] for i in (0, 1, n - 1)]
    np.testing.assert_allclose(alone, whole[[0, 1, n - 1]], atol=1e-4)
    if whole.shape[1] > 1:
        assert np.ptp(whole, axis=0).max() > 0.1, "a model whose logits are all alike would show nothing"
