"""The engines of one job in this process.

Two entries of `infer` share one engine if they name the same model with the same settings. They may differ in their use
of the scores: column names, label map, thresholds. Each text is then tokenised and inferred once for both entries.
"""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry, PyTorchBackend
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.inference.backends.registry import load_backend, resolve
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.forward import one_line
from tagstream.transforms.inference.token_budget import budget_of
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray
_SETTINGS = {"model", "revision", "max_length", "long_text", "memory_bytes", "backend"}
"""Fields of an entry that change the engine: the model's outputs, or the size of the engine's memory."""


class Engines:
    """See the module. Thread-safe. A resource of the job's context."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def of(self, entry: InferEntry) -> Engine:
        """The engine of an entry. The first call loads the model. Raises ModelError."""
        resolved, notice = resolve(entry)
        if notice:
            self._context.metrics.note(notice)
        key = resolved.model_dump_json(include=_SETTINGS)
        with self._lock:
            if key not in self._engines:
                self._engines[key] = self._start(resolved)
            return self._engines[key]

    def _start(self, entry: InferEntry) -> Engine:
        backend = load_backend(entry)
        works = try_out(backend, entry.as_) if entry.backend.needs_model else None
        chosen = entry.backend
        if isinstance(chosen, PyTorchBackend) and chosen.precision == "fp32" and backend.device.startswith("cuda"):
            self._context.metrics.note(
                f"{entry.as_}: fp32 on a GPU. bf16 is faster: with backend: {{type: auto}} `tagstream "
                "optimize` measures what it does to the labels"
            )
        return Engine(backend, entry.memory_bytes, works, budget_of(backend, entry), self._context.metrics)

    def close(self) -> None:
        """Close every engine."""
        with self._lock:
            engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            engine.close()


def try_out(backend: Backend, name: str) -> tuple[Encoded, Array]:
    """Label a first text, so that a model that can't label anything fails before the job begins. Raises ModelError.

    Returns the row for the engine's parameter `works`. `name`: the entry's name, for the message.
    """
    try:
        encoded = backend.encode(pa.array(["Is it working?"], pa.large_string()))
        if not len(encoded.lengths):  # too long, where `long_text` is dead_letter
            encoded = backend.encode(pa.array(["a"], pa.large_string()))
        works = (encoded, np.arange(1))
        logits = backend.forward([works])
    except Exception as error:
        backend.close()
        raise ModelError(f"{name}: the model is loaded, but can't label a first text: {one_line(error)}") from error
    if not np.isfinite(logits).all():
        backend.close()
        raise ModelError(f"{name}: the model's logits are not finite, even for a plain text. Are its weights damaged?")
    return works
