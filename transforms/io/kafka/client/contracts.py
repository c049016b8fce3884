"""What a Kafka client must do for us: a consumer in a group, and a transactional producer.

Two libraries do it: kafka-python (`python_consumer`, `python_producer`) and librdkafka (`rdkafka_consumer`,
`rdkafka_producer`). Errors are kafka-python's, whatever the library.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyarrow as pa
from kafka import KafkaConsumer, errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.transforms.io.kafka.client.cluster import Partition

OPEN_SECONDS, CALL_SECONDS = 60.0, 30.0
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


class Arrived(NamedTuple):
    """What a poll has brought of one partition. `stop`: where it goes on, behind transaction markers too."""

    records: pa.RecordBatch | None
    stop: int


class Rebalance(Protocol):
    """Whoever is told of rebalances. Both methods may take minutes: the client goes on sending heartbeats."""

    def gained(self, partitions: list[Partition]) -> dict[Partition, int]:
        """These are ours from now on, none before them is; says where each is to be read from."""

    def let_go(self, partitions: list[Partition], *, lost: bool) -> None:
        """These go away when it returns; `lost`: they have gone already."""


class GroupConsumer(Protocol):
    """One consumer in a group, subscribed to topics. Errors are kafka-python's, whatever the client.

    `metadata`, `committed`, `end` and `silence` are for any thread, the rest for the one that polls.
    """

    partitions: list[Partition]
    """Those of the topics when it began."""

    def lookup(self) -> KafkaConsumer:
        """One that knows the topics' metadata and the group, for `offsets` and the like. Raises SourceError."""

    def poll(self, seconds: float, rows: int) -> dict[Partition, Arrived]:
        """What is there, by partitions that are ours; rebalances happen in it. Raises KafkaError, or what these do."""

    def seek(self, partition: Partition, position: int) -> None:
        """Goes on from `position`; nothing polled before comes any more. Raises RetriableError if it can't yet."""

    def pause(self, partitions: list[Partition]) -> None: ...

    def resume(self, partitions: list[Partition]) -> None: ...

    def owned(self) -> set[Partition]:
        """The partitions that the group has assigned to us."""

    def metadata(self) -> ConsumerGroupMetadata:
        """Generation (-1 without one) and member id; older ones than the group's do no harm, brokers refuse them."""

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """The group's committed offset and its note; waits while a transaction on it is undecided."""

    def commit(self, positions: dict[Partition, int]) -> None:
        """Outside of any transaction, and waits for it."""

    def commit_soon(self, positions: dict[Partition, int]) -> None:
        """The same, and doesn't wait or tell."""

    def end(self, partition: Partition) -> int | None:
        """The high watermark, as far as polls have told."""

    def silence(self) -> float:
        """Seconds since the group's coordinator has last answered; 0 before the first."""

    def close(self) -> None:
        """Leaves the group, unless it is a static member."""


class Record(NamedTuple):
    """One output record. `number` None: the client's own partitioner, by key."""

    topic: str
    number: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int | None


class Position(NamedTuple):
    """What a transaction commits beside its records: where the chain of `partition` ends, and a note."""

    partition: Partition
    offset: int
    note: str


class DoubtError(Exception):
    """Nobody can say whether the transaction took place. Internal: the committed offset decides."""


class RecordTooLargeError(Exception):
    """The broker does not take this record, by index into what was to be committed. Nothing was committed."""

    def __init__(self, index: int) -> None:
        super().__init__(f"record {index} is larger than the output topic takes")
        self.index = index


def largest(records: list[Record], failed: list[int]) -> RecordTooLargeError:
    """Of those that failed: a client fails those behind one with the same error; the largest surely is too large."""
    return RecordTooLargeError(max(failed, key=lambda index: len(records[index].value or b"")))


class TransactionalProducer(Protocol):
    """One transactional id's. Errors are kafka-python's, whatever the client; after any of them only `shut` is good."""

    def start(self) -> None:
        """Connects, fences every earlier owner of the transactional id and aborts what that left open. Again after
        `shut`. Raises SinkError for settings that are none, KafkaError.
        """

    def transact(self, records: list[Record], positions: list[Position], group: ConsumerGroupMetadata) -> None:
        """One transaction. Raises RecordTooLargeError, or anything: then it may have taken place or not."""

    def shut(self) -> None:
        """Closes without waiting and without aborting; nothing if it is not started."""
