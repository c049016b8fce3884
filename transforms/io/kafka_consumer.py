"""The Kafka client, second part: a consumer in a group, by kafka-python. `kafka_librdkafka_consumer` is lighter.

Positions are set from outside, at each assignment; the client's own committed offsets are never where it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from kafka import KafkaConsumer, errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from transforms.io.kafka_client import Cluster, Partition, committed, named, to_records, topic_partition


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


def make_group_consumer(
    library: str, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any
) -> GroupConsumer:
    """By `library`, kafka-python or confluent-kafka; `ours` by kafka-python's names. Raises SourceError."""
    if library == "kafka-python":
        return PythonConsumer(cluster, topics, rebalance, **ours)
    from transforms.io.kafka_librdkafka_consumer import LibrdkafkaConsumer

    return LibrdkafkaConsumer(cluster, topics, rebalance, **ours)


class PythonConsumer:
    """kafka-python's."""

    def __init__(self, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any) -> None:
        self._consumer = cluster.consumer(**ours)
        self._fenced: errors.FencedInstanceIdError | None = None
        self._watch_heartbeats()
        self._consumer.subscribe(list(topics), listener=_Listener(self._consumer, rebalance))
        try:  # with the metadata known before the first join, the group does not have to join twice
            self.partitions = cluster.require(self._consumer, topics)
        except BaseException:
            self._consumer.close(timeout_ms=1000)
            raise

    def lookup(self) -> KafkaConsumer:
        """See GroupConsumer."""
        return self._consumer

    def poll(self, seconds: float, rows: int) -> dict[Partition, Arrived]:
        """See GroupConsumer."""
        self._finish_joining()
        if self._fenced is not None:
            raise self._fenced
        polled = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=rows)
        found = {}
        for partition in self.owned():
            records, at = polled.get(topic_partition(partition)), self._position(partition)
            if at is not None:
                found[partition] = Arrived(to_records(partition, records) if records else None, at)
        return found

    def seek(self, partition: Partition, position: int) -> None:
        """See GroupConsumer."""
        self._consumer.seek(topic_partition(partition), position)

    def pause(self, partitions: list[Partition]) -> None:
        """See GroupConsumer."""
        self._consumer.pause(*map(topic_partition, partitions))

    def resume(self, partitions: list[Partition]) -> None:
        """See GroupConsumer."""
        self._consumer.resume(*map(topic_partition, partitions))

    def owned(self) -> set[Partition]:
        """See GroupConsumer."""
        return set(named(self._consumer.assignment()))

    def metadata(self) -> ConsumerGroupMetadata:
        """See GroupConsumer."""
        return self._consumer.group_metadata()

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """See GroupConsumer."""
        return committed(self._consumer, partition)

    def commit(self, positions: dict[Partition, int]) -> None:
        """See GroupConsumer."""
        self._consumer.commit(_offsets(positions), timeout_ms=30_000)

    def commit_soon(self, positions: dict[Partition, int]) -> None:
        """See GroupConsumer."""
        self._consumer.commit_async(_offsets(positions))

    def end(self, partition: Partition) -> int | None:
        """See GroupConsumer."""
        name = topic_partition(partition)
        found = self._consumer.highwater(name) if name in self._consumer.assignment() else None
        return None if found is None else int(found)

    def silence(self) -> float:
        """See GroupConsumer."""
        metrics = self._consumer.metrics() or {}
        value = metrics.get("consumer-coordinator-metrics", {}).get("last-heartbeat-seconds-ago", 0.0)
        return float(value) if value == value and value < 1e6 else 0.0  # noqa: PLR0124 — NaN

    def close(self) -> None:
        """See GroupConsumer."""
        self._consumer.close(timeout_ms=3000)

    def _position(self, partition: Partition) -> int | None:
        state = self._consumer._subscription.assignment.get(topic_partition(partition))  # noqa: SLF001 — `position()` may block
        return None if state is None or state.position is None else int(state.position.offset)

    def _watch_heartbeats(self) -> None:
        """Notes that another process has the name of this static member: kafka-python 3.0.12 ends its heartbeats then,
        and does not say so.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001
        send = coordinator._send_heartbeat_request  # noqa: SLF001

        async def watched() -> Any:
            try:
                return await send()
            except errors.FencedInstanceIdError as error:
                self._fenced = error
                raise

        coordinator._send_heartbeat_request = watched  # noqa: SLF001

    def _finish_joining(self) -> None:
        """Makes the next poll go on with a join that the last one began.

        A leader that joins because partitions were added notes them as assigned before the group has answered; when a
        poll ends in between, kafka-python 3.0.12 takes the join for done, and the member has no partitions for ever.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001
        if coordinator.rejoining:
            coordinator.request_rejoin()


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Runs our part of a rebalance beside the client's event loop, which goes on sending heartbeats."""

    def __init__(self, consumer: KafkaConsumer, rebalance: Rebalance) -> None:
        self._consumer, self._rebalance = consumer, rebalance

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._beside(self._gained, named(assigned))

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._beside(lambda gone: self._rebalance.let_go(gone, lost=False), named(revoked))

    async def on_partitions_lost(self, lost: Any) -> None:
        await self._beside(lambda gone: self._rebalance.let_go(gone, lost=True), named(lost))

    def _gained(self, partitions: list[Partition]) -> None:
        for partition, at in self._rebalance.gained(partitions).items():
            self._consumer.seek(topic_partition(partition), at)

    async def _beside(self, work: Callable[[list[Partition]], Any], partitions: list[Partition]) -> Any:
        with ThreadPoolExecutor(1, thread_name_prefix="rebalance") as pool:
            future = pool.submit(work, partitions)
            while not future.done():
                await self._consumer._net.sleep(0.005)  # noqa: SLF001
        return future.result()


def _offsets(positions: dict[Partition, int]) -> dict[Any, OffsetAndMetadata]:
    return {topic_partition(p): OffsetAndMetadata(at, "", -1) for p, at in positions.items()}
