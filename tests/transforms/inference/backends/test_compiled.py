"""`backend.compile`: one graph for each length, none later; equal scores; a clear error if compiling fails."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends import pytorch
from tagstream.transforms.inference.backends.compiled import length_buckets
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.backends.replica import OverlappedReplica
from tagstream.transforms.inference.engine import Engine
from tests.models import make_model, random_texts

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.timeout(900)  # on a busy machine the compiler takes minutes


def entry(folder: Path, **backend) -> InferEntry:
    return InferEntry.model_validate(
        {"model": str(folder), "max_length": 24, "backend": {"type": "pytorch", "device": "cpu", **backend}}
    )


def predict(engine: Engine, sizes: list[int]) -> np.ndarray:
    """Scores of texts submitted in groups, one after the other, so that each group is a micro-batch of its shape."""
    scores = []
    for seed, size in enumerate(sizes):
        texts = random_texts(size, seed=seed, longest=4 + 3 * seed)
        scores.append(engine.submit(pa.array(texts, pa.large_string())).result(250).values)
    return np.concatenate(scores)


@pytest.mark.parametrize("longest", [4, 16, 17, 24, 64, 510, 512, 8192])
def test_buckets_are_few_and_end_with_the_window(longest: int) -> None:
    """There are at most 11 buckets, ascending; the last one fits the longest text."""
    lengths = length_buckets(longest)
    assert lengths[-1] == longest
    assert list(lengths) == sorted(set(lengths))
    assert 1 <= len(lengths) <= 11
    assert all(below * 2 >= above for below, above in pairwise(lengths))


def test_compiles_once_a_bucket_and_never_in_a_stream(tmp_path: Path) -> None:
    """No graph is compiled after the start, for any number of texts of any length, single ones included."""
    from torch._dynamo.utils import counters

    folder = make_model(tmp_path, labels=("a", "b", "c"))
    sizes = [1, 2, 3, 50, 1, 7, 33, 128, 1]
    plain = Engine(load_backend(entry(folder)))
    expected = predict(plain, sizes)
    plain.close()
    counters.clear()
    engine = Engine(load_backend(entry(folder, compile=True)))
    assert engine.backend.buckets == (16, 24)
    assert counters["stats"]["unique_graphs"] == len(engine.backend.buckets)
    found = predict(engine, sizes)
    engine.close()
    assert counters["stats"]["unique_graphs"] == len(engine.backend.buckets)
    assert not counters["graph_break"]
    assert not engine.metrics.snapshot().dead_rows
    assert engine.metrics.snapshot().padded_tokens % 8 == 0, "every length is a bucket's"
    assert np.ptp(expected, axis=0).max() > 0.1, "a model whose scores are all alike would show nothing"
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "albert", "gpt2"])
def test_blocks_compile_for_every_length(tmp_path: Path, architecture: str) -> None:
    """The way for GPUs, run on a CPU: one graph with a mask and one without, of a block or of the model, none later."""
    from torch._dynamo.utils import counters

    spec = entry(make_model(tmp_path, architecture), compile=True)
    counters.clear()
    engine = Engine(pytorch._PyTorch(spec, ["cpu"], OverlappedReplica))
    assert engine.backend.buckets == ()
    assert counters["stats"]["unique_graphs"] == 2
    sizes = [1, 2, 3, 50, 1, 7, 33, 128, 1]
    found = predict(engine, sizes)
    engine.close()
    assert counters["stats"]["unique_graphs"] == 2
    plain = Engine(load_backend(entry(tmp_path)))
    np.testing.assert_allclose(found, predict(plain, sizes), atol=1e-5)
    plain.close()


@pytest.mark.parametrize("devices", [1, 2], ids=["lengths", "replicas"])
def test_threads_never_compile_what_another_is_looking_up(tmp_path: Path, devices: int) -> None:
    """Four threads call with changing lengths, and Python switches between them as often as possible.

    Runs the way for CPUs, with a graph for each length, and the way for GPUs, with two replicas on the CPU.
    """
    from torch._dynamo.utils import counters

    spec = entry(make_model(tmp_path), compile=True)
    backend = load_backend(spec) if devices == 1 else pytorch._PyTorch(spec, ["cpu"] * devices, OverlappedReplica)
    short, long = (
        backend.encode(pa.array(random_texts(8, seed=3, longest=longest), pa.large_string())) for longest in (8, 60)
    )
    counters.clear()

    def passes(seed: int) -> list[np.ndarray]:
        lengths = np.random.default_rng(seed).integers(2, size=750)
        return [backend.forward([((short, long)[which], np.arange(2 + seed))]) for which in lengths]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(passes, range(4)))
    finally:
        sys.setswitchinterval(interval)
        backend.close()
    assert [len(logits) for logits in done] == [750] * 4
    assert not counters["stats"]["unique_graphs"]


def test_no_compiler_is_a_clear_error(tmp_path: Path) -> None:
    """One message with what to do, exit code 4, no traceback."""
    folder = make_model(tmp_path / "model")
    pq.write_table(pa.table({"text": ["good", "bad"]}), tmp_path / "in.parquet")
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tagstream", "run", "--source", str(tmp_path / "in.parquet"), "--text", "text"]
    command += ["--model", str(folder), "--sink", str(tmp_path / "out")]
    for field in ("type=pytorch", "device=cpu", "compile=true"):
        command += ["--set", f"infer.0.backend.{field}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "torch.compile failed" in done.stderr
    assert "C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr
