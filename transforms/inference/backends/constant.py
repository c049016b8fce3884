"""A backend without a model, for tests and benchmarks. Loads no PyTorch.

It gives every row the same label, at a chosen speed and with chosen failures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import OutOfMemoryError, SpecError
from tagstream.schemas.spec import ConstantBackend, InferEntry
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tasks.model import NoModel
from tagstream.transforms.tasks.registry import identity_of, open_head
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray


@dataclass
class EncodedTexts(Encoded):
    """The texts themselves. Each byte of a text counts as a token."""

    texts: pa.LargeStringArray = None


class _Constant:
    def __init__(self, entry: InferEntry) -> None:
        self.spec = cast("ConstantBackend", entry.backend)
        self.head, _ = describe(entry)
        self.device = f"constant-{id(self)}"
        self.token_budget = self.spec.token_budget or 1 << 20
        self.max_rows = 1 << 16
        self.parallel = 1
        self.buckets: tuple[int, ...] = ()
        self.speed_key = ""
        if self.spec.fail_on is not None:
            try:
                pc.match_substring_regex(pa.array([""]), self.spec.fail_on)
            except pa.ArrowInvalid as error:
                raise SpecError(f"{entry.as_}: backend.fail_on is not an RE2 pattern: {error}") from None

    def encode(self, texts: pa.LargeStringArray) -> EncodedTexts:
        tokens = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int32)
        n = len(texts)
        return EncodedTexts(np.maximum(tokens, 1), np.arange(n, dtype=np.int32), tokens, np.zeros(n, bool), texts=texts)

    def forward(self, parts: list[tuple[EncodedTexts, Array]]) -> Array:
        rows = sum(len(picked) for _, picked in parts)
        if self.spec.memory_tokens is not None:
            longest = max(int(encoded.lengths[picked].max()) for encoded, picked in parts)
            if rows * longest > self.spec.memory_tokens:
                raise OutOfMemoryError(f"{rows} x {longest} bytes")
        if self.spec.ms_per_row:
            time.sleep(rows * self.spec.ms_per_row / 1000)
        if self.spec.fail_on is not None:
            for encoded, picked in parts:
                if pc.any(pc.match_substring_regex(encoded.texts.take(pa.array(picked)), self.spec.fail_on)).as_py():
                    raise RuntimeError(f"a text matches {self.spec.fail_on!r}")
        return np.ones((rows, 1), np.float32)

    def close(self) -> None:
        pass


def describe(entry: InferEntry) -> tuple[Head, dict[str, Any]]:
    """The head with its one label, and its identity for the fingerprint."""
    spec = cast("ConstantBackend", entry.backend)
    model = NoModel(f"constant:{spec.label}", [spec.label])
    return open_head(entry, model), {"backend": "constant", "label": spec.label, **identity_of(entry, model)}


def identity(_: InferEntry) -> dict[str, Any]:
    """Empty, because `describe` already gives the whole identity."""
    return {}


def load(entry: InferEntry) -> _Constant:
    """The backend. There is no model to load."""
    return _Constant(entry)
