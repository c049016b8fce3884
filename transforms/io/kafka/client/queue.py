"""Queues of polled records between the polling thread and the processing thread, one for each partition.

Owns what is queued, taken and settled. Must not know a client or a group. The polling thread stores; the processing
thread takes, and settles when it has committed. Records that are taken and not settled are in flight, and a rebalance
waits for them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Container
from typing import NamedTuple

import pyarrow as pa

from tagstream.transforms.io.kafka.client.cluster import Partition


class Polled(NamedTuple):
    """Records of one partition and the span they cover. `stop` is past transaction markers and compacted offsets."""

    partition: Partition
    start: int
    stop: int
    records: pa.RecordBatch


class SpanQueues:
    """One queue for each partition of the member. `ready` guards everything; methods take it themselves."""

    def __init__(self) -> None:
        self.ready = threading.Condition()
        self.nbytes = 0
        self.taken: dict[Partition, int] = {}
        self.next: dict[Partition, int] = {}
        """The offset from which the next poll of a partition goes on."""
        self._queues: OrderedDict[Partition, deque[Polled]] = OrderedDict()
        self._settled: dict[Partition, int] = {}
        self._woken = False

    def __contains__(self, partition: object) -> bool:
        return partition in self._queues

    @property
    def partitions(self) -> list[Partition]:
        """The partitions of the member that are ready to be read."""
        return list(self._queues)

    def take(
        self,
        timeout: float,
        rows: int,
        size: int,
        without: Container[Partition],
        failed: Callable[[], BaseException | None],
    ) -> Polled | None:
        """See `Member.take`. Raises the exception that `failed` returns, if any."""
        with self.ready:
            self.ready.wait_for(lambda: failed() or self._woken or any(self._queues.values()), timeout)
            self._woken = False
            if (error := failed()) is not None:
                raise error
            queue = next((q for p, q in self._queues.items() if q and p not in without), None)
            if queue is None:
                return None
            parts = [queue.popleft()]
            total, nbytes = parts[0].records.num_rows, parts[0].records.nbytes
            while queue and total + queue[0].records.num_rows <= rows and nbytes + queue[0].records.nbytes <= size:
                parts.append(queue.popleft())
                total, nbytes = total + parts[-1].records.num_rows, nbytes + parts[-1].records.nbytes
            self.nbytes -= nbytes
            partition = parts[0].partition
            self._queues.move_to_end(partition)  # partitions take turns
            self.taken[partition] = parts[-1].stop
            self.ready.notify_all()
        records = parts[0].records if len(parts) == 1 else pa.concat_batches([p.records for p in parts])
        return Polled(partition, parts[0].start, parts[-1].stop, records)

    def settle(self, partition: Partition, position: int) -> None:
        """Everything below `position` is committed, or was dropped because another member owns it."""
        with self.ready:
            self._settled[partition] = max(position, self._settled.get(partition, 0))
            self.ready.notify_all()

    def in_flight(self, partitions: list[Partition]) -> bool:
        """Whether records of these partitions are taken and not settled."""
        return any(self._settled.get(p, 0) < self.taken.get(p, 0) for p in partitions)

    def wake(self) -> None:
        """Ends a waiting `take`."""
        with self.ready:
            self._woken = True
            self.ready.notify_all()

    def store(self, polled: Polled) -> None:
        """Appends to the partition's queue. The caller holds `ready`."""
        self._queues[polled.partition].append(polled)
        self.nbytes += polled.records.nbytes
        self.next[polled.partition] = polled.stop

    def open(self, partition: Partition, start: int) -> None:
        """Begins a queue for a partition that the member reads from `start`."""
        with self.ready:
            self.taken.pop(partition, None)
            self._settled.pop(partition, None)
            self.next[partition] = start
            self._queues[partition] = deque()

    def close(self, partition: Partition) -> None:
        """Ends the queue of a partition; its records in flight stay known. The caller holds `ready`."""
        self.drop(partition)
        self._queues.pop(partition, None)

    def drop(self, partition: Partition) -> None:
        """Throws away the records that are queued. The caller holds `ready`."""
        if queue := self._queues.get(partition):
            self.nbytes -= sum(p.records.nbytes for p in queue)
            queue.clear()
