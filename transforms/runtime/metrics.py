"""Counters of one job in one process: rows, tokens, dead letters by code, busy time by stage.

Owns numbers only. Progress lines, the report and the Prometheus endpoint read them; nothing here knows them.
Stages that wait are not busy: `busy()` wraps the work itself.
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
"""Messages whose latency is remembered."""
STAGES = ("read", "tokenise", "infer", "write")
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper bounds of the histograms' buckets, in seconds."""


@dataclass
class Histogram:
    """How many values fell into each bucket; histograms of several workers can be added.

    counts: one for each of BOUNDS and one for what is above; seconds: the sum of the values.
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
    """A consistent copy of the counters; see `JobMetrics`."""

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
        """Share of the tokens computed that are padding, 0 to 1."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


class JobMetrics:
    """Thread-safe counters.

    rows_in, rows_out, dead: rows committed by the sink, so that rows_in = rows_out + dead at every moment;
    tokens and padded_tokens: computed by backends, without and with padding; truncated: texts that were cut;
    duplicates: texts answered by an equal one in the same block, remembered: in an earlier one; dropped: rows that
    another writer had committed; lost_races: commits that came too late. latency: from a message's own timestamp to its
    commit; commit_time: what the sink took for each commit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()
        self.last_commit: float | None = None
        """`time.monotonic()` of it."""
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def waited(self, seconds: list[float]) -> None:
        """From a message's own timestamp to its commit, one value a message."""
        with self._lock:
            self._latencies.extend(seconds)
            self._now.latency.observe(seconds)

    def latency(self, *quantiles: float) -> list[float] | None:
        """Quantiles of the latest messages' latency in seconds; None before the first."""
        with self._lock:
            values = sorted(self._latencies)
        return [values[min(len(values) - 1, int(q * len(values)))] for q in quantiles] if values else None

    def commit_took(self, seconds: float) -> None:
        """One commit, or several in one transaction, by the wall clock."""
        with self._lock:
            self._now.commit_time.observe([seconds])

    def committed(
        self, rows_in: int, rows_out: int, dead: Counter[str], labels: Counter[tuple[str, str]] | None = None
    ) -> None:
        """One commit of a sink; `labels`: rows by (column, label)."""
        with self._lock:
            self._now.rows_in += rows_in
            self._now.rows_out += rows_out
            self._now.dead.update(dead)
            self._now.labels.update(labels or {})
            self._now.commits += 1
            self.last_commit = time.monotonic()

    def add(self, **counts: int) -> None:
        """Add to plain counters by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self._now, name, getattr(self._now, name) + count)

    @contextmanager
    def busy(self, stage: str, share: float = 1.0) -> Iterator[None]:
        """Count the wall time of the body, times `share`, as work of `stage`: 1/n in a stage of n threads."""
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
        """Something that the user should read once."""
        with self._lock:
            self._now.notes = list(dict.fromkeys([*self._now.notes, text]))
