"""A consumer in a group by kafka-python. `rdkafka_consumer` takes less of the CPU.

Owns the calls of one KafkaConsumer. Must not know queues, chains or where a partition is read from: positions are set
from outside at each assignment, and the client never goes on from its own committed offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kafka import KafkaConsumer, errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from tagstream.transforms.io.kafka.client.cluster import (
    Cluster,
    Partition,
    closed_on_failure,
    committed,
    named,
    to_records,
    topic_partition,
)
from tagstream.transforms.io.kafka.client.contracts import Arrived, Rebalance
from tagstream.transforms.io.kafka.client.python_private import (
    finish_joining,
    known_position,
    sleep,
    watch_heartbeats,
)


class PythonConsumer:
    """See GroupConsumer."""

    def __init__(self, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any) -> None:
        self._consumer = cluster.consumer(**ours)
        self._fenced: errors.FencedInstanceIdError | None = None
        watch_heartbeats(self._consumer, lambda error: setattr(self, "_fenced", error))
        self._consumer.subscribe(list(topics), listener=_Listener(self._consumer, rebalance))
        # a consumer that knows the metadata before its first join does not have to join twice
        with closed_on_failure(self._consumer):
            self.partitions = cluster.require(self._consumer, topics)

    def lookup(self) -> KafkaConsumer:
        """See GroupConsumer."""
        return self._consumer

    def poll(self, seconds: float, rows: int) -> dict[Partition, Arrived]:
        """See GroupConsumer."""
        finish_joining(self._consumer)
        if self._fenced is not None:
            raise self._fenced
        polled = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=rows)
        found = {}
        for partition in self.owned():
            name = topic_partition(partition)
            records, at = polled.get(name), known_position(self._consumer, name)
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


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Runs our part of a rebalance in a thread, while the client's event loop goes on sending heartbeats."""

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
                await sleep(self._consumer, 0.005)
        return future.result()


def _offsets(positions: dict[Partition, int]) -> dict[Any, OffsetAndMetadata]:
    return {topic_partition(p): OffsetAndMetadata(at, "", -1) for p, at in positions.items()}
