"""What only a CUDA device can show: its scores are the CPU's, and its memory may run out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.runtime.machine import gpu_name
from tests.models import make_model, random_texts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = [*random_texts(300, seed=2, longest=30), "", "free " * 200]


def spec(folder: Path, **backend) -> InferEntry:
    return InferEntry.model_validate({"model": str(folder), "backend": {"type": "pytorch", **backend}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("cuda"), labels=("a", "b", "c"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 4,000 texts of 64 tokens each activation of its widest layers takes a gigabyte."""
    size = {"hidden_size": 256, "intermediate_size": 1024, "initializer_range": 0.05}
    return make_model(tmp_path_factory.mktemp("wide"), labels=("a", "b", "c"), **size)


def scores(folder: Path, texts: list[str], block: int = 500, **backend) -> tuple[np.ndarray, int]:
    """Float32 [texts, labels] of texts that come `block` at a time, and the token budget at the end."""
    engine = Engine(load_backend(spec(folder, **backend)))
    futures = [engine.submit(pa.array(texts[at : at + block], pa.large_string())) for at in range(0, len(texts), block)]
    try:
        found = [future.result(120) for future in futures]
        assert not any(one.errors for one in found)
        return np.concatenate([one.values for one in found]), engine.token_budget
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("precision", "compiled", "tolerance"),
    [("fp32", False, 1e-3), ("bf16", False, 5e-2), ("fp32", True, 1e-3), ("bf16", True, 5e-2)],
)
def test_scores_are_those_of_the_cpu(folder: Path, precision: str, compiled: bool, tolerance: float) -> None:
    """On all GPUs, pinned memory and streams included; in micro-batches of one length and of many."""
    texts = [*TEXTS, *["two words"] * 40]
    options = {"device": "cuda", "precision": precision, "token_budget": 512, "compile": compiled}
    found, _ = scores(folder, texts, **options)
    np.testing.assert_allclose(found, scores(folder, texts, device="cpu")[0], atol=tolerance)


def test_no_graph_is_made_in_a_stream(folder: Path) -> None:
    """For every length, alone and beside a text as long or a shorter one: without a mask and with one."""
    from torch._dynamo.utils import counters

    backend = load_backend(spec(folder, device="cuda:0", compile=True))
    made = counters["stats"]["unique_graphs"]
    for words in range(1, 62):
        encoded = backend.encode(pa.array(["now " * words, "now " * words, "now"], pa.large_string()))
        for rows in ([0], [0, 1], [0, 2]):
            assert np.isfinite(backend.forward([(encoded, np.array(rows))])).all()
    assert counters["stats"]["unique_graphs"] == made
    backend.close()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """256 MiB more than PyTorch holds now, whatever the device has; cuBLAS takes up to 32 for each calling thread."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (256 << 20)) / total, 0)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


@pytest.mark.usefixtures("little_memory")
def test_out_of_memory_halves_the_budget(wide: Path) -> None:
    """The real thing: micro-batches that do not fit run in halves, and every row gets its scores."""
    texts = [f"{text} {'now ' * 64}" for text in random_texts(4000, seed=5, longest=40)]
    found, budget = scores(wide, texts, 4000, device="cuda:0", precision="fp32", token_budget=1 << 20)
    assert budget < 1 << 20
    np.testing.assert_allclose(found, scores(wide, texts, device="cpu")[0], atol=1e-3)


def test_the_driver_calls_a_gpu_what_pytorch_calls_it() -> None:
    """Speeds that one backend has measured are looked up by this name."""
    assert gpu_name(0) == torch.cuda.get_device_name(0)
