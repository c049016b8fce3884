"""A topic of dead letters as a source, read by `replay` when input and output are Kafka topics.

Each partition is one split. The split begins where the group `<job's group>.replay` has arrived and stops at the
partition's present end. A dead letter becomes its original message again: value, key, timestamp, own headers, and the
topic, partition and offset where the message was first read. A message that fails again becomes a new dead letter
after that end, with the same origin.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, Block, Span, Split, split_id, take_rows
from tagstream.schemas.dead_letters import dead_letters, merged
from tagstream.schemas.errors import DeadCode, SourceError
from tagstream.schemas.kafka_spec import KafkaSource
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Progress
from tagstream.transforms.io.kafka.client.cluster import HEADERS, Cluster, Partition, offsets
from tagstream.transforms.io.kafka.client.python_private import id_of_topic
from tagstream.transforms.io.kafka.messages_in import RecordBlocks
from tagstream.transforms.io.kafka.messages_out import NULL_VALUE, PREFIX, header_pairs, origin, without_reason
from tagstream.transforms.io.kafka.payloads import Decoded
from tagstream.transforms.io.kafka.source import read_partition
from tagstream.transforms.runtime.job_context import JobContext


class DeadTopic:
    """A `io.contracts.LetterSource` of a topic's dead letters that have not been replayed yet.

    `progress`: the sink's, which says how far each split has been replayed. Raises SourceError if none are left.
    """

    def __init__(
        self,
        spec: JobSpec,
        context: JobContext,
        source: KafkaSource,
        cluster: Cluster,
        topic: str,
        progress: dict[str, Progress],
    ) -> None:
        self.limits, self.context = spec.blocks, context
        self.cluster, self.topic = cluster, topic
        self.blocks = RecordBlocks(spec, source)
        self.kept = self.blocks.kept
        reached = [(split, progress.get(split.id, Progress(split.start)).stop) for split in self._partitions()]
        self._left = [split for split, position in reached if position < (split.stop or 0)]
        if not self._left:
            raise SourceError(f"topic {topic!r}: no dead letters to replay")

    def splits(self) -> list[Split]:
        """One split for each partition that has dead letters left."""
        return self._left

    def retire(self, progress: dict[str, Progress]) -> None:
        """Does nothing, because each transaction has already moved the group's position."""

    def _partitions(self) -> list[Split]:
        with contextlib.closing(self.cluster.consumer()) as consumer:
            partitions = self.cluster.require(consumer, (self.topic,))
            topic_id = id_of_topic(consumer, self.topic)
            starts, stops = (offsets(consumer, partitions, at) for at in ("earliest", "latest"))
        return [replay_split(p, topic_id, starts[p], stops[p]) for p in partitions]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        partition = Partition(split.payload["topic"], split.payload["partition"])
        assert split.stop is not None
        if start < split.start:  # the topic's retention has removed the dead letters between
            yield dataclasses.replace(self.blocks.nothing(split.id, start), span=Span(split.id, start, split.start))
            start = split.start
        for at, stop, records in read_partition(
            self.cluster, partition, start, split.stop, self.limits, self.context.stop.is_set
        ):
            yield self._block(Span(split.id, at, stop), records)

    def _block(self, span: Span, records: pa.RecordBatch) -> Block:
        """Dead letters as the original messages. One that does not hold the bytes stays dead, for its old reason."""
        letters, told = self._letters(records)
        lost = np.array(
            [_lost(row, value) for row, value in zip(told, letters["value"].to_pylist(), strict=True)], bool
        )
        message, *ours = self._parts(take_rows(letters, np.flatnonzero(~lost)))
        block = self.blocks.of(span, message.column("topic"), message, *ours)
        if not lost.any():
            return block
        rows = np.flatnonzero(lost)
        message, *ours = self._parts(take_rows(letters, rows))
        nulls = {path: pa.nulls(len(rows), pa.string()) for path in self.blocks.decode.paths}
        unread = Decoded(pa.nulls(len(rows), pa.large_string()), nulls)
        batch = self.blocks.batch(message.column("topic"), message, unread, *ours)
        codes = [DeadCode(told[row][f"{PREFIX}.code"].decode()) for row in rows]
        reasons = [told[row][f"{PREFIX}.message"].decode() for row in rows]
        dead = dead_letters(span.split, batch, np.arange(len(rows)), codes, reasons, payload=False)
        return dataclasses.replace(block, dead=merged(block.dead, dead))

    def _letters(self, records: pa.RecordBatch) -> tuple[pa.RecordBatch, list[dict[str, bytes]]]:
        """The original messages, with columns for their present and first positions, and each dead letter's headers."""
        pairs = [header_pairs(row) for row in records.column("headers").to_pylist()]
        told = [dict(row) for row in pairs]
        if not all(f"{PREFIX}.code" in row and f"{PREFIX}.origin_position" in row for row in told):
            raise SourceError(f"topic {self.topic!r} holds messages that are not dead letters of a job; replay stops")
        origins = [origin(row) for row in pairs]
        values = zip(told, records.column("value").to_pylist(), strict=True)
        columns = {
            **{name: records.column(name) for name in records.schema.names},
            "value": pa.array([None if NULL_VALUE in row else value for row, value in values], pa.binary()),
            "headers": pa.array([without_reason(row) for row in pairs], HEADERS),
            "partition": pa.array([partition for _, partition in origins], pa.int32()),
            "offset": pa.array([int(row[f"{PREFIX}.origin_position"]) for row in told], pa.int64()),
            "topic": pa.array([topic for topic, _ in origins], pa.string()),
            "all headers": records.column("headers"),
            POSITION: records.column("offset"),
            ORIGIN_SPLIT: pa.array([row[f"{PREFIX}.origin_split"].decode() for row in told], pa.string()),
        }
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), told

    @staticmethod
    def _parts(letters: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, pa.Array], pa.Array]:
        """The arguments of `RecordBlocks.batch` for these dead letters: messages, our own columns, and headers."""
        ours = {POSITION: letters[POSITION], ORIGIN_SPLIT: letters[ORIGIN_SPLIT], ORIGIN_POSITION: letters["offset"]}
        return letters, ours, letters["all headers"]


def _lost(told: dict[str, bytes], value: bytes | None) -> bool:
    """Whether the dead letter does not hold the bytes of its message."""
    code = told[f"{PREFIX}.code"].decode()
    return not value and (code == DeadCode.TOO_LARGE or (value is None and code != DeadCode.NULL_TEXT))


def replay_split(partition: Partition, topic_id: object, start: int = 0, stop: int | None = None) -> Split:
    """A partition of dead letters as a split. `replays` in its payload makes the sink commit to the replay group."""
    identity = split_id(
        f"replay-{partition}", topic=partition.topic, topic_id=str(topic_id), partition=partition.number
    )
    payload = {"topic": partition.topic, "partition": partition.number, "replays": True}
    return Split(identity, start, stop, payload)
