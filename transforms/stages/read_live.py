"""Reads a source that has no end. A seat makes a worker read; a feed gives the worker its blocks.

A seat is an element of the pipeline that makes the runner call `_ReadLiveFn.process` in some worker. It names no
partition. The source's consumer group decides which partitions the worker reads, and the sink's chains decide where
reading continues. So a runner's checkpoint holds nothing that matters.

Each call takes a feed from the pool and lasts for `QUANTUM` seconds. Every block is read, inferred and committed inside
one `yield`. Then the call ends and the seat asks to be called again. The next call takes any free feed.
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
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.block_coder import BlockCoder  # noqa: F401  registers the coder of blocks

QUANTUM = 600.0
"""Seconds that one call lasts. Each call leaves some kilobytes in Flink's state (Beam #27648), so calls are long."""
HEARTBEAT = 0.1
"""Seconds without a message until the feed gives a heartbeat."""
SWITCH_SECONDS = 0.0005
DRAIN_SECONDS = 0.01
UNUSED_SECONDS = 15.0
"""A feed that no seat has used for this long leaves its group."""


class FeedPool:
    """The feeds of a job in this process, in use or free. Thread-safe. A resource of the job's context."""

    def __init__(self, _: JobContext) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[float, Feed]] = []
        self._used: dict[int, Feed] = {}

    def take(self, source: LiveSource, sink: Sink) -> Feed:
        """A free feed, or a new one."""
        with self._lock:
            feed = self._free.pop()[1] if self._free else None
            if feed is not None:
                self._used[id(feed)] = feed
                return feed
        feed = source.feed(sink)
        with self._lock:
            self._used[id(feed)] = feed
        return feed

    def give_back(self, feed: Feed) -> None:
        """Keep the feed for the next seat. Feeds that no seat has used for `UNUSED_SECONDS` leave their group."""
        now = time.monotonic()
        with self._lock:
            self._used.pop(id(feed), None)
            old = [item for item in self._free if now - item[0] > UNUSED_SECONDS]
            self._free = [item for item in self._free if item not in old] + [(now, feed)]
        for _, unused in old:
            unused.close()

    @property
    def busy(self) -> bool:
        """Whether a seat uses a feed."""
        return bool(self._used)

    def all(self) -> list[Feed]:
        """Every feed, in use or free."""
        with self._lock:
            return [*self._used.values(), *(feed for _, feed in self._free)]

    def close(self) -> None:
        """Make every feed leave its group."""
        for feed in self.all():
            feed.close()
        with self._lock:
            self._free.clear()
            self._used.clear()


class _SeatTracker(RestrictionTracker):  # type: ignore[misc]
    """Tracks a restriction that never ends and can't be split."""

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
        return element + 1  # Beam takes a residual of 0 for no residual: the seat would be gone after one call

    def create_tracker(self, restriction: int) -> _SeatTracker:
        return _SeatTracker(restriction)

    def restriction_size(self, element: int, restriction: int) -> int:
        return 1

    def restriction_coder(self) -> beam.coders.Coder:
        return beam.coders.VarIntCoder()


class _ReadLiveFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, context: JobContext, source: LiveSource, sink: Sink) -> None:
        self.context, self.source, self.sink = context, source, sink

    def setup(self) -> None:
        """Let threads take turns quickly. With Python's default of 5 ms, a commit waits that long for each answer."""
        sys.setswitchinterval(SWITCH_SECONDS)

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(self, seat: int, tracker: Any = beam.DoFn.RestrictionParam(_Seats())) -> Iterator[Block]:  # noqa: B008
        stop, feeds = self.context.stop, self.context.resource(FeedPool)
        with self.context.failing():
            if stop.is_set():
                return
            feed = feeds.take(self.source, self.sink)
            listen_no_more = self.context.wakeup.listen(feed.wake)
            ends = time.monotonic() + QUANTUM
            try:
                while not stop.is_set():
                    block = feed.next(HEARTBEAT)
                    if block is not None:
                        yield block
                    if time.monotonic() > ends:
                        tracker.defer_remainder(Duration(0))
                        return
                while stop.seconds_left() and (block := feed.drain()) is not None:  # the runner may not end the bundle
                    yield block
                    time.sleep(DRAIN_SECONDS)
            finally:
                listen_no_more()
                feeds.give_back(feed)


class ReadLive(beam.PTransform):  # type: ignore[misc]
    """Turns seat numbers into blocks, without an end."""

    def __init__(self, context: JobContext, source: LiveSource, sink: Sink) -> None:
        super().__init__()
        self.fn = _ReadLiveFn(context, source, sink)

    def expand(self, seats: Any) -> Any:
        return seats | beam.ParDo(self.fn).with_output_types(Block)
