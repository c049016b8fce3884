"""Chooses the pending sequences for the next micro-batch.

Owns the pool of pending sequences of all submitters. Knows only the sequences' lengths, not their texts or ids.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

TOLERANCE = 0.8
"""A micro-batch takes no sequence shorter than this share of its longest one, so that long sequences cause little
padding. `MIN_TOKENS` limits this rule."""
MIN_TOKENS = 256
"""A micro-batch with fewer tokens than this takes shorter sequences too, because another forward pass would cost more
than the padding. On a CPU, values from 128 to 512 and tolerances of 0.8 and 0.9 gave the same rows/s within noise."""
EQUAL_TOKENS = 16_384
"""If the sequences of equal length have at least this many tokens, they form a micro-batch without shorter ones. The
micro-batch then needs no padding and no attention mask, and still fills a GPU. The value exceeds a CPU's token budget.
Not measured."""
SMALL_PART = 4
"""A micro-batch for a small submitter uses at most 1/SMALL_PART of the token budget, so that a single row never waits
for a full one."""
PATIENCE = 4
"""How many micro-batches smaller submitters may take before the oldest submitter gets its turn."""


@dataclass(frozen=True)
class MicroBatch:
    """`parts`: for each owner, its int32 sequence numbers. `length`: the tokens that every sequence is padded to."""

    parts: list[tuple[Hashable, Array]]
    length: int
    rows: int
    tokens: int

    @property
    def padded_tokens(self) -> int:
        return self.rows * self.length


class Pool:
    """Pending sequences, sorted by length. Not thread-safe: the engine holds its lock during every call.

    `buckets`: the only lengths that the backend pads to, ascending; empty if it pads to any length. With buckets, a
    micro-batch takes only sequences that are padded to the same bucket.

    `take` starts with the longest pending sequence of one owner. Then it adds the next shorter sequences of all owners
    until `rows * length` would exceed the token budget. The owner with the fewest tokens left comes first, so that a
    small submitter never waits behind a large one, and blocks that are almost done get done. The oldest owner comes
    after at most `PATIENCE` micro-batches. A small owner that comes before the oldest one gets a smaller micro-batch,
    see `SMALL_PART`, if more is pending than one micro-batch holds.
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
        """Add sequences 0 … len(lengths)-1 of `owner`. `lengths`: int32, the tokens of each."""
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
        """Remove and return the next micro-batch. The pool must not be empty.

        A sequence longer than the budget forms a micro-batch of its own.
        """
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
        """The padded length of a micro-batch with this longest sequence, and the shortest length that may join it."""
        at = bisect_left(self._buckets, longest)
        if at == len(self._buckets):
            return max(longest, 1), TOLERANCE * longest
        return self._buckets[at], self._buckets[at - 1] + 1 if at else 0

    def _anchor(self) -> tuple[int, bool]:
        """The owner whose turn it is, and whether an older owner has to wait for it."""
        oldest = next(iter(self._left))
        smallest = min(self._left, key=self._left.__getitem__)
        if smallest == oldest or self._passed_over >= PATIENCE:
            self._passed_over = 0
            return oldest, False
        self._passed_over += 1
        return smallest, True
