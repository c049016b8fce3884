"""The backends by the `type` that a specification names."""

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
"""Modules with a `describe` of their own. For other types, the model's Hugging Face config describes the entry."""


def load_backend(entry: InferEntry) -> Backend:
    """The backend of an entry, with its model loaded. Raises ModelError or SpecError."""
    module = importlib.import_module(_REGISTRY[entry.backend.type])
    backend: Backend = module.load(entry)
    return backend


def describe(entry: InferEntry) -> tuple[Head, dict[str, Any]]:
    """An entry's head, and its parts of the fingerprint except weights and precision. Loads no model."""
    module = importlib.import_module(
        _DESCRIBES.get(entry.backend.type, "tagstream.transforms.inference.backends.huggingface")
    )
    head, identity = module.describe(entry)
    return head, identity


def device_kind(entry: InferEntry) -> str:
    """The kind of device that an entry's model would run on here: cpu, cuda or mps. Raises ModelError."""
    kind: str = importlib.import_module(_REGISTRY[entry.backend.type]).device_kind(entry)
    return kind


def identify(entry: InferEntry) -> dict[str, Any]:
    """All of an entry's parts of the fingerprint, including weights and precision. Raises ModelError."""
    module = importlib.import_module(_REGISTRY[entry.backend.type])
    return {**describe(entry)[1], **module.identity(entry)}
