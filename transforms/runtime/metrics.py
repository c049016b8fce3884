"""Counters of one job in one process: rows, tokens, dead letters by code, busy time by stage.

Owns only numbers. The progress line, the report and the Prometheus endpoint read them; this module knows none of these.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LATENCIES = 20_000
"""How many of the latest messages' latencies are kept for quantiles."""
STAGES = ("read", "tokenise", "infer", "write")
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper bounds of the histograms' buckets, in seconds."""


@dataclass
class Histogram:
    """How many values fell into each bucket. Histograms of several workers can be added.

    counts: one for each of `BOUNDS`, and one for larger values. seconds: the sum of the values.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def observe(self, values: Iterable[float]) -> None:
        """Count values, in seconds."""
        for value in values:
            self.counts[bisect_left(BOUNDS, value)] += 1
            self.seconds += value

    def __add__(self, other: Histogram) -> Histogram:
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return Histogram(counts, self.seconds + other.seconds)


@dataclass
class Snapshot:
    """A consistent copy of the counters, see `JobMetrics`."""

    rows_in: int = 0
    rows_out: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: int = 0
    padded_tokens: int = 0
    micro_batches: int = 0
    sequences: int = 0
    truncated: int = 0
    duplicates: int = 0
    remembered: int = 0
    commits: int = 0
    dropped: int = 0
    lost_races: int = 0
    busy: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    latency: Histogram = field(default_factory=Histogram)
    commit_time: Histogram = field(default_factory=Histogram)

    def __add__(self, other: Snapshot) -> Snapshot:
        return Snapshot(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    @property
    def dead_rows(self) -> int:
        return sum(self.dead.values())

    @property
    def padding(self) -> float:
        """Share of the computed tokens that are padding, 0 to 1."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


class JobMetrics:
    """Counters of one job. Thread-safe.

    rows_in, rows_out, dead: rows that the sink has committed. At every moment rows_in = rows_out + dead.
    tokens, padded_tokens: tokens that the backends have computed, without and with padding.
    truncated: texts that were cut to the model's length.
    duplicates: texts that equal another text of the same block and were not inferred again.
    remembered: texts that equal a text of an earlier block and were not inferred again.
    lost_races: commits that failed because another writer was first.
    dropped: rows that were not written, because another writer had committed them or has taken over their split.
    latency: seconds from a message's own timestamp to its commit.
    commit_time: seconds that each commit took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()
        self.last_commit: float | None = None
        """When the last commit ended, by `time.monotonic()`."""
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def waited(self, seconds: list[float]) -> None:
        """Count latencies in seconds, one for each message: from the message's own timestamp to its commit."""
        with self._lock:
            self._latencies.extend(seconds)
            self._now.latency.observe(seconds)

    def latency(self, *quantiles: float) -> list[float] | None:
        """Quantiles of the latest messages' latency, in seconds. None before the first message."""
        with self._lock:
            values = sorted(self._latencies)
        return [values[min(len(values) - 1, int(q * len(values)))] for q in quantiles] if values else None

    def commit_took(self, seconds: float) -> None:
        """Count the wall time of one commit, or of several commits in one transaction."""
        with self._lock:
            self._now.commit_time.observe([seconds])

    def committed(
        self, rows_in: int, rows_out: int, dead: Counter[str], labels: Counter[tuple[str, str]] | None = None
    ) -> None:
        """Count one commit of a sink. labels: numbers of rows by (column, label)."""
        with self._lock:
            self._now.rows_in += rows_in
            self._now.rows_out += rows_out
            self._now.dead.update(dead)
            self._now.labels.update(labels or {})
            self._now.commits += 1
            self.last_commit = time.monotonic()

    def add(self, **counts: int) -> None:
        """Add to counters by name. Example: `add(tokens=120, truncated=1)`."""
        with self._lock:
            for name, count in counts.items():
                setattr(self._now, name, getattr(self._now, name) + count)

    @contextmanager
    def busy(self, stage: str, share: float = 1.0) -> Iterator[None]:
        """Count the wall time of the body, times `share`, as work of `stage`.

        The body should only work and not wait, or a stage that waits looks busy. share: 1/n in a stage of n threads.
        """
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._now.busy[stage] += share * (time.perf_counter() - started)  # type: ignore[assignment]

    def snapshot(self) -> Snapshot:
        with self._lock:
            now = self._now
            copy = Snapshot(**{name: getattr(now, name) for name in now.__dataclass_fields__})
            copy.dead, copy.labels, copy.busy = Counter(now.dead), Counter(now.labels), Counter(now.busy)
            copy.latency, copy.commit_time = now.latency + Histogram(), now.commit_time + Histogram()
            return copy

    def note(self, text: str) -> None:
        """Keep a sentence for the user. The same sentence is kept once."""
        with self._lock:
            self._now.notes = list(dict.fromkeys([*self._now.notes, text]))
