"""One copy of a PyTorch model on one device: moves micro-batches to the device and outputs back."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

Array = np.ndarray


class Replica:
    """For a CPU or MPS. Several threads may call `run` at once, and compute at once."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model
        self.device = device

    def run(self, inputs: dict[str, Array]) -> Array:
        """The outputs, float32 or token ids, a row for each row of the inputs.

        `inputs`: the model's inputs by name, each int64 [rows, length].
        """
        with torch.inference_mode():
            on_device = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
            return np.asarray(_plain(self.model(**on_device)).cpu().numpy())


class OverlappedReplica(Replica):
    """For a GPU and two threads. While one thread's pass runs, the other copies its micro-batch and queues its pass.

    Copies to the device use a stream of their own. All passes share one stream, so a pass begins when the one before
    has ended, and can use the memory which that pass frees. Tests run this class on a CPU, where streams do nothing.
    """

    def __init__(self, model: Any, device: str) -> None:
        super().__init__(model, device)
        self._module = torch.get_device_module(device)
        self._copies, self._passes = self._module.Stream(device), self._module.Stream(device)
        self._on_gpu = device != "cpu"
        self._queueing = threading.Lock()

    def run(self, inputs: dict[str, Array]) -> Array:
        """See `Replica.run`. Returns when this pass is done, without waiting for passes queued after it."""
        on_host = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if self._on_gpu:
            on_host = {name: tensor.pin_memory() for name, tensor in on_host.items()}
        # A thread that waits for a blocking event sleeps, so its core is free for the tokenizer.
        done = self._module.Event(blocking=True) if self._on_gpu else self._module.Event()
        with torch.inference_mode():
            with self._module.stream(self._copies):
                on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in on_host.items()}
                copied = self._copies.record_event()
            try:
                with self._queueing, self._module.stream(self._passes):  # kernels of two passes must not mix
                    self._passes.wait_event(copied)
                    outputs = _plain(self.model(**on_device)).to("cpu", non_blocking=True)
                    done.record(self._passes)
                done.synchronize()
            except Exception:
                self._module.synchronize(self.device)  # kernels of a failed pass still read `on_device`
                raise
            return np.asarray(outputs.numpy())


def _plain(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.float() if outputs.is_floating_point() else outputs
