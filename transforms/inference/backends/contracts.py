"""What a backend must do: the seam between the engine and whatever runs a model.

A backend turns texts into sequences (`encode`) and micro-batches of sequences into logits (`forward`). It knows
nothing of blocks, packing or labels. `encode` is called by up to two threads at once, `forward` by up to `parallel`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

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
