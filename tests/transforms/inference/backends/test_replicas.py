"""Replicas on several devices, two threads each, give the scores of one model; here the devices are the CPU, twice."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends import pytorch
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.backends.replica import OverlappedReplica, Replica
from tagstream.transforms.inference.engine import Engine
from tests.models import make_model, random_texts

TEXTS = [*random_texts(300, seed=2, longest=30), "", "free " * 200]


class Counted(OverlappedReplica):
    """Counts which thread calls which replica, and how many threads are in one replica at once."""

    def __init__(self, model, device: str) -> None:
        super().__init__(model, device)
        self.callers: Counter[int] = Counter()
        self.inside, self.most = 0, 0

    def run(self, inputs):
        self.callers[threading.get_ident()] += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            return super().run(inputs)
        finally:
            self.inside -= 1


def spec(folder: Path, **backend) -> InferEntry:
    return InferEntry.model_validate({"model": str(folder), "backend": {"type": "pytorch", **backend}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("replicas"), labels=("a", "b", "c"))


def scores(engine: Engine) -> np.ndarray:
    futures = [engine.submit(pa.array(TEXTS[at : at + 50], pa.large_string())) for at in range(0, len(TEXTS), 50)]
    try:
        return np.concatenate([future.result(60).values for future in futures])
    finally:
        engine.close()


def test_replicas_share_the_work(folder: Path) -> None:
    """Every replica runs. Each thread calls only one replica, at most two threads a replica. Rows keep their scores."""
    backend = pytorch._PyTorch(spec(folder, device="cpu", token_budget=128), ["cpu", "cpu"], Counted)
    replicas = list(backend.replicas)
    assert backend.parallel == 4
    found = scores(Engine(backend))
    expected = scores(Engine(load_backend(spec(folder, device="cpu"))))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    callers = [set(replica.callers) for replica in replicas]
    assert all(0 < len(each) <= 2 for each in callers)
    assert not callers[0] & callers[1]
    assert all(replica.most <= 2 for replica in replicas)


def test_failing_pass_lets_the_next_one_go(folder: Path) -> None:
    """An error inside the model reaches its caller, and the replica computes again."""
    model = load_backend(spec(folder, device="cpu")).replicas[0].model
    replica = OverlappedReplica(model, "cpu")
    with pytest.raises((IndexError, RuntimeError)):
        replica.run({"input_ids": np.full((2, 8), 10**6)})
    good = {"input_ids": np.full((2, 8), 7), "attention_mask": np.tile([1, 1, 1, 1, 1, 0, 0, 0], (2, 1))}
    np.testing.assert_allclose(replica.run(good), Replica(model, "cpu").run(good), atol=1e-6)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` and `cuda` mean all GPUs, `cuda:N` one of them. A missing device is an error that names the device."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pytorch.choose_devices("auto") == pytorch.choose_devices("cuda") == ["cuda:0", "cuda:1"]
    assert pytorch.choose_devices("cuda:1") == ["cuda:1"]
    assert pytorch.choose_devices("cpu") == ["cpu"]
    with pytest.raises(ModelError, match="device cuda:2"):
        pytorch.choose_devices("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="device cuda"):
        pytorch.choose_devices("cuda")
