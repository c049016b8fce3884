"""The engines of one job in this process.

Two entries of `infer` share one engine if they name the same model with the same settings. They may differ in their use
of the scores: column names, label map, thresholds. Each text is then tokenised and inferred once for both entries.
"""

from __future__ import annotations

import threading

from tagstream.schemas.spec import InferEntry, PyTorchBackend
from tagstream.transforms.inference.backends.huggingface import files_of
from tagstream.transforms.inference.backends.registry import describe, resolve
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.self_check import load_checked
from tagstream.transforms.inference.token_budget import budget_of
from tagstream.transforms.runtime.job_context import JobContext

_SETTINGS = {"model", "revision", "task", "max_length", "long_text", "memory_bytes", "backend", "function_to_apply"}
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
        key = resolved.model_dump_json(include=_SETTINGS) + describe(resolved)[0].shared
        with self._lock:
            if key not in self._engines:
                self._engines[key] = self._start(resolved)
            return self._engines[key]

    def _start(self, entry: InferEntry) -> Engine:
        backend, works, notice = load_checked(entry)
        if notice:
            self._context.metrics.note(notice)
        if entry.backend.needs_model and (said := files_of(entry).notice):
            self._context.metrics.note(said)
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
