"""The backends by the `type` that a specification names: ours, and those of entry points."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tagstream.schemas import plugins
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends import huggingface
from tagstream.transforms.inference.backends.contracts import (
    Backend,
    BackendModule,
    CertifiedModule,
    ChoosingModule,
    DescribingModule,
)
from tagstream.transforms.tasks.head import Head

Array = np.ndarray


_REGISTRY = {
    "auto": "tagstream.transforms.inference.backends.auto",
    "constant": "tagstream.transforms.inference.backends.constant",
    "onnx": "tagstream.transforms.inference.backends.onnx",
    "pytorch": "tagstream.transforms.inference.backends.pytorch",
}


def backend_module(kind: str) -> BackendModule:
    """The module of a backend. Raises SpecError."""
    name = _REGISTRY.get(kind)
    module: BackendModule = importlib.import_module(name) if name else plugins.required(plugins.BACKENDS, kind, "load")
    return module


def load_backend(entry: InferEntry) -> Backend:
    """The backend of an entry, with its model loaded. Raises ModelError or SpecError."""
    return backend_module(entry.backend.type).load(entry)


def resolve(entry: InferEntry) -> tuple[InferEntry, str | None]:
    """The entry with the backend that really runs, and a notice for the user if there is something to say.

    Only a backend that chooses among others (`auto`) returns another entry. Raises ModelError.
    """
    module = backend_module(entry.backend.type)
    return module.resolve(entry) if isinstance(module, ChoosingModule) else (entry, None)


def describe(entry: InferEntry) -> tuple[Head, dict[str, Any]]:
    """An entry's head, and its parts of the fingerprint except weights and precision. Loads no model."""
    if entry.backend.needs_model:  # its config says it; the backend's module may take seconds to import
        return huggingface.describe(entry)
    module = backend_module(entry.backend.type)
    if not isinstance(module, DescribingModule):
        raise SpecError(f"backend {entry.backend.type}: its module has no describe, which one without a model needs")
    return module.describe(entry)


def device_kind(entry: InferEntry) -> str:
    """The kind of device that an entry's model would run on here: cpu, cuda or mps. Raises ModelError."""
    module = backend_module(entry.backend.type)
    if not isinstance(module, CertifiedModule):
        raise SpecError(f"backend {entry.backend.type}: its module has no device_kind, so no certificate is for it")
    return module.device_kind(entry)


def identify(entry: InferEntry) -> dict[str, Any]:
    """All of an entry's parts of the fingerprint, including weights and precision. Raises ModelError."""
    return {**describe(entry)[1], **backend_module(entry.backend.type).identity(entry)}
