"""What runs a model, behind one protocol, and the registry of what there is.

A backend turns texts into sequences (`encode`) and micro-batches of sequences into logits (`forward`). It knows
nothing of blocks, packing or labels. `encode` is called by up to two threads at once, `forward` by up to `parallel`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from schemas.errors import DeadCode
from schemas.spec import Classifier
from transforms.labels import Head

Array = np.ndarray


@dataclass
class Encoded:
    """Sequences of some texts. Subclasses add what their backend needs.

    lengths: int32 [sequences], tokens of each; text: int32 [sequences], ascending, the text each belongs to (several
    when a long text was split into windows); tokens: int32 [texts], before any cut; truncated: bool [texts];
    errors: texts that have no sequences, and why.
    """

    lengths: Array
    text: Array
    tokens: Array
    truncated: Array
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)


class Backend(Protocol):
    """See the module. `device`: backends with the same one share it, `parallel` forward passes at a time.

    `buckets`: ascending, the only lengths that it pads sequences to; empty if it takes any length. `speed_key`: what
    its speed depends on besides the model, and so what a token budget holds for that was found to be the fastest; empty
    if none is to be looked for.
    """

    head: Head
    device: str
    token_budget: int
    max_rows: int
    parallel: int
    buckets: tuple[int, ...]
    speed_key: str

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Sequences of valid UTF-8 texts without nulls. May raise on a text; the engine then finds which."""

    def forward(self, parts: list[tuple[Any, Array]]) -> Array:
        """Logits, float32 [sequences, labels], of sequences picked from one or more `Encoded`, in that order.

        parts: (what `encode` returned, int32 sequence numbers). Raises OutOfMemoryError if a smaller one may fit.
        """

    def close(self) -> None:
        """Free the device."""


_REGISTRY = {
    "auto": "transforms.backends.auto",
    "constant": "transforms.backends.constant",
    "onnx": "transforms.backends.onnx",
    "pytorch": "transforms.backends.pytorch",
}
_DESCRIBES = {"constant": "transforms.backends.constant"}
"""What describes a classifier without loading it; by default its Hugging Face config does."""


def load_backend(classifier: Classifier) -> Backend:
    """The backend of a classifier, its model loaded. Raises ModelError or SpecError."""
    module = importlib.import_module(_REGISTRY[classifier.backend.type])
    backend: Backend = module.load(classifier)
    return backend


def describe(classifier: Classifier) -> tuple[Head, dict[str, Any]]:
    """Head and identity (the fingerprint's parts, weights left out) of a classifier; loads no model."""
    module = importlib.import_module(_DESCRIBES.get(classifier.backend.type, "transforms.backends.huggingface"))
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
