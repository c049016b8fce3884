"""Which backends there are, by the `type` that a specification names."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.tasks.text_classification import Head

Array = np.ndarray


_REGISTRY = {
    "auto": "tagstream.transforms.inference.backends.auto",
    "constant": "tagstream.transforms.inference.backends.constant",
    "onnx": "tagstream.transforms.inference.backends.onnx",
    "pytorch": "tagstream.transforms.inference.backends.pytorch",
}
_DESCRIBES = {"constant": "tagstream.transforms.inference.backends.constant"}
"""What describes an entry without loading it; by default its Hugging Face config does."""


def load_backend(entry: InferEntry) -> Backend:
    """The backend of an entry, its model loaded. Raises ModelError or SpecError."""
    module = importlib.import_module(_REGISTRY[entry.backend.type])
    backend: Backend = module.load(entry)
    return backend


def resolve(entry: InferEntry) -> tuple[InferEntry, str | None]:
    """The entry with the backend that really runs, and a notice for the user if there is something to say.

    Only a backend that chooses among others (`auto`) returns another entry. Raises ModelError.
    """
    module = importlib.import_module(_REGISTRY[entry.backend.type])
    resolved: tuple[InferEntry, str | None] = module.resolve(entry) if hasattr(module, "resolve") else (entry, None)
    return resolved


def describe(entry: InferEntry) -> tuple[Head, dict[str, Any]]:
    """Head and identity (the fingerprint's parts, weights left out) of an entry; loads no model."""
    module = importlib.import_module(
        _DESCRIBES.get(entry.backend.type, "tagstream.transforms.inference.backends.huggingface")
    )
    head, identity = module.describe(entry)
    return head, identity


def device_kind(entry: InferEntry) -> str:
    """Kind of the device that an entry's model would run on here: cpu, cuda or mps. Raises ModelError."""
    kind: str = importlib.import_module(_REGISTRY[entry.backend.type]).device_kind(entry)
    return kind


def identify(entry: InferEntry) -> dict[str, Any]:
    """The whole identity of an entry for the fingerprint, weights and precision included. Raises ModelError."""
    module = importlib.import_module(_REGISTRY[entry.backend.type])
    return {**describe(entry)[1], **module.identity(entry)}
