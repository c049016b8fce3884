"""Reading without an end: seats, and the pool of feeds that those who sit on them use.

A seat is only a licence to work: an element that makes the runner call `_ReadLiveFn.process` in some worker. Which
partitions are read there is decided by the source's own group, and where they go on by the sink's chains; so nothing is
in a runner's checkpoint. A call lasts for a quantum, in which each block is read, classified and committed inside
its `yield`; then the seat asks to be called again, and whoever is called takes a feed from the pool.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from tagstream.schemas.block import Block
from tagstream.transforms.io.contracts import Feed, LiveSource, Sink
from tagstream.transforms.runtime.stop import STOP, failing
from tagstream.transforms.runtime.wakeup import listen
from tagstream.transforms.stages.block_coder import BlockCoder  # noqa: F401  registers the coder of blocks

QUANTUM = 600.0
"""Seconds of a seat's turn. Each turn leaves some kilobytes in Flink's state (Beam #27648)."""
HEARTBEAT = 0.1
SWITCH_SECONDS = 0.0005
DRAIN_SECONDS = 0.01
UNUSED_SECONDS = 15.0
"""A feed that no seat has used for this long leaves its group."""


class FeedPool:
    """The feeds of this process that no seat uses at the moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[str, list[tuple[float, Feed]]] = {}
        self._used: dict[int, Feed] = {}

    def take(self, job: str, source: LiveSource, sink: Sink) -> Feed:
        """A free feed of the job, or a new one."""
        with self._lock:
            free = self._free.get(job, [])
            feed = free.pop()[1] if free else None
            if feed is not None:
                self._used[id(feed)] = feed
                return feed
        feed = source.feed(job, sink)
        with self._lock:
            self._used[id(feed)] = feed
        return feed

    def give_back(self, job: str, feed: Feed) -> None:
        """For the next seat; feeds that were not used for long leave."""
        now = time.monotonic()
        with self._lock:
            self._used.pop(id(feed), None)
            free = self._free.setdefault(job, [])
            old = [item for item in free if now - item[0] > UNUSED_SECONDS]
            self._free[job] = [item for item in free if item not in old] + [(now, feed)]
        for _, unused in old:
            unused.close()

    @property
    def busy(self) -> bool:
        """Whether a seat uses one."""
        return bool(self._used)

    def all(self) -> list[Feed]:
        """Every feed, used or free."""
        with self._lock:
            return [*self._used.values(), *(feed for free in self._free.values() for _, feed in free)]

    def close(self) -> None:
        """Every feed leaves its group."""
        for feed in self.all():
            feed.close()
        with self._lock:
            self._free.clear()
            self._used.clear()


FEEDS = FeedPool()


class _SeatTracker(RestrictionTracker):  # type: ignore[misc]
    """Of a restriction that is never done and of which nothing can be split off."""

    def __init__(self, seat: int) -> None:
        self.seat = seat

    def current_restriction(self) -> int:
        return self.seat

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(fraction=0.0)

    def try_claim(self, _: Any) -> bool:
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[int, int] | None:
        return (self.seat, self.seat) if fraction_of_remainder == 0 else None

    def check_done(self) -> bool:
        return True

    def is_bounded(self) -> bool:
        return False


class _Seats(RestrictionProvider):  # type: ignore[misc]
    def initial_restriction(self, element: int) -> int:
        return element + 1  # the SDK takes a residual that is 0 for none, and the seat would be gone after a quantum

    def create_tracker(self, restriction: int) -> _SeatTracker:
        return _SeatTracker(restriction)

    def restriction_size(self, element: int, restriction: int) -> int:
        return 1

    def restriction_coder(self) -> beam.coders.Coder:
        return beam.coders.VarIntCoder()


class _ReadLiveFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, job: str, source: LiveSource, sink: Sink) -> None:
        self.job, self.source, self.sink = job, source, sink

    def setup(self) -> None:
        """Many threads that answer each other: with the default of 5 ms a commit waits that long for each answer."""
        sys.setswitchinterval(SWITCH_SECONDS)

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(self, seat: int, tracker: Any = beam.DoFn.RestrictionParam(_Seats())) -> Iterator[Block]:  # noqa: B008
        with failing():
            if STOP.is_set():
                return
            feed = FEEDS.take(self.job, self.source, self.sink)
            deaf = listen(feed.wake)
            ends = time.monotonic() + QUANTUM
            try:
                while not STOP.is_set():
                    block = feed.next(HEARTBEAT)
                    if block is not None:
                        yield block
                    if time.monotonic() > ends:
                        tracker.defer_remainder(Duration(0))
                        return
                while STOP.seconds_left() and (block := feed.drain()) is not None:  # no runner may end the bundle
                    yield block
                    time.sleep(DRAIN_SECONDS)
            finally:
                deaf()
                FEEDS.give_back(self.job, feed)


class ReadLive(beam.PTransform):  # type: ignore[misc]
    """Seat numbers to blocks, without an end."""

    def __init__(self, job: str, source: LiveSource, sink: Sink) -> None:
        super().__init__()
        self.fn = _ReadLiveFn(job, source, sink)

    def expand(self, seats: Any) -> Any:
        return seats | beam.ParDo(self.fn).with_output_types(Block)
