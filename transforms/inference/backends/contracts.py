"""What a backend must do: the seam between the engine and whatever runs a model.

A backend turns texts into sequences (`encode`) and micro-batches of sequences into logits (`forward`). It knows
nothing of blocks, packing or labels. `encode` is called by up to two threads at once, `forward` by up to `parallel`.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.text_classification import Head
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray


class Backend(Protocol):
    """See the module.

    `width`: values in the logits of a sequence. `activation`: softmax, sigmoid or identity; it makes scores of logits.
    `device`: backends with the same one share it, `parallel` forward passes at a time.

    `buckets`: ascending, the only lengths that it pads sequences to; empty if it takes any length. `speed_key`: what
    its speed depends on besides the model, and so what a token budget holds for that was found to be the fastest; empty
    if none is to be looked for.
    """

    width: int
    activation: str
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


class BackendModule(Protocol):
    """What the module of a backend offers. A third party registers one by the entry-point group `tagstream.backends`.

    The name of the entry point is the `type` in a specification. The module has, if it is a third party's, a class
    `Specification`: a `schemas.spec_base.BackendPart` with the fields that follow `type`. Its `needs_model` says which
    of the optional functions the module has:

    - `describe(entry) -> (Head, dict)`, if it needs no model: the head, and what identifies the entry. Loads nothing.
      An entry with a model is described by the model's config.
    - `device_kind(entry) -> str`, if it can be certified: cpu, cuda or mps.
    - `resolve(entry) -> (entry, notice)`, if it only chooses among other backends, as `auto` does.
    """

    def load(self, entry: InferEntry) -> Backend:
        """The backend, ready to run. `entry.backend` is a `Specification`. Raises ModelError."""

    def identity(self, entry: InferEntry) -> dict[str, Any]:
        """What decides the labels beside the model's config: weights, precision. Part of the job's fingerprint."""


@runtime_checkable
class DescribingModule(BackendModule, Protocol):
    """A backend without a model: see `BackendModule`."""

    def describe(self, entry: InferEntry) -> tuple[Head, dict[str, Any]]:
        """Head, and what identifies the entry."""


@runtime_checkable
class CertifiedModule(BackendModule, Protocol):
    """A backend that a certificate may name: see `BackendModule`."""

    def device_kind(self, entry: InferEntry) -> str:
        """Kind of the device that it would run on here; loads no model."""


@runtime_checkable
class ChoosingModule(BackendModule, Protocol):
    """A backend that stands for another one: see `BackendModule`."""

    def resolve(self, entry: InferEntry) -> tuple[InferEntry, str | None]:
        """The entry with the backend that really runs, and what the user should know of the choice, if anything."""
