"""Kafka topics as a source: live as a member of a consumer group, or up to a point as an ordinary bounded source.

A split is one partition of one topic; its id comes from the topic's name and id and the partition's number, and its
positions are offsets. Where a split goes on is what the sink's chain says; `start` is for splits without one.
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
"""How often the group's offsets follow the chains of a sink that has a ledger of its own; lag tools look at them."""
STANDSTILL_SECONDS = 30.0
"""Without a message of a bounded read until it ends with an error."""
REOPEN_SECONDS = 3.0
"""How long a lost chain is left alone: the group tells within this time whether the partition is still ours."""


class _Source:
    def __init__(self, spec: JobSpec, context: JobContext) -> None:
        self.job, self.context = spec, context
        self.spec = cast("KafkaSource", spec.source)
        self.cluster = Cluster(self.spec.servers, self.spec.client)
        self.blocks = RecordBlocks(spec, self.spec)
        self.kept = self.blocks.kept

    def splits(self) -> list[Split]:
        """One a partition; with `until`, from where `start` says to where `until` says."""
        with contextlib.closing(self.cluster.consumer(group_id=group_of(self.job))) as consumer:
            partitions = self.cluster.require(consumer, self.spec.topics)
            ids = {topic: id_of_topic(consumer, topic) for topic in self.spec.topics}
            if self.spec.until is None:
                return [split_of(p, ids[p.topic]) for p in partitions]
            starts = starting_points(consumer, partitions, self.spec.start)
            stops = offsets(consumer, partitions, self.spec.until)
        return [split_of(p, ids[p.topic], starts[p], max(starts[p], stops[p])) for p in partitions]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """The bounded path: one partition, without the group."""
        partition = partition_of(split)
        assert split.stop is not None
        for at, stop, records in read_partition(
            self.cluster, partition, start, split.stop, self.job.blocks, self.context.stop.is_set
        ):
            yield self.blocks.block(split.id, partition.topic, at, stop, records)

    def feed(self, sink: Sink) -> Feed:
        """A new member of the group that reads live."""
        return Feed(self, sink)


class Feed:
    """One member of the group and what it reads, as blocks. An `Owner`: it opens and lets go the sink's writers."""

    def __init__(self, source: _Source, sink: Sink) -> None:
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
        """The next block; after `timeout` seconds, or when `member.wake` is called, a heartbeat if one is of use."""
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
        """A heartbeat while anything that was read is not committed, and the order to commit it; then None."""
        self._keep_up()
        for partition, split in list(self._splits.items()):
            writer = self._writers.of(split.id)
            if writer is not None and self.member.in_flight(partition):
                writer.hurry()
                return self.source.blocks.nothing(split.id, writer.position)
        return None

    def _due(self) -> list[Partition]:
        """Partitions whose writers want to commit: they are not read on before a heartbeat has made them do so."""
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
        """For the progress line."""
        lag = {str(partition): behind for partition, behind in self.member.lag().items()}
        since = time.monotonic() - self.member.joined
        where, strangers = self.source.spec.servers, tuple(self.member.strangers)
        return FeedStatus(lag, len(self._splits), self.member.silence(), since, where, strangers)

    def wake(self) -> None:
        """Ends a `next` that waits."""
        self.member.wake()

    def close(self, seconds: float = 5.0) -> None:
        """Leaves the group."""
        self.member.close(seconds)
        self._close_released()

    def assigned(self, member: Member, partitions: list[Partition]) -> dict[Partition, int]:
        """Opens a writer for each partition; the sink's chain says where it goes on."""
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
        """Where partitions that have not begun begin. What `latest` means is settled once, or a death before the first
        commit would skip messages: in the group, or by a Kafka sink in its own transaction.
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
        """Takes the writers out of reach at once; the thread that uses them closes them."""
        for partition in partitions:
            with self._lock:
                split = self._splits.pop(partition, None)
                writer = self._writers.forget(split.id) if split else None
                if writer is not None:
                    self._released.append(writer)
            self._members.remove(partition, member)

    def _keep_up(self) -> None:
        """Tells the member what is committed, and reads again what a lost race has dropped."""
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
    """Spans of one partition from `start` to `stop` and their records, without a group.

    `stopping`: whether the job is asked to stop; asked while the partition gives nothing. Raises SourceError.
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
                        f"{partition}: {cluster.servers} has given nothing for {STANDSTILL_SECONDS:g} s, and there are "
                        f"{stop - start:,} positions to read; is the partition's broker up? Run it again to go on"
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
    """Pieces of at most `size` bytes or one record, each with what is behind it; one empty piece of no records."""
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
    """A partition as a split: a topic that was deleted and made again is another one."""
    identity = split_id(str(partition), topic=partition.topic, topic_id=str(topic_id), partition=partition.number)
    return Split(identity, start, stop, {"topic": partition.topic, "partition": partition.number})


def partition_of(split: Split) -> Partition:
    """The partition that a split is."""
    return Partition(split.payload["topic"], split.payload["partition"])


def starting_points(consumer: KafkaConsumer, partitions: list[Partition], start: str | int) -> dict[Partition, int]:
    """Where partitions without a chain begin. Raises SourceError for `committed` where nothing is."""
    if start != "committed":
        return offsets(consumer, partitions, start)
    found = {}
    for partition in partitions:
        try:
            at = consumer.committed(topic_partition(partition), timeout_ms=20_000)
        except errors.KafkaError as error:
            raise SourceError(f"can't read the committed offset of {partition}: {error}") from error
        if at is None:
            raise SourceError(f"source.start is 'committed', but the group has committed nothing for {partition}")
        found[partition] = int(at)
    return found


def open_source(spec: JobSpec, context: JobContext) -> _Source:
    """See `io.registry.open_source`."""
    return _Source(spec, context)
