"""The two protocols that a client library implements: a consumer in a group, and a transactional producer.

Owns what members and chains may rely on, whichever library runs: kafka-python (`python_consumer`, `python_producer`) or
librdkafka (`rdkafka_consumer`, `rdkafka_producer`). Errors are always kafka-python's classes. Must not know a library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa
from kafka import KafkaConsumer, errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.transforms.io.kafka.client.cluster import Partition

OPEN_SECONDS, CALL_SECONDS = 60.0, 30.0
TIMEOUTS = {  # rule 2; a specification can change all of them through `client`
    "delivery_timeout_ms": 15_000,
    "request_timeout_ms": 8_000,
    "max_block_ms": 20_000,
    "transaction_timeout_ms": 60_000,
    "reconnect_backoff_max_ms": 1_000,
    "retry_backoff_ms": 5,
    "linger_ms": 0,
    "batch_size": 8 << 20,  # at least one block
    "max_request_size": 64 << 20,  # the topic's own limit decides
}
"""Settings of every transactional producer, by kafka-python's names."""
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
INVALID = (errors.InvalidTimestampError, errors.InvalidRecordError)
"""A broker refuses one record of a batch: for its timestamp, or because a compacted topic takes none without a key."""


class Arrived(NamedTuple):
    """What a poll has brought of one partition. `stop`: the offset of the next poll, past any transaction markers."""

    records: pa.RecordBatch | None
    stop: int


class Rebalance(Protocol):
    """Takes part in rebalances. Both methods may take minutes: the client goes on sending heartbeats meanwhile."""

    def gained(self, partitions: list[Partition]) -> dict[Partition, int]:
        """The member owns these partitions from now on, and no others. Returns where to read each from."""

    def let_go(self, partitions: list[Partition], *, lost: bool) -> None:
        """The group takes these partitions away when the method returns. `lost`: it has taken them already."""


class GroupConsumer(Protocol):
    """One consumer in a group, subscribed to topics.

    Any thread may call `metadata`, `committed`, `end` and `silence`. Only the polling thread may call the others.
    """

    partitions: list[Partition]
    """The topics' partitions at the time when the consumer was made."""

    def lookup(self) -> KafkaConsumer:
        """A kafka-python consumer of the same group that knows the topics, to look up offsets. Raises SourceError."""

    def poll(self, seconds: float, rows: int) -> dict[Partition, Arrived]:
        """What has arrived in the partitions of this member. Rebalances happen during a poll.

        Raises KafkaError, or what a method of `Rebalance` raised.
        """

    def seek(self, partition: Partition, position: int) -> None:
        """Polls go on from `position` and bring nothing older. Raises RetriableError when that is not possible yet."""

    def pause(self, partitions: list[Partition]) -> None: ...

    def resume(self, partitions: list[Partition]) -> None: ...

    def owned(self) -> set[Partition]:
        """The partitions that the group has assigned to this member."""

    def metadata(self) -> ConsumerGroupMetadata:
        """Generation (-1 without one) and member id. Outdated ones do no harm: brokers refuse them."""

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """The group's committed offset and its note. Waits while a transaction on it is undecided."""

    def commit(self, positions: dict[Partition, int]) -> None:
        """Commits outside of any transaction, and waits for the broker."""

    def commit_soon(self, positions: dict[Partition, int]) -> None:
        """Commits without waiting, and reports no failure."""

    def end(self, partition: Partition) -> int | None:
        """The high watermark that the latest polls have told, if any."""

    def silence(self) -> float:
        """Seconds since the group's coordinator last answered; 0 before its first answer."""

    def close(self) -> None:
        """Leaves the group, unless the member is static."""


class Record(NamedTuple):
    """One output record. `number`: its partition; None leaves the choice to the client, by key."""

    topic: str
    number: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int | None


class Position(NamedTuple):
    """The end of the chain of `partition`, and a note. A transaction commits it together with its records."""

    partition: Partition
    offset: int
    note: str


class DoubtError(Exception):
    """The client can't say whether the transaction took place. Internal: the committed offset decides."""


class RecordsRefusedError(Exception):
    """The broker refuses records, each for its own sake. The transaction was not committed.

    `indexes`: the places of the records in the transaction. `reason`: why, by the broker's words.
    """

    def __init__(self, indexes: list[int], reason: str) -> None:
        super().__init__(f"records {indexes[:5]} are refused: {reason}")
        self.indexes, self.reason = indexes, reason


class RecordTooLargeError(RecordsRefusedError):
    """The broker refuses one record for its size. `index`: its place in the transaction."""

    def __init__(self, index: int) -> None:
        super().__init__([index], "larger than the topic allows")
        self.index = index


def largest(records: list[Record], failed: list[int]) -> RecordTooLargeError:
    """The error for the largest record that failed: it surely is too large, and a client fails others along with it."""
    return RecordTooLargeError(max(failed, key=lambda index: len(records[index].value or b"")))


class TransactionalProducer(Protocol):
    """The producer of one transactional id. After an error, only `shut` may be called."""

    def start(self) -> None:
        """Connects, fences earlier owners of the transactional id, and aborts a transaction that they left open.

        May be called again after `shut`. Raises SinkError for wrong settings, and KafkaError.
        """

    def transact(
        self, records: list[Record], positions: Sequence[Position] = (), group: ConsumerGroupMetadata | None = None
    ) -> None:
        """Runs one transaction, which commits `positions` for `group` if there is one.

        Raises RecordsRefusedError. After any other exception the outcome is in doubt.
        """

    def shut(self) -> None:
        """Closes without waiting and without aborting. Does nothing unless started."""
