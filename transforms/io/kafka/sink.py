"""A Kafka topic as a sink: labels, dead letters and the input position in one transaction (`client.chain.Chain`).

The ledger is a compacted topic beside the output (`ledger.Ledger`). Its record is in the same transaction. For a Kafka
source the transaction also commits the offset of the job's group. The broker then refuses zombies by the group's
generation, and tools show the lag. A position is read from that offset, which takes less time. If there is no offset
any more, the position is read from the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.block import Block, Split
from tagstream.schemas.errors import ChainMovedError, DeadCode, LedgerError, SinkError, SpecError, TagstreamError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.kafka_spec import KafkaDeadLetters, KafkaSink, kafka_source
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.contracts import Commit, Progress
from tagstream.transforms.io.kafka.avro_rows import AvroRows
from tagstream.transforms.io.kafka.client.chain import (
    Append,
    Chain,
    PartitionLostError,
    another_job,
    commit_together,
    forget_ends,
)
from tagstream.transforms.io.kafka.client.cluster import Cluster, Partition
from tagstream.transforms.io.kafka.client.contracts import Record, RecordsRefusedError, RecordTooLargeError
from tagstream.transforms.io.kafka.client.factory import make_producer
from tagstream.transforms.io.kafka.client.python_private import id_of_topic
from tagstream.transforms.io.kafka.group_offsets import GroupOffsets, Held, admin_of, made_by
from tagstream.transforms.io.kafka.groups import Members, group_of, replay_group_of
from tagstream.transforms.io.kafka.ledger import Entry, Ledger
from tagstream.transforms.io.kafka.messages_in import MESSAGE
from tagstream.transforms.io.kafka.messages_out import Encode, Messages, as_json
from tagstream.transforms.io.kafka.schema_registry import SchemaRegistry
from tagstream.transforms.runtime.job_context import JobContext

if TYPE_CHECKING:
    from tagstream.transforms.io.kafka.replay import DeadTopic

log = logging.getLogger(__name__)


class _KafkaTopicWriter(ChainWriter):
    def __init__(self, sink: KafkaTopicSink, split: Split, chain: Chain, position: int) -> None:
        super().__init__(split, position, 0.0)
        self._sink, self.chain = sink, chain
        self._messages = Messages(sink.job, sink.dead_topic, split, sink.count, sink.encode)
        self.records: list[Record] = []
        self._rows: dict[int, tuple[Block, int]] = {}
        self.bytes = 0
        self.appended: int | None = None
        """The end of the chain after a common transaction; None if there was none since the last commit."""

    @property
    def due(self) -> bool:
        return self.position > self._start

    def _stage(self, block: Block) -> Block:
        staged = self._messages.records(block)
        self._rows |= {len(self.records) + row: (staged.block, row) for row in range(staged.block.batch.num_rows)}
        self.records += staged.records
        self.bytes += sum(len(record.value or b"") for record in staged.records)
        return staged.block

    def fits(self, others: list[Any]) -> bool:
        """See `io.contracts.JointWriter`. The partitions must belong to one member, and their rows fit into a block."""
        if self.chain.member is None or any(w.chain.member is not self.chain.member for w in others):
            return False
        together, most = (self, *others), self._sink.job.blocks
        return sum(len(w.records) for w in together) <= most.rows and sum(w.bytes for w in together) <= most.bytes

    def commit_with(self, others: list[Any]) -> None:
        """See `io.contracts.JointWriter`. The common step is one transaction."""
        # A new owner takes the partitions over in this order, a few at a time. The first partition's producer runs the
        # transaction, so opening that partition first aborts the transaction for all.
        writers = sorted([self, *others], key=lambda writer: writer.chain.partition)
        if commit_together([writer.staged() for writer in writers]):
            for writer in writers:
                writer.appended = writer.position

    def staged(self) -> Append:
        """What a common transaction must append to this chain."""
        span = self.check().span
        return Append(self.chain, self.records, span.start, span.stop)

    def _append(self, commit: Commit, seconds: float) -> Commit:
        out, dead = commit.rows_out, Counter(commit.dead)
        while True:
            try:
                if self.appended != commit.span.stop:
                    self.chain.commit(self.records, commit.span.start, commit.span.stop)
            except PartitionLostError:
                raise ChainMovedError(self._start) from None
            except RecordsRefusedError as error:
                code = DeadCode.TOO_LARGE if isinstance(error, RecordTooLargeError) else DeadCode.REFUSED
                buried = [index for index in error.indexes if index in self._rows]
                out, dead[code.value] = out - len(buried), dead[code.value] + len(buried)
                for index in error.indexes:
                    self.records[index] = self._instead(index, code, error.reason)
            else:
                now = time.time()
                self._sink.context.metrics.waited(
                    [now - r.timestamp / 1000 for r in self.records if r.timestamp is not None]
                )
                return Commit(commit.span, commit.rows_in, out, dead)

    def _instead(self, index: int, code: DeadCode, reason: str) -> Record:
        """What is sent in place of a record that its topic refuses. Raises SinkError if nothing can be."""
        record, row = self.records[index], self._rows.pop(index, None)
        if row is not None:
            return self._messages.refused(record, *row, code, reason)
        if code == DeadCode.TOO_LARGE:
            return self._messages.without_value(record)
        if record.timestamp is None:
            raise SinkError(f"topic {record.topic!r} refuses a dead letter: {reason}")
        return record._replace(timestamp=None)

    def _discard(self) -> None:
        self.records, self._rows, self.appended = [], {}, None
        self.bytes = 0

    def close(self) -> None:
        super().close()
        self.chain.close()


class KafkaTopicSink:
    """See `io.contracts`: `Sink` and `ReplayingSink`."""

    def __init__(self, spec: JobSpec, context: JobContext) -> None:
        self.job, self.context = spec, context
        self.spec = cast("KafkaSink", spec.sink)
        source = kafka_source(spec)
        servers = self.spec.servers or (source.servers if source else "")
        client = self.spec.client or (source.client if source and source.servers == servers else {})
        self.cluster = Cluster(servers, client)
        dead = spec.dead_letters
        self.dead_topic = cast("KafkaDeadLetters", dead).topic if dead else f"{self.spec.topic}-dead"
        self.live_source = source
        self.group = group_of(spec)
        self.fingerprint = ""
        self.encode: Encode = as_json
        self._adopts = source is not None and source.start == "committed"
        self.offsets = GroupOffsets(self.cluster)
        self.ledger = Ledger(self.cluster, self.spec.topic, self.group)
        self._old_groups: frozenset[str] = frozenset()
        self._partitions: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_partitions": {}}

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        """`overwrite` deletes only the job's positions. The job begins again, and the topic keeps its old labels."""
        self.fingerprint = fingerprint.hash
        self._one_cluster()
        make_producer(self.spec.producer, self.cluster, self.group, None)  # raises now if a package is missing
        if self.spec.mode == "avro" and fingerprint.schema is not None:
            self.encode = self._avro(fingerprint.schema)
        with self.cluster.explained("use the output topics", SinkError):
            for topic in (self.spec.topic, self.dead_topic):
                self.count(topic)
        self.ledger.prepare()
        held, entries = self._held(), self.ledger.entries()
        if overwrite:
            self.offsets.forget(held, self.context.stop)
            forget_ends(self.cluster, f"{self.group}/")
            self._write([record for split in entries for record in self.ledger.forgotten(split)])
            return
        offsets = self._by_split(held)
        for split, at in self._ends(offsets, entries).items():
            theirs = not at.fingerprint and self._adopts
            if at.fingerprint != self.fingerprint and not theirs:
                raise LedgerError(another_job(split, at.fingerprint, self.fingerprint))
        old = [(split, at) for split, at in offsets.items() if at.fingerprint and split not in entries]
        self._write([self.ledger.copied(split, at.stop, at.fingerprint) for split, at in old])
        if self.live_source is None:
            self._old_groups = self.offsets.that_begin_with(f"{self.group}.")

    def _held(self) -> list[Held]:
        """The offsets that the job's own groups have committed."""
        if self.live_source is None:
            return self.offsets.of_splits(self.group, self.spec.topic)
        replayed = self.offsets.of_members(replay_group_of(self.job), set())
        return [
            *self.offsets.of_members(self.group, set(self.live_source.topics)),
            *(at for at in replayed if at.partition.topic == self.dead_topic),
        ]

    def _by_split(self, held: list[Held]) -> dict[str, Entry]:
        """These offsets by the ids of their splits."""
        if self.live_source is None:
            return {at.group.removeprefix(f"{self.group}."): Entry(at.offset, at.fingerprint, "") for at in held}
        from tagstream.transforms.io.kafka.replay import replay_split
        from tagstream.transforms.io.kafka.source import split_of

        topics = {at.partition.topic for at in held} & {*self.live_source.topics, self.dead_topic}
        ids = self._topic_ids(sorted(topics))
        return {
            (split_of if at.group == self.group else replay_split)(p, ids[p.topic]).id: Entry(
                at.offset, at.fingerprint, ""
            )
            for at in held
            if (p := at.partition).topic in ids
        }

    def _ends(self, offsets: dict[str, Entry], entries: dict[str, Entry]) -> dict[str, Entry]:
        """The ends of all chains. Somebody may have set an offset of the group that reads the input, on purpose."""
        return offsets | entries if self.live_source is None else entries | offsets

    def _write(self, records: list[Record]) -> None:
        """Write to the ledger in a transaction of its own."""
        if not records:
            return
        producer = make_producer(self.spec.producer, self.cluster, f"{self.group}/{uuid.uuid4().hex}", None)
        try:
            with self.cluster.explained(f"write to {self.ledger.topic}", SinkError):
                producer.start()
                producer.transact(records)
        finally:
            producer.shut()

    def _one_cluster(self) -> None:
        """Raises SpecError if source and sink are on two clusters. No transaction covers labels and positions then."""
        source = self.live_source
        if source is None or source.servers == self.cluster.servers:
            return
        if _cluster_id(Cluster(source.servers, source.client)) != _cluster_id(self.cluster):
            raise SpecError(
                f"sink.servers {self.cluster.servers} is another cluster than source.servers {source.servers}: labels "
                "and positions are committed in one transaction, which is within one cluster. Write to the source's "
                "cluster and mirror the topic"
            )

    def _avro(self, columns: pa.Schema) -> Encode:
        """The encoder of Avro values. Registers the schema of the columns first, if there is a schema registry."""
        columns = pa.schema([field for field in columns if field.name not in MESSAGE])
        rows = AvroRows(columns, self.job.name, self.spec.avro_schema)
        if self.spec.registry is None:
            return rows
        schema_id = SchemaRegistry(self.spec.registry).register(f"{self.spec.topic}-value", rows.schema)
        return functools.partial(rows, prefix=b"\0" + schema_id.to_bytes(4, "big"))

    def progress(self) -> dict[str, Progress]:
        ends = self._ends(self._by_split(self._held()), self.ledger.entries())
        return {split: Progress(at.stop) for split, at in ends.items()}

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> DeadTopic:
        """See `io.contracts.ReplayingSink`.

        Raises SpecError if the source is not Kafka, because the dead letters then do not hold the whole row.
        """
        from tagstream.transforms.io.kafka.replay import DeadTopic

        if self.live_source is None:
            raise SpecError(
                "dead letters in a topic can be replayed when the source is Kafka too; this one is "
                f"{self.job.source.type}"
            )
        return DeadTopic(self.job, self.context, self.live_source, self.cluster, self.dead_topic, self.progress())

    def open(self, split: Split, known: int | None = None) -> _KafkaTopicWriter:
        """See `io.contracts.Sink`. Ignores `known`: `Chain.open` fences older producers, then reads the offset."""
        try:
            chain = self._chain(split)
            position = chain.open()
            writer = _KafkaTopicWriter(self, split, chain, split.start if position is None else position)
            if position is None and split.stop is None:
                chain.position = split.start
                chain.commit([], split.start, split.start)  # a later run must not read `start` as another offset
        except PartitionLostError as error:
            lost = SinkError(f"{split.payload.get('topic', split.id)}: lost while its chain was opened ({error})")
            lost.transient = True
            raise lost from error
        return writer

    def _chain(self, split: Split) -> Chain:
        compression = None if self.spec.compression == "none" else self.spec.compression
        make = functools.partial(
            Chain,
            self.cluster,
            library=self.spec.producer,
            compression=compression,
            note=self.fingerprint,
            entry=functools.partial(self.ledger.record, split.id),
            adopts=self._adopts,
            stop=self.context.stop,
        )
        identity = f"{self.group}/{split.id}"
        if "partition" not in split.payload or self.live_source is None:
            return make(identity, Partition(self.spec.topic, 0), committed=lambda: self._end_of_rows(split))
        group = replay_group_of(self.job) if "replays" in split.payload else self.group
        partition = Partition(split.payload["topic"], split.payload["partition"])
        member = self.context.resource(Members).of(group, partition)
        if member is not None:
            tenure = member.tenure(partition)
            return make(
                identity,
                partition,
                metadata=member.metadata,
                committed=lambda: self._end_of_partition(split, group, member.committed(partition)),
                owned=lambda: member.owns(partition) and member.tenure(partition) == tenure,
                member=member,
            )
        if split.stop is None:
            raise PartitionLostError(f"{partition}: no member of group {group} reads it any more")
        return make(
            identity,
            partition,
            rivals=functools.partial(self.cluster.members, group) if group == self.group else list,
            metadata=lambda: ConsumerGroupMetadata(group),
            committed=lambda: self._end_of_partition(split, group, self.offsets.committed(group, partition)),
        )

    def _end_of_rows(self, split: Split) -> tuple[int, str] | None:
        """The end of the chain of a split that is no partition. Before the ledger each split had a group for it."""
        entry, group = self.ledger.end(split.id), f"{self.group}.{split.id}"
        if group in self._old_groups and not (entry and entry.writer):
            found = self.offsets.committed(group, Partition(self.spec.topic, 0))
            if found is not None and made_by(found[1]):
                return found
        return None if entry is None else (entry.stop, entry.note)

    def _end_of_partition(self, split: Split, group: str, offset: tuple[int, str] | None) -> tuple[int, str] | None:
        """The end of a partition's chain. `offset`: what its group has committed, with the note.

        An offset of ours that is behind the ledger is an old one: the broker has forgotten later ones.
        """
        if offset is not None and not made_by(offset[1]):
            return offset  # set by another program, on purpose
        entry = self.ledger.end(split.id) if offset is None else self.ledger.known(split.id)
        if entry is None or (offset is not None and offset[0] >= entry.stop):
            return offset
        log.warning(
            "group %s has %s for %s/%d (expired, or lost by the broker): going on at %d, as the ledger topic says",
            group,
            "no offset" if offset is None else f"the old offset {offset[0]}",
            split.payload["topic"],
            split.payload["partition"],
            entry.stop,
        )
        return entry.stop, entry.note

    def count(self, topic: str) -> int:
        if topic not in self._partitions:
            try:
                self._partitions[topic] = len(self.cluster.partitions((topic,)))
            except TagstreamError as error:
                failed = SinkError(f"output: {error}")
                failed.transient = error.transient
                raise failed from error
        return self._partitions[topic]

    def _topic_ids(self, topics: list[str]) -> dict[str, object]:
        if not topics:
            return {}
        with contextlib.closing(self.cluster.consumer()) as consumer:
            self.cluster.require(consumer, tuple(topics))
            return {topic: id_of_topic(consumer, topic) for topic in topics}


def _cluster_id(cluster: Cluster) -> str:
    with cluster.explained("ask for its id", SinkError), admin_of(cluster) as admin:
        return str(admin.describe_cluster()["cluster_id"])


class ReadableKafkaTopicSink(KafkaTopicSink):
    """A sink whose values can be shown. Avro values can't, because they don't contain their schema."""

    def sample(self, count: int) -> pa.Table:
        """See `io.contracts.ReadableSink`."""
        from tagstream.transforms.io.kafka.sample import newest

        return newest(self.job, self.cluster, count)


def open_sink(spec: JobSpec, context: JobContext) -> KafkaTopicSink:
    """See `io.registry.open_sink`."""
    kind = KafkaTopicSink if cast("KafkaSink", spec.sink).mode == "avro" else ReadableKafkaTopicSink
    return kind(spec, context)
