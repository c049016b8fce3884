"""A consumer in a group by librdkafka (confluent-kafka, extra `confluent`), which takes less of the CPU a message.

Owns the calls of one confluent_kafka.Consumer and what its errors mean. Must not know queues, chains or where a
partition is read from.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import operator
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.kafka.client.cluster import (
    REFRESH,
    Cluster,
    Partition,
    closed_on_failure,
    committed,
    explain,
    named,
    record_batch,
)
from tagstream.transforms.io.kafka.client.contracts import Arrived, Rebalance
from tagstream.transforms.io.kafka.client.rdkafka import (
    LOCAL,
    Caller,
    group_of_bytes,
    library,
    refused,
    settings,
    translate,
)

log = logging.getLogger(__name__)

OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
    "check.crcs": True,
    "partition.assignment.strategy": "range,roundrobin",  # as kafka-python: members of both may share a group
    "enable.partition.eof": True,  # tells the position behind transaction markers
    "queued.max.messages.kbytes": 16_384,
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
    "statistics.interval.ms": 2000,
}
PASSING = {
    "_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT", "_WAIT_COORD", "_MAX_POLL_EXCEEDED", "_STATE",
    "_UNKNOWN_PARTITION", "_UNKNOWN_TOPIC",
}  # fmt: skip
"""Errors that librdkafka reports and recovers from by itself, without losing a message."""
CLOSE_SECONDS = 3.0


class LibrdkafkaConsumer:
    """See GroupConsumer.

    confluent-kafka lets only one thread call at a time, and a thread that polls starves the others. So the polling
    thread makes all calls, `close` last, and a kafka-python consumer outside of the group answers other threads.
    """

    def __init__(self, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any) -> None:
        """Raises SourceError if confluent-kafka is not installed, or has no counterpart of a client property."""
        self._library = library("consumer", SourceError)
        self._cluster, self._topics, self._rebalance, self._group = cluster, topics, rebalance, ours["group_id"]
        made = settings(cluster, KafkaConsumer.DEFAULT_CONFIG, "consumer", SourceError, **(REFRESH | ours))
        if (timeout := made.pop("request.timeout.ms", None)) is not None:
            made["socket.timeout.ms"] = timeout
        self._mine: set[Partition] = set()
        self._identity = self._nobody()
        self._ends: dict[Partition, int] = {}
        self._heard = 0.0
        self._failed: Any = None
        self._rebalancing = False
        self._lookup = cluster.consumer(group_id=self._group)  # also explains what is wrong with the connection
        with closed_on_failure(self._lookup):
            self.partitions = cluster.require(self._lookup, topics)
            try:
                self._consumer = self._library.Consumer(
                    OURS | made | {"stats_cb": self._note_statistics, "error_cb": self._note_error}
                )
                self._consumer.subscribe(
                    list(topics),
                    on_assign=self._on_assign,
                    on_revoke=functools.partial(self._on_gone, lost=False),
                    on_lost=functools.partial(self._on_gone, lost=True),
                )
            except self._library.KafkaException as error:
                raise SourceError(explain(translate(error.args[0]), cluster.servers, "start a consumer")) from error

    def lookup(self) -> KafkaConsumer:
        """See GroupConsumer."""
        with contextlib.suppress(SourceError):  # the other topics go on when one was deleted
            self._cluster.require(self._lookup, self._topics)
        return self._lookup

    def poll(self, seconds: float, rows: int) -> dict[Partition, Arrived]:
        """See GroupConsumer. Waits for the first message only.

        No poll may follow an error, not even one of a rebalance: it would go on without the messages or partitions
        that the failed poll has lost.
        """
        with self._ending():
            first = self._consumer.poll(seconds)
            if first is None:
                messages = []
            else:
                mine = self._mine
                messages = self._consumer.consume(max(1, rows - 1), 0)
                if self._mine is mine:  # else a rebalance came between, and `first` is read again if it is still ours
                    messages.insert(0, first)
            return self._arrived(messages)

    def _arrived(self, messages: list[Any]) -> dict[Partition, Arrived]:
        by_partition: dict[tuple[str, int], list[Any]] = {}
        ends: dict[tuple[str, int], int] = {}
        for message in messages:
            where = message.topic(), message.partition()
            if (said := message.error()) is None:
                by_partition.setdefault(where, []).append(message)
            elif said.name() == "_PARTITION_EOF":
                ends[where] = message.offset()
            else:
                self._judge(said)
        found = {}
        for where in by_partition.keys() | ends.keys():
            partition, here = Partition(*where), by_partition.get(where, [])
            stop = max(ends.get(where, 0), here[-1].offset() + 1 if here else 0)
            found[partition] = Arrived(_records(partition, here) if here else None, stop)
            low_and_high = self._consumer.get_watermark_offsets(*self._named([partition]), cached=True)
            self._ends[partition] = max(stop, low_and_high[1] if low_and_high else 0)
        if self._failed is not None:
            raise errors.SaslAuthenticationFailedError(self._failed.str())
        return found

    def seek(self, partition: Partition, position: int) -> None:
        """See GroupConsumer."""
        try:
            self._consumer.seek(self._library.TopicPartition(*partition, position))
        except self._library.KafkaException as error:
            if error.args[0].name() in PASSING:
                raise errors.KafkaConnectionError(str(error)) from error
            raise translate(error.args[0]) from error

    def pause(self, partitions: list[Partition]) -> None:
        """See GroupConsumer."""
        with self._ending():
            self._consumer.pause(self._named(partitions))

    def resume(self, partitions: list[Partition]) -> None:
        """See GroupConsumer."""
        with self._ending():
            self._consumer.resume(self._named(partitions))

    def owned(self) -> set[Partition]:
        """See GroupConsumer."""
        return self._mine

    def metadata(self) -> ConsumerGroupMetadata:
        """See GroupConsumer. As of the last rebalance: a broker refuses it once the next one has begun."""
        return self._identity

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """See GroupConsumer."""
        return committed(self._lookup, partition)

    def commit(self, positions: dict[Partition, int]) -> None:
        """See GroupConsumer. Called by the polling thread during a rebalance."""
        for found in self._consumer.commit(offsets=self._offsets(positions), asynchronous=False):
            if found.error is not None:
                raise translate(found.error)

    def commit_soon(self, positions: dict[Partition, int]) -> None:
        """See GroupConsumer."""
        with contextlib.suppress(self._library.KafkaException):
            self._consumer.commit(offsets=self._offsets(positions), asynchronous=True)

    def end(self, partition: Partition) -> int | None:
        """See GroupConsumer."""
        return self._ends.get(partition)

    def silence(self) -> float:
        """See GroupConsumer. Exact to two seconds; 0 during rebalances."""
        return time.monotonic() - self._heard if self._heard and not self._rebalancing else 0.0

    def close(self) -> None:
        """See GroupConsumer. A client that does not end is left behind, and its session ends."""
        caller = Caller()
        closing = caller.call(self._consumer.close)
        caller.close()
        try:
            with contextlib.suppress(TimeoutError):
                closing.result(CLOSE_SECONDS)
        finally:
            self._lookup.close(timeout_ms=1000)

    def _nobody(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata(self._group, -1, "", None)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Wraps errors, so that callers do not take them for ones after which this client can poll again.

        kafka-python wraps errors of a rebalance in the same way.
        """
        try:
            yield
        except self._library.KafkaException as error:
            raise errors.KafkaError("in librdkafka") from translate(error.args[0])
        except errors.RetriableError as error:
            raise errors.KafkaError("in a rebalance") from error

    @contextlib.contextmanager
    def _in_a_rebalance(self) -> Iterator[None]:
        self._rebalancing = True
        try:
            yield
        finally:
            self._heard, self._rebalancing = time.monotonic(), False

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        with self._in_a_rebalance():
            gained = named(partitions)
            self._identity = group_of_bytes(consumer.consumer_group_metadata())
            starts = self._rebalance.gained(gained)
            self._mine = set(gained)
            consumer.assign(self._offsets(starts))

    def _on_gone(self, consumer: Any, partitions: list[Any], *, lost: bool) -> None:
        with self._in_a_rebalance():
            self._rebalance.let_go(named(partitions), lost=lost)
            self._mine, self._identity, self._ends = set(), self._nobody(), {}
            consumer.unassign()

    def _judge(self, error: Any) -> None:
        """Raises kafka-python's error unless librdkafka goes on by itself without losing a message."""
        name = error.name()
        if name == "_FATAL":  # the only fatal error in a group of the classic protocol
            raise errors.FencedInstanceIdError(error.str())
        if error.code() < 0 and name not in PASSING:
            raise LOCAL.get(name, errors.KafkaError)(error.str())
        if error.code() > 0 and not isinstance(translated := translate(error), errors.RetriableError):
            raise translated
        log.info("group %s: %s", self._group, error.str())

    def _note_error(self, error: Any) -> None:
        if refused(error):
            self._failed = error
        log.info("group %s: %s", self._group, error.str())

    def _note_statistics(self, statistics: str) -> None:
        brokers = json.loads(statistics)["brokers"].values()
        ages = [broker["rxidle"] for broker in brokers if broker["nodename"] and broker["source"] == "logical"]
        if ages and (age := min(ages)) >= 0:  # µs since the group's coordinator last sent something
            self._heard = time.monotonic() - age / 1e6

    def _named(self, partitions: list[Partition]) -> list[Any]:
        return [self._library.TopicPartition(*partition) for partition in partitions]

    def _offsets(self, positions: dict[Partition, int]) -> list[Any]:
        return [self._library.TopicPartition(*partition, at) for partition, at in positions.items()]


_headers = operator.methodcaller("headers")
"""Calls `headers` of a message. For a name that is not UTF-8 confluent-kafka 2.16 sets an error and returns a list with
a hole. CPython 3.11 does not look for the error in calls that it has specialised, and then crashes at the hole. It does
look for it in this call."""


def _undecoded(error: BaseException | None) -> bytes | None:
    """The bytes of the name that `_headers` could not decode; None for another error. Two such names nest errors."""
    while isinstance(error, SystemError):
        error = error.__cause__
    return error.object if isinstance(error, UnicodeDecodeError) else None


def _records(partition: Partition, messages: list[Any]) -> Any:
    headers, defects = [], {}
    for row, message in enumerate(messages):
        try:
            headers.append(_headers(message))
        except (UnicodeDecodeError, SystemError) as error:  # the client then gives none of them
            if (name := _undecoded(error)) is None:
                raise
            headers.append(None)
            defects[row] = f"the name of a header is not valid UTF-8: {name[:60]!r}"
    return record_batch(
        partition,
        [m.key() for m in messages],
        [m.value() for m in messages],
        headers,
        [m.timestamp()[1] for m in messages],
        [m.offset() for m in messages],
        defects,
    )
