"""One copy of a PyTorch model on one device, and how micro-batches get onto it and logits off it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

Array = np.ndarray


class Replica:
    """Threads that call at once compute at once. For CPU and MPS."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model
        self.device = device

    def logits(self, inputs: dict[str, Array]) -> Array:
        """Float32 [rows, labels] of the model's inputs, int64 [rows, length] each."""
        with torch.inference_mode():
            on_device = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
            return np.asarray(self.model(**on_device).logits.float().cpu().numpy())


class OverlappedReplica(Replica):
    """For a GPU and two threads: while the pass of one runs, the other's micro-batch is copied, and its pass queued.

    Copies to the device have a stream of their own. Passes share one, so the next begins when the one before it ends,
    in the memory that that one frees. On a CPU, whose streams do nothing, it computes the same: for tests.
    """

    def __init__(self, model: Any, device: str) -> None:
        super().__init__(model, device)
        self._module = torch.get_device_module(device)
        self._copies, self._passes = self._module.Stream(device), self._module.Stream(device)
        self._on_gpu = device != "cpu"
        self._queueing = threading.Lock()

    def logits(self, inputs: dict[str, Array]) -> Array:
        """As above; returns when this pass is done, whatever is queued behind it."""
        on_host = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if self._on_gpu:
            on_host = {name: tensor.pin_memory() for name, tensor in on_host.items()}
        # A thread that waits for a blocking event sleeps, and leaves its core to the tokenizer.
        done = self._module.Event(blocking=True) if self._on_gpu else self._module.Event()
        with torch.inference_mode():
            with self._module.stream(self._copies):
                on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in on_host.items()}
                copied = self._copies.record_event()
            try:
                with self._queueing, self._module.stream(self._passes):  # all kernels of a pass, then the next one's
                    self._passes.wait_event(copied)
                    logits = self.model(**on_device).logits.float().to("cpu", non_blocking=True)
                    done.record(self._passes)
                done.synchronize()
            except Exception:
                self._module.synchronize(self.device)  # kernels of a failed pass still read `on_device`
                raise
            return np.asarray(logits.numpy())
