"""The protocol between the engine and a backend, which runs a model.

A backend turns texts into sequences (`encode`), and micro-batches of sequences into logits (`forward`). For example,
`encode` turns three texts into four sequences if one text is split into two windows; the engine then packs sequences
of several blocks into one micro-batch and calls `forward`. A backend knows nothing of blocks, packing or labels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tagstream.transforms.tasks.text_classification import Head
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray


class Backend(Protocol):
    """See the module. Up to two threads call `encode` at once, and up to `parallel` threads call `forward`.

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
        """Logits, float32 [sequences, labels], of the sequences in `parts`, in that order.

        `parts`: pairs of an `Encoded` and the int32 numbers of the sequences to take from it. Raises OutOfMemoryError
        if a smaller micro-batch may fit.
        """

    def close(self) -> None:
        """Free the device's memory."""
