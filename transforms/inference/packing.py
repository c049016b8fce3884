"""Which pending sequences make the next micro-batch.

Owns the pool of pending sequences of all submitters and the rule by which it is emptied. Knows lengths only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

TOLERANCE = 0.8
"""A micro-batch reaches down to this share of its longest sequence, so that padding stays low in the long tail …"""
MIN_TOKENS = 256
"""… unless it would hold fewer tokens than this: then a second forward pass costs more than the padding. On a CPU 128
to 512 of these, and tolerances of 0.8 and 0.9, made no difference in rows/s beyond the noise; padding decided."""
EQUAL_TOKENS = 16_384
"""Sequences of one length with so many tokens go without shorter ones: no padding, so no attention mask, and enough
work for a GPU. More than a CPU's token budget. Not measured."""
SMALL_PART = 4
"""One part in so many of the budget is all that a micro-batch takes that is for a small submitter: it waits as long."""
PATIENCE = 4
"""Micro-batches that smaller submitters may take before the oldest one gets its turn."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences by owner: `parts` are (owner, int32 sequence numbers); all of them padded to `length` tokens."""

    parts: list[tuple[Hashable, Array]]
    length: int
    rows: int
    tokens: int

    @property
    def padded_tokens(self) -> int:
        return self.rows * self.length


class Pool:
    """Pending sequences, sorted by length. Not thread-safe: the engine holds its lock.

    `buckets`, ascending: the only lengths that the backend pads to. A micro-batch then takes what its bucket takes.

    `take` anchors on one owner's longest pending sequence and fills up with the next shorter ones of all owners until
    `rows * length` would pass the token budget. The anchor is the owner with the fewest tokens left, so that a small
    submitter never waits behind a large one, and blocks that are almost done get done; the oldest owner comes at
    the latest after `PATIENCE` micro-batches. Where more is pending than one micro-batch takes, an owner that goes
    before the oldest and has little left is not made to wait for a budget full of others' sequences.
    """

    def __init__(self, buckets: tuple[int, ...] = ()) -> None:
        self._buckets = buckets
        self._lengths: Array = np.empty(0, np.int32)
        self._owners: Array = np.empty(0, np.int64)
        self._sequences: Array = np.empty(0, np.int32)
        self._keys: dict[int, Hashable] = {}
        self._left: dict[int, int] = {}
        self._count = 0
        self._passed_over = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, owner: Hashable, lengths: Array) -> None:
        """Sequences 0 … len(lengths)-1 of `owner`; `lengths`: int32, tokens of each."""
        if not len(lengths):
            return
        number = self._count
        self._count += 1
        self._keys[number] = owner
        self._left[number] = int(lengths.sum())
        order = np.argsort(lengths, kind="stable").astype(np.int32)
        at = np.searchsorted(self._lengths, lengths[order], side="right")
        self._lengths = np.insert(self._lengths, at, lengths[order])
        self._owners = np.insert(self._owners, at, number)
        self._sequences = np.insert(self._sequences, at, order)

    def take(self, budget: int, max_rows: int) -> MicroBatch:
        """Remove and return the next micro-batch; the pool must not be empty. A sequence over budget goes alone."""
        owner, before_oldest = self._anchor()
        if before_oldest and self._left[owner] <= budget // SMALL_PART and sum(self._left.values()) > budget:
            budget //= SMALL_PART
        anchor = int(np.flatnonzero(self._owners == owner)[-1])
        longest = int(self._lengths[anchor])
        length, least = self._padded(longest)
        most = max(1, min(max_rows, budget // length))
        equal = int(np.searchsorted(self._lengths, longest, side="right"))
        last = min(equal - 1, anchor + most - 1)
        alike = int(np.searchsorted(self._lengths, longest))
        if (last + 1 - alike) * length < EQUAL_TOKENS or length > longest:
            alike = int(np.searchsorted(self._lengths, least))
        first = max(0, last + 1 - most, min(alike, last + 1 - MIN_TOKENS // length))
        chosen = slice(first, last + 1)
        owners, sequences, lengths = self._owners[chosen], self._sequences[chosen], self._lengths[chosen]
        keep = np.ones(len(self._lengths), bool)
        keep[chosen] = False
        self._lengths, self._owners, self._sequences = (
            self._lengths[keep],
            self._owners[keep],
            self._sequences[keep],
        )
        parts = []
        for number in np.unique(owners).tolist():
            mine = owners == number
            parts.append((self._keys[number], sequences[mine]))
            self._left[number] -= int(lengths[mine].sum())
            if not (self._owners == number).any():
                del self._left[number], self._keys[number]
        return MicroBatch(parts, length, len(lengths), int(lengths.sum()))

    def _padded(self, longest: int) -> tuple[int, float]:
        """What a micro-batch with this longest sequence is padded to, and the least length that goes well with it."""
        at = bisect_left(self._buckets, longest)
        if at == len(self._buckets):
            return max(longest, 1), TOLERANCE * longest
        return self._buckets[at], self._buckets[at - 1] + 1 if at else 0

    def _anchor(self) -> tuple[int, bool]:
        """The owner whose turn it is, and whether that is before an older one."""
        oldest = next(iter(self._left))
        smallest = min(self._left, key=self._left.__getitem__)
        if smallest == oldest or self._passed_over >= PATIENCE:
            self._passed_over = 0
            return oldest, False
        self._passed_over += 1
        return smallest, True
