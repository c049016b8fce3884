"""Kafka topics as a source: read live by the members of a consumer group, or read up to a point and no further.

A split is one partition of one topic, and its positions are offsets. Its id comes from the topic's name, the topic's id
and the partition's number. Reading continues where the sink's chain ends. `source.start` is for splits without a chain.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from kafka import KafkaConsumer, errors

from tagstream.schemas.block import Block, Split, split_id
from tagstream.schemas.errors import SourceError
from tagstream.schemas.kafka_spec import KafkaSource
from tagstream.schemas.spec import Blocks, JobSpec
from tagstream.transforms.io.common.open_writers import OpenWriters
from tagstream.transforms.io.contracts import FeedStatus, Sink, Writer
from tagstream.transforms.io.kafka.client.cluster import Cluster, Partition, offsets, to_records, topic_partition
from tagstream.transforms.io.kafka.client.member import Member
from tagstream.transforms.io.kafka.client.python_private import id_of_topic
from tagstream.transforms.io.kafka.groups import Members, group_of
from tagstream.transforms.io.kafka.messages_in import RecordBlocks
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.watchdog import deadline

log = logging.getLogger(__name__)
REPORT_SECONDS = 2.0
"""How often the group's offsets are moved to the ends of the chains, if the sink has a ledger of its own. The offsets
are then only for tools that show lag."""
STANDSTILL_SECONDS = 30.0
"""A bounded read that gets no message for this long ends with an error."""
REOPEN_SECONDS = 3.0
"""Seconds after a lost race before the chain is opened again. Until then the group has said whether the partition still
belongs to this member."""


class KafkaTopicSource:
    """See `io.contracts`: `Source` and `LiveSource`."""

    def __init__(self, spec: JobSpec, context: JobContext) -> None:
        self.job, self.context = spec, context
        self.spec = cast("KafkaSource", spec.source)
        self.cluster = Cluster(self.spec.servers, self.spec.client)
        self.blocks = RecordBlocks(spec, self.spec)
        self.kept = self.blocks.kept

    def splits(self) -> list[Split]:
        """One split for each partition. With `source.until` they begin at `start` and end at `until`."""
        with contextlib.closing(self.cluster.consumer(group_id=group_of(self.job))) as consumer:
            partitions = self.cluster.require(consumer, self.spec.topics)
            ids = {topic: id_of_topic(consumer, topic) for topic in self.spec.topics}
            if self.spec.until is None:
                return [split_of(p, ids[p.topic]) for p in partitions]
            starts = starting_points(consumer, partitions, self.spec.start)
            stops = offsets(consumer, partitions, self.spec.until)
        return [split_of(p, ids[p.topic], starts[p], max(starts[p], stops[p])) for p in partitions]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """Read one partition up to the end of its split, outside the group."""
        partition = partition_of(split)
        assert split.stop is not None
        for at, stop, records in read_partition(
            self.cluster, partition, start, split.stop, self.job.blocks, self.context.stop.is_set
        ):
            yield self.blocks.block(split.id, partition.topic, at, stop, records)

    def feed(self, sink: Sink) -> KafkaFeed:
        """A new member of the group, which reads live."""
        return KafkaFeed(self, sink)


class KafkaFeed:
    """See `io.contracts.Feed`. One member of the group; it turns the member's messages into blocks.

    Also the member's `Owner`: when the group assigns partitions, the feed opens the sink's writers for them, and when
    the group revokes partitions, it gives these writers up.
    """

    def __init__(self, source: KafkaTopicSource, sink: Sink) -> None:
        self.source, self.sink, self.context = source, sink, source.context
        self._writers, self._members = self.context.resource(OpenWriters), self.context.resource(Members)
        self._splits: dict[Partition, Split] = {}
        self._released: list[Writer] = []
        self._lost: dict[Partition, float] = {}
        self._reported = 0.0
        self._lock = threading.Lock()
        spec = source.spec
        self.member = Member(
            source.cluster,
            group_of(source.job),
            spec.topics,
            self,
            poll_rows=source.job.blocks.rows,
            instance_id=spec.instance_id,
            library=spec.consumer,
        )

    def next(self, timeout: float) -> Block | None:
        """The next block. A heartbeat after `timeout` seconds or a `wake`, or at once if a commit is due."""
        self._keep_up()
        due = self._due()
        blocks = self.source.job.blocks
        polled = self.member.take(0.0 if due else timeout, blocks.rows, blocks.bytes, without=due)
        if polled is not None:
            split = self._splits.get(polled.partition)
            if split is not None:
                p = polled.partition
                with self.context.metrics.busy("read"):
                    return self.source.blocks.block(split.id, p.topic, polled.start, polled.stop, polled.records)
        for split in [self._splits[p] for p in due if p in self._splits] or list(self._splits.values()):
            if (writer := self._writers.of(split.id)) is not None:
                return self.source.blocks.nothing(split.id, writer.position)
        return None

    def drain(self) -> Block | None:
        """A heartbeat while messages are read and not committed; their writers are hurried. Then None."""
        self._keep_up()
        for partition, split in list(self._splits.items()):
            writer = self._writers.of(split.id)
            if writer is not None and self.member.in_flight(partition):
                writer.hurry()
                return self.source.blocks.nothing(split.id, writer.position)
        return None

    def _due(self) -> list[Partition]:
        """Partitions whose writers are due. They are not read any further before a heartbeat has made them commit."""
        due = []
        for partition, split in list(self._splits.items()):
            if (writer := self._writers.of(split.id)) is None:
                continue
            if partition in self.member.leaving and writer.position > writer.committed:
                writer.hurry()
            if writer.due:
                due.append(partition)
        return due

    def status(self) -> FeedStatus:
        """The state of the feed, for the progress line and the metrics."""
        lag = {str(partition): behind for partition, behind in self.member.lag().items()}
        since = time.monotonic() - self.member.joined
        where, strangers = self.source.spec.servers, tuple(self.member.strangers)
        return FeedStatus(lag, len(self._splits), self.member.silence(), since, where, strangers)

    def wake(self) -> None:
        """End a `next` that waits."""
        self.member.wake()

    def close(self, seconds: float = 5.0) -> None:
        """Leave the group, and close the writers that were given up."""
        self.member.close(seconds)
        self._close_released()

    def assigned(self, member: Member, partitions: list[Partition]) -> dict[Partition, int]:
        """Open a writer for each partition. Returns where to read each: at the end of its chain in the sink."""
        if not partitions:
            return {}
        known = self.sink.progress()
        consumer = member.lookup()
        ids = {p.topic: id_of_topic(consumer, p.topic) for p in partitions}
        begun = {p: known[id_].stop for p in partitions if (id_ := split_of(p, ids[p.topic]).id) in known}
        starts = self._starts(member, consumer, partitions, begun)

        def take_over(partition: Partition) -> int:
            split = split_of(partition, ids[partition.topic], starts[partition])
            self._members.put(partition, member)
            progress = known.get(split.id)
            writer = self._writers.open(self.sink, split, progress.stop if progress else None)
            with self._lock:
                self._splits[partition] = split
            return writer.position

        with ThreadPoolExecutor(8, thread_name_prefix="take over") as pool:
            return dict(zip(partitions, pool.map(take_over, partitions), strict=True))

    def _starts(
        self, member: Member, consumer: KafkaConsumer, partitions: list[Partition], begun: dict[Partition, int]
    ) -> dict[Partition, int]:
        """Where to begin partitions that have no chain. `begun`: the ends of the chains of the others.

        With `start: latest` the starting offsets are written down at once, as offsets of the group or in a Kafka sink's
        own transaction. Otherwise a process that dies before its first commit would begin at a later offset the next
        time, and skip the messages in between.
        """
        start = self.source.spec.start
        new = [p for p in partitions if start != "committed" or p not in begun]
        starts = begun | starting_points(consumer, new, start)
        if start != "latest":
            return starts
        if later := [p for p in partitions if p not in member.there_at_first]:
            starts |= offsets(consumer, later, "earliest")
        if not self.source.job.sink.commits_offsets:
            unsettled = {}
            for partition in (p for p in partitions if p not in begun):
                if (found := member.committed(partition)) is None:
                    unsettled[partition] = starts[partition]
                else:
                    starts[partition] = found[0]
            member.settle_starts(unsettled)
        return starts

    def revoked(self, member: Member, partitions: list[Partition]) -> None:
        """Take the writers out of reach at once. The thread that uses the writers closes them later."""
        for partition in partitions:
            with self._lock:
                split = self._splits.pop(partition, None)
                writer = self._writers.forget(split.id) if split else None
                if writer is not None:
                    self._released.append(writer)
            self._members.remove(partition, member)

    def _keep_up(self) -> None:
        """Tell the member how far each chain has come, and go back to the chain's end after a lost race."""
        self._close_released()
        report = not self.source.job.sink.commits_offsets and time.monotonic() - self._reported > REPORT_SECONDS
        if report:
            self._reported = time.monotonic()
            writers = {p: self._writers.of(split.id) for p, split in list(self._splits.items())}
            self.member.report({p: writer.committed for p, writer in writers.items() if writer is not None})
        for partition, split in list(self._splits.items()):
            writer = self._writers.of(split.id)
            if writer is not None:
                self._lost.pop(partition, None)
                self.member.settle(partition, writer.committed)
                continue
            self.member.abandon(partition)
            since = self._lost.setdefault(partition, time.monotonic())
            if time.monotonic() - since > REOPEN_SECONDS and partition in self.member.assignment:
                progress = self.sink.progress().get(split.id)
                writer = self._writers.open(self.sink, split, progress.stop if progress else None)
                self.member.rewind(partition, writer.position)

    def _close_released(self) -> None:
        with self._lock:
            released, self._released = self._released, []
        for writer in released:
            writer.close()


