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
from tagstream.transforms.tasks.head import Values

Array = np.ndarray
_SLOT_BYTES = 200
"""Bytes that CPython needs for one entry of `_slots`: the digest, its place in the order, and the slot number."""
_ARRAY_BYTES = 400
"""About what an Arrow array of one value needs beside its values."""


@dataclass(frozen=True)
class Prediction:
    """The engine's answers to some texts.

    `values`: the task's answers, one for each text: a NumPy array [texts, values], or an Arrow array. `tokens`: int32
    [texts]. `truncated`: bool [texts]. `errors`: code and message by index, for each text that has no answer.
    """

    values: Values
    tokens: Array
    truncated: Array
    errors: dict[int, tuple[DeadCode, str]]

    def take(self, rows: Array) -> Prediction:
        """The answers to the texts at the indices `rows`, in that order. An index may occur several times."""
        errors = self.errors and {at: self.errors[row] for at, row in enumerate(rows.tolist()) if row in self.errors}
        values = self.values[rows] if isinstance(self.values, np.ndarray) else self.values.take(pa.array(rows))
        return Prediction(values, self.tokens[rows], self.truncated[rows], errors)


class Recalled:
    """The remembered answers to some texts. `missing`: int64 indices of the texts that the model must still answer.

    Answers that are no vectors are held one by one, as Arrow arrays of length 1 in an array of objects.
    """

    def __init__(self, prediction: Prediction, digests: list[bytes], missing: Array) -> None:
        self._prediction, self.digests, self.missing = prediction, digests, missing

    def learn(self, texts: Array, answers: Prediction) -> None:
        """Fill in the model's answers to the texts at the indices `texts`."""
        whole = self._prediction
        whole.values[texts] = _one_by_one(answers.values)
        whole.tokens[texts] = answers.tokens
        whole.truncated[texts] = answers.truncated
        whole.errors.update({int(texts[at]): error for at, error in answers.errors.items()})

    def answers(self) -> Prediction:
        """The answers to all texts, when none is missing any more."""
        whole = self._prediction
        if whole.values.dtype != object:
            return whole
        return Prediction(pa.concat_arrays(whole.values.tolist()), whole.tokens, whole.truncated, whole.errors)


class AnswerMemory:
    """Answers to the most recently used texts, in about `limit` bytes. Thread-safe. Errors are not remembered.

    `vectors`: how many float32 values each answer has; None if answers are Arrow values of any size.
    """

    def __init__(self, limit: int, vectors: int | None) -> None:
        self._vectors = vectors
        slots = max(1, limit // (_SLOT_BYTES + 5 + (4 * vectors if vectors else _ARRAY_BYTES)))
        self._values: Array = np.zeros((slots, vectors), np.float32) if vectors else np.empty(slots, object)
        self._tokens = np.zeros(slots, np.int32)
        self._truncated = np.zeros(slots, bool)
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free: list[int] = []
        self._room = limit
        """Bytes that are left for answers that are no vectors."""
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
            known = Prediction(self._values[slots], self._tokens[slots], self._truncated[slots], {})
        return Recalled(known, digests, np.flatnonzero(slots < 0))

    def remember(self, recalled: Recalled, asked: Prediction) -> None:
        """Store the model's answers to the missing texts. The least recently used texts are dropped to make room."""
        values = _one_by_one(asked.values)
        with self._lock:
            for at, index in enumerate(recalled.missing.tolist()):
                if at in asked.errors:
                    continue
                digest = recalled.digests[index]
                slot = self._slots.pop(digest, -1)
                if slot < 0:
                    full = len(self._slots) == len(self._tokens)
                    slot = self._slots.popitem(last=False)[1] if full else self._unused()
                self._slots[digest] = slot
                self._room += self._bytes(slot)
                self._values[slot], self._tokens[slot] = values[at], asked.tokens[at]
                self._truncated[slot] = asked.truncated[at]
                self._room -= self._bytes(slot)
                while self._room < 0 and len(self._slots) > 1:
                    self._drop(self._slots.popitem(last=False)[1])

    def _unused(self) -> int:
        return self._free.pop() if self._free else len(self._slots)

    def _drop(self, slot: int) -> None:
        self._room += self._bytes(slot)
        self._values[slot] = None
        self._free.append(slot)

    def _bytes(self, slot: int) -> int:
        """Bytes of an answer that is no vector; vectors have their room from the beginning."""
        held = None if self._vectors else self._values[slot]
        return 0 if held is None else _SLOT_BYTES + _ARRAY_BYTES + int(held.nbytes)


def _one_by_one(values: Values) -> Array:
    """Vectors as they are; each answer of an Arrow array as an array of its own, which holds no other's memory."""
    if isinstance(values, np.ndarray):
        return values
    found = np.empty(len(values), object)
    for row in range(len(values)):
        found[row] = pa.concat_arrays([values.slice(row, 1)])
    return found
