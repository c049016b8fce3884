"""The engine's answers to texts, and a bounded memory that saves asking the model for the same text again.

The memory finds a text by the BLAKE2b digest of its UTF-8 bytes, so a long text needs no more room than a short one.
A look-up takes about a microsecond, a hundredth of what the smallest model takes for a text.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import DeadCode

Array = np.ndarray
_SLOT_BYTES = 200
"""Bytes that CPython needs for one entry of `_slots`: the digest, its place in the order, and the slot number."""


@dataclass(frozen=True)
class Prediction:
    """The engine's answers to some texts.

    `scores`: float32 [texts, labels], after the activation. `tokens`: int32 [texts]. `truncated`: bool [texts].
    `errors`: code and message by index, for each text that has no scores.
    """

    scores: Array
    tokens: Array
    truncated: Array
    errors: dict[int, tuple[DeadCode, str]]

    def take(self, rows: Array) -> Prediction:
        """The answers to the texts at the indices `rows`, in that order. An index may occur several times."""
        errors = self.errors and {at: self.errors[row] for at, row in enumerate(rows.tolist()) if row in self.errors}
        return Prediction(self.scores[rows], self.tokens[rows], self.truncated[rows], errors)


class Recalled:
    """The remembered answers to some texts. `missing`: int64 indices of the texts that the model must still answer."""

    def __init__(self, prediction: Prediction, digests: list[bytes], missing: Array) -> None:
        self.prediction, self.digests, self.missing = prediction, digests, missing

    def learn(self, texts: Array, answers: Prediction) -> None:
        """Fill in the model's answers to the texts at the indices `texts`."""
        whole = self.prediction
        whole.scores[texts] = answers.scores
        whole.tokens[texts] = answers.tokens
        whole.truncated[texts] = answers.truncated
        whole.errors.update({int(texts[at]): error for at, error in answers.errors.items()})


class AnswerMemory:
    """Answers to the most recently used texts, in at most `limit` bytes. Thread-safe. Errors are not remembered."""

    def __init__(self, limit: int, labels: int) -> None:
        slots = max(1, limit // (_SLOT_BYTES + 4 * labels + 5))
        self._scores = np.zeros((slots, labels), np.float32)
        self._tokens = np.zeros(slots, np.int32)
        self._truncated = np.zeros(slots, bool)
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    def recall(self, texts: pa.LargeStringArray) -> Recalled:
        """The remembered answers to `texts`, which must be distinct."""
        digests = [hashlib.blake2b(text, digest_size=16).digest() for text in texts.cast(pa.large_binary()).to_pylist()]
        with self._lock:
            slots = np.array([self._slots.get(digest, -1) for digest in digests], np.int64)
            for digest, slot in zip(digests, slots.tolist(), strict=True):
                if slot >= 0:
                    self._slots.move_to_end(digest)
            known = Prediction(self._scores[slots], self._tokens[slots], self._truncated[slots], {})
        return Recalled(known, digests, np.flatnonzero(slots < 0))

    def remember(self, recalled: Recalled, asked: Prediction) -> None:
        """Store the model's answers to the missing texts. The least recently used texts are dropped to make room."""
        with self._lock:
            for at, index in enumerate(recalled.missing.tolist()):
                if at in asked.errors:
                    continue
                digest = recalled.digests[index]
                slot = self._slots.pop(digest, -1)
                if slot < 0:
                    full = len(self._slots) == len(self._tokens)
                    slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
                self._slots[digest] = slot
                self._scores[slot], self._tokens[slot] = asked.scores[at], asked.tokens[at]
                self._truncated[slot] = asked.truncated[at]
