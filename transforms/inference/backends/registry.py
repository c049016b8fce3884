"""Which backends there are, by the `type` that a specification names."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tagstream.schemas.spec import Classifier
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
"""What describes a classifier without loading it; by default its Hugging Face config does."""


def load_backend(classifier: Classifier) -> Backend:
    """The backend of a classifier, its model loaded. Raises ModelError or SpecError."""
    module = importlib.import_module(_REGISTRY[classifier.backend.type])
    backend: Backend = module.load(classifier)
    return backend


def describe(classifier: Classifier) -> tuple[Head, dict[str, Any]]:
    """Head and identity (the fingerprint's parts, weights left out) of a classifier; loads no model."""
    module = importlib.import_module(
        _DESCRIBES.get(classifier.backend.type, "tagstream.transforms.inference.backends.huggingface")
    )
    head, identity = module.describe(classifier)
    return head, identity


def device_kind(classifier: Classifier) -> str:
    """Kind of the device that a classifier's model would run on here: cpu, cuda or mps. Raises ModelError."""
    kind: str = importlib.import_module(_REGISTRY[classifier.backend.type]).device_kind(classifier)
    return kind


def identify(classifier: Classifier) -> dict[str, Any]:
    """The whole identity of a classifier for the fingerprint, weights and precision included. Raises ModelError."""
    module = importlib.import_module(_REGISTRY[classifier.backend.type])
    return {**describe(classifier)[1], **module.identity(classifier)}
