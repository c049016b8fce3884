"""Runs a model of transformers in PyTorch: fp32 or bf16, on a CPU, one or all CUDA devices, or MPS."""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from tagstream.schemas.errors import ModelError, OutOfMemoryError
from tagstream.schemas.spec import InferEntry, PyTorchBackend
from tagstream.transforms.inference.backends.compiled import (
    MOST_ROWS,
    CompiledModel,
    compile_blocks,
    each_length,
    every_length,
    length_buckets,
    warm_up,
)
from tagstream.transforms.inference.backends.cores import passes_and_threads, passes_on
from tagstream.transforms.inference.backends.huggingface import describe, files_of, weights_of
from tagstream.transforms.inference.backends.pytorch_model import load_model
from tagstream.transforms.inference.backends.replica import OverlappedReplica, Replica
from tagstream.transforms.tokenization.tokenizer import EncodedTokens

Array = np.ndarray

CPU_TOKENS = 768
"""Token budget on a CPU. Measured with MiniLM-L6: between 384 and 1,536 tokens the rows/s differ by less than 5 %,
because each of these budgets keeps a core busy. A smaller budget has less padding (1.5 % at 512, 2.4 % at 768, 3.6 % at
1,024 when 1,000 rows are pending) and a stream's row waits less. A larger budget runs a pass's Python code less often.
"""
GPU_TOKENS = 65_536
WRITING_TOKENS = 4096
"""Token budget on a CPU for models that generate text, new tokens included. Each new token reads all weights once for
the whole micro-batch, so more rows cost little more time."""
BRIEF = 4
"""Most tokens that are generated to see whether a model works."""
GPU_PASSES = 2
"""Threads for each GPU. While one waits for its pass, the other prepares the next."""
_CORES = torch.get_num_threads()
"""PyTorch's default: the physical cores that this process may use, or OMP_NUM_THREADS."""