def read_partition(
    cluster: Cluster,
    partition: Partition,
    start: int,
    stop: int,
    blocks: Blocks,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Read one partition from `start` to `stop` without a group, as (start, stop, records) of consecutive spans.

    `stopping`: whether the job is asked to stop. Called while the partition gives no messages. Raises SourceError.
    """
    with contextlib.closing(cluster.consumer(max_poll_records=blocks.rows)) as consumer:
        name = topic_partition(partition)
        consumer.assign([name])
        consumer.seek(name, start)
        moved = time.monotonic()
        while start < stop:
            with cluster.explained(f"read {partition}", SourceError), deadline(60, f"poll {partition}"):
                polled = consumer.poll(timeout_ms=1000).get(name, [])
                at = min(int(consumer.position(name, timeout_ms=10_000)), stop)
            if at == start:
                if stopping():
                    return
                if time.monotonic() - moved > STANDSTILL_SECONDS:
                    failed = SourceError(
                        f"{partition}: {cluster.servers} has sent nothing for {STANDSTILL_SECONDS:g} s, and "
                        f"{stop - start:,} positions are left to read. Is the partition's broker up? Run the job again "
                        "to continue"
                    )
                    failed.transient = True
                    raise failed
                continue
            moved = time.monotonic()
            records = to_records(partition, [record for record in polled if record.offset < stop])
            for piece, rest in _pieces(records, blocks.bytes):
                end = rest.column("offset")[0].as_py() if rest.num_rows else at
                yield start, end, piece
                start = end


def _pieces(records: pa.RecordBatch, size: int) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Cut records into pieces of at most `size` bytes, or one record. Each piece comes with the records after it.

    Without records there is one empty piece.
    """
    lengths = pc.fill_null(pc.binary_length(records.column("value")), 0).to_numpy().astype(np.int64)
    other = (records.nbytes - int(lengths.sum())) / max(1, records.num_rows)
    ends = np.cumsum(lengths + other)
    at = 0
    while True:
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield records.slice(at, stop - at), records.slice(stop)
        at = stop
        if at >= records.num_rows:
            return


def split_of(partition: Partition, topic_id: object, start: int = 0, stop: int | None = None) -> Split:
    """The split of a partition. The topic's id is part of the split's id: a topic that was made anew has new splits."""
    identity = split_id(str(partition), topic=partition.topic, topic_id=str(topic_id), partition=partition.number)
    return Split(identity, start, stop, {"topic": partition.topic, "partition": partition.number})


def partition_of(split: Split) -> Partition:
    """The partition of a split."""
    return Partition(split.payload["topic"], split.payload["partition"])


def starting_points(consumer: KafkaConsumer, partitions: list[Partition], start: str | int) -> dict[Partition, int]:
    """The offsets that `source.start` means. Raises SourceError for `committed` if the group has committed nothing."""
    if start != "committed":
        return offsets(consumer, partitions, start)
    found = {}
    for partition in partitions:
        try:
            at = consumer.committed(topic_partition(partition), timeout_ms=20_000)
        except errors.KafkaError as error:
            raise SourceError(f"can't read the committed offset of {partition}: {error}") from error
        if at is None:
            raise SourceError(
                f"source.start is 'committed', but the group has committed nothing for {partition}: choose earliest, "
                "latest or a time"
            )
        found[partition] = int(at)
    return found


def open_source(spec: JobSpec, context: JobContext) -> KafkaTopicSource:
    """See `io.registry.open_source`."""
    return KafkaTopicSource(spec, context)
