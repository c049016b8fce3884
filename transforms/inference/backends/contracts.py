"""The protocol between the engine and a backend, which runs a model.

A backend turns texts into sequences (`encode`), and micro-batches of sequences into outputs (`forward`). For example,
`encode` turns three texts into four sequences if one text is split into two windows; the engine then packs sequences
of several blocks into one micro-batch and calls `forward`. A backend knows nothing of blocks, packing or labels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray


class Backend(Protocol):
    """See the module. Up to two threads call `encode` at once, and up to `parallel` threads call `forward`.

    `head`: the task, which decides what the texts become, and the shape of the outputs.

    `device`: backends with the same device share it, with `parallel` forward passes at a time. `token_budget`: tokens
    of a micro-batch, padding included, to begin with. `max_rows`: most sequences in a micro-batch.
    `buckets`: the only lengths that sequences are padded to, ascending; empty if every length is possible.
    `speed_key`: names the settings and hardware that decide the backend's speed, for example
    "pytorch fp32, 2 at once on EPYC". The fastest token budget is searched for and remembered under this key. Empty if
    the budget is fixed.
    """

    head: Head
    device: str
    token_budget: int
    max_rows: int
    parallel: int
    buckets: tuple[int, ...]
    speed_key: str

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Sequences of the texts, which are valid UTF-8 and not null.

        May raise any exception for a text; the engine then finds out which text caused it.
        """

    def forward(self, parts: list[tuple[Any, Array]]) -> Array:
        """The outputs of the sequences in `parts`, in that order: float32 [sequences, head.width], or with
        `head.output` tokens [tokens of all these sequences, head.width], with text an object for each.

        `parts`: pairs of an `Encoded` and the int32 numbers of the sequences to take from it. Raises OutOfMemoryError
        if a smaller micro-batch may fit.
        """

    def close(self) -> None:
        """Free the device's memory."""


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
class Brief(Protocol):
    """A backend whose passes may take long, because each new token of a text is a pass of the model."""

    def brief(self) -> AbstractContextManager[None]:
        """While the context is open, texts end after a few tokens: enough to see that the model works."""


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