class _PyTorch:
    def __init__(self, entry: InferEntry, devices: list[str], replica: type[Replica]) -> None:
        """Puts one `replica` on each of `devices`, which must be of the same kind."""
        spec = cast("PyTorchBackend", entry.backend)
        files = files_of(entry)
        self.head, _ = describe(entry)
        self.device = ",".join(devices)
        on_cpu = devices[0] == "cpu"
        usual = WRITING_TOKENS if self.head.output == "text" else CPU_TOKENS
        self.token_budget = spec.token_budget or (usual if on_cpu else GPU_TOKENS)
        self.max_rows = MOST_ROWS
        self._threads: int
        self.parallel, self._threads = passes_and_threads(_CORES) if on_cpu else (1, _CORES)
        on_gpu = issubclass(replica, OverlappedReplica)
        if on_gpu:
            self.parallel = GPU_PASSES * len(devices)
        self._tokenizer = self.head.tokenizer(files)
        self._compiled = spec.compile
        self.buckets = length_buckets(self._tokenizer.max_length) if spec.compile and not on_gpu else ()
        self._lengths = self.buckets or ((2,) if spec.compile else ())  # a length of 1 would need another graph
        given = spec.token_budget or spec.compile or self.head.output == "text"
        self.speed_key = "" if given else f"pytorch {spec.precision}, {passes_on(self.device, self.parallel)}"
        self.replicas: list[Replica] = []
        for device in devices:
            loaded = load_model(files, device, spec.precision, self._tokenizer.padding, self.head.auto_class)
            self._segments = self._tokenizer.segments and takes_segments(loaded)
            if spec.compile and self.head.output == "text":
                raise ModelError(f"{entry.as_}: compile: has no effect on a model that generates text; remove it")
            model = self.head.module(loaded, self._tokenizer).eval().to(device)
            if spec.compile:
                model = compile_blocks(model) if on_gpu else CompiledModel(model)
            self.replicas.append(replica(model, device))
        self._turns = itertools.cycle(self.replicas)
        self._of_thread = threading.local()
        if spec.compile:
            inputs = every_length(self._tokenizer.max_length) if on_gpu else each_length(self.buckets)
            if self._segments:
                inputs = [{**one, "token_type_ids": np.zeros_like(one["input_ids"])} for one in inputs]
            warm_up(self.replicas, inputs, self._threads, files.name)

    def encode(self, texts: pa.LargeStringArray) -> EncodedTokens:
        return self.head.encode(self._tokenizer, texts)

    def forward(self, parts: list[tuple[EncodedTokens, Array]]) -> Array:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        inputs = self._tokenizer.inputs(parts, self._lengths)
        real = inputs["attention_mask"] > 0 if self.head.output == "tokens" else None
        if not self.buckets and inputs["attention_mask"].all():
            del inputs["attention_mask"]
        if not self._segments:
            inputs.pop("token_type_ids", None)
        rows = len(inputs["input_ids"])
        if self._compiled and rows == 1:
            inputs = {name: array.repeat(2, axis=0) for name, array in inputs.items()}
        try:
            outputs = self._replica().run(inputs)[:rows]
            if self.head.output == "text":
                return self.head.decode(self._tokenizer, outputs)
            return outputs if real is None else outputs[real]
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        except RuntimeError as error:
            shortage = str(error)
            if "not enough memory" not in shortage and "can't allocate memory" not in shortage:  # on a CPU
                raise
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()  # outside of `except`, where the error's frames would still hold activations
        raise OutOfMemoryError(shortage)

    @contextmanager
    def brief(self) -> Iterator[None]:
        """See `contracts.Brief`."""
        settings = [replica.model.settings for replica in self.replicas if self.head.output == "text"]
        most = [one.max_new_tokens for one in settings]
        for one in settings:
            one.max_new_tokens = min(one.max_new_tokens, BRIEF)
        try:
            yield
        finally:
            for one, before in zip(settings, most, strict=True):
                one.max_new_tokens = before

    def _replica(self) -> Replica:
        """The replica of the calling thread. It never changes.

        The engine tells a bad row from a dead device by trying a row that worked before, on the same device.
        """
        if not hasattr(self._of_thread, "replica"):
            self._of_thread.replica = next(self._turns)
        replica: Replica = self._of_thread.replica
        return replica

    def close(self) -> None:
        self.replicas.clear()
        del self._turns, self._of_thread
        if self._compiled:
            gc.collect()  # compiled blocks are reference cycles
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def load(entry: InferEntry) -> _PyTorch:
    """The backend, with its model on every device. Raises ModelError."""
    devices = choose_devices(cast("PyTorchBackend", entry.backend).device)
    return _PyTorch(entry, devices, OverlappedReplica if devices[0].startswith("cuda") else Replica)


def identity(entry: InferEntry) -> dict[str, Any]:
    """Hashes of weights and tokenizer, and the precision."""
    spec = cast("PyTorchBackend", entry.backend)
    return {**weights_of(entry), "backend": "pytorch", "precision": spec.precision}


def device_kind(entry: InferEntry) -> str:
    """The kind of device that the entry would run on here: cpu, cuda or mps. Loads no model."""
    return choose_devices(cast("PyTorchBackend", entry.backend).device)[0].partition(":")[0]


def choose_devices(wanted: str) -> list[str]:
    """The devices to use. `auto`: all CUDA devices, else MPS, else the CPU. `cuda`: all CUDA devices.

    Raises ModelError if there is no such device.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    if wanted == "auto":
        return gpus or mps or ["cpu"]
    found = {"cpu": ["cpu"], "mps": mps, "cuda": gpus}.get(wanted, [gpu for gpu in gpus if gpu == wanted])
    if not found:
        raise ModelError(f"device {wanted}: PyTorch finds no such device here; device: auto takes the best one")
    return found


def takes_segments(model: Any) -> bool:
    """Whether a model has an input for the segment ids of its tokenizer."""
    return "token_type_ids" in inspect.signature(model.forward).parameters
