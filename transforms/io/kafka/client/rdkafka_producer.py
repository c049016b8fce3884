"""A transactional producer by librdkafka (confluent-kafka, extra `confluent`), whose transactions take less time.

Owns the calls of one confluent_kafka.Producer. Must not know chains, nor which library's consumer has read: the broker
only checks member id and generation, which librdkafka takes in the bytes that its own consumer would give.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.errors import SinkError
from tagstream.transforms.io.kafka.client.cluster import CONNECT_SECONDS, Cluster
from tagstream.transforms.io.kafka.client.contracts import (
    CALL_SECONDS,
    INVALID,
    OPEN_SECONDS,
    TIMEOUTS,
    TOO_LARGE,
    DoubtError,
    Position,
    Record,
    RecordsRefusedError,
    largest,
)
from tagstream.transforms.io.kafka.client.rdkafka import Caller, group_bytes, library, refused, settings, translate
from tagstream.transforms.runtime.watchdog import deadline

OURS = {
    "partitioner": "murmur2_random",  # as kafka-python and Java
    "queue.buffering.max.messages": 10_000_000,
    "queue.buffering.max.kbytes": 2_097_151,
    "batch.size": 1_000_000,
}
ONE_BY_ONE = {"batch.num.messages": 1}
ANSWER_SECONDS = 8.0
"""Time for the two coordinator requests together: sending offsets, and the commit."""


class LibrdkafkaProducer:
    """See TransactionalProducer."""

    def __init__(self, cluster: Cluster, transactional_id: str, compression: str | None) -> None:
        """Raises SinkError if confluent-kafka is not installed, or has no counterpart of a client property."""
        self._library = library("producer", SinkError)
        self.id, self._cluster, self._compression = transactional_id, cluster, compression
        self._settings = self._made()
        self._producer: Any = None
        self._told: Any = None
        """The last error that librdkafka reported to `error_cb` and that no call has raised."""

    def start(self) -> None:
        """See TransactionalProducer."""
        with deadline(OPEN_SECONDS, f"{self.id}: init_transactions"), self._translated():
            self._told = None
            self._producer = self._library.Producer(self._settings)
            self._caller = Caller()
            ends = time.monotonic() + 2 * CONNECT_SECONDS
            while True:  # librdkafka goes on trying in the background, and reports failures to `error_cb`
                try:
                    self._producer.init_transactions(0.5)
                except self._library.KafkaException as error:
                    self._producer.poll(0)
                    failed, told = error.args[0], self._told
                    if not failed.retriable():
                        raise
                    if time.monotonic() > ends or (told is not None and refused(told)):
                        raise translate(told or failed) from error
                else:
                    return

    def transact(
        self, records: list[Record], positions: Sequence[Position] = (), group: ConsumerGroupMetadata | None = None
    ) -> None:
        """Checks every delivery before it sends the offsets, and makes each call under a deadline."""
        producer = self._producer
        with self._translated():
            with deadline(CALL_SECONDS, f"{self.id}: send"):
                producer.begin_transaction()
                failed = self._send(producer, records)
            if failed:
                self._blame(failed, records)
            at = [self._library.TopicPartition(*p.partition, p.offset, p.note) for p in positions]
            ended = self._caller.call(self._end, producer, at, None if group is None else group_bytes(group))
            try:
                ended.result(ANSWER_SECONDS + 1)
            except TimeoutError:  # the thread keeps the client, until the next producer of this id fences it
                raise DoubtError("librdkafka does not return") from None

    def shut(self) -> None:
        """See TransactionalProducer. Unsent records are dropped, and the client ends with the last reference to it.

        Both happen in a thread of their own, since they may hang as any call of librdkafka may.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            self._caller.close()
            threading.Thread(target=producer.purge, daemon=True).start()

    def _send(self, producer: Any, records: list[Record]) -> dict[int, Any]:
        """Sends all records and waits. Returns librdkafka's error for each one that was not delivered, by index."""
        failed: dict[int, Any] = {}

        def report(index: int, error: Any, _: Any) -> None:  # without a callback a flush looks only every 10 ms
            if error is not None:
                failed[index] = error

        for index, r in enumerate(records):
            arguments = {"partition": -1 if r.number is None else r.number, "timestamp": r.timestamp or 0}
            on_delivery = functools.partial(report, index)
            while True:
                try:
                    producer.produce(r.topic, r.value, r.key, on_delivery=on_delivery, headers=r.headers, **arguments)
                    break
                except BufferError:  # its queue is full
                    producer.poll(0.1)
                except self._library.KafkaException as error:  # the client's own limit, or an earlier record has failed
                    failed.setdefault(index, error.args[0])
                    break
            if failed:
                break
        ends = time.monotonic() + CALL_SECONDS / 2
        while (waiting := producer.flush(0.1)) and not failed:  # records behind a refused one would wait in vain
            if time.monotonic() > ends:
                raise DoubtError(f"{waiting} records were not delivered in time")
        return failed

    @staticmethod
    def _end(producer: Any, at: list[Any], group: bytes | None) -> None:
        if group is not None:
            producer.send_offsets_to_transaction(at, group, ANSWER_SECONDS / 2)
        producer.commit_transaction(ANSWER_SECONDS / 2)

    def _blame(self, failed: dict[int, Any], records: list[Record]) -> None:
        """Raises RecordTooLargeError if a record is too large, as it may have failed others; else the first error."""
        translated = {index: translate(error) for index, error in failed.items()}
        too_large = [index for index, error in translated.items() if isinstance(error, TOO_LARGE)]
        if invalid := [index for index, error in translated.items() if isinstance(error, INVALID)]:
            told = [index for index in invalid if isinstance(translated[index], errors.InvalidRecordError)]
            if not told and len(invalid) > 1 and ONE_BY_ONE.keys().isdisjoint(self._settings):
                self._settings |= ONE_BY_ONE
                raise DoubtError("a topic refuses records and does not say which; from now on each record is a batch")
            raise RecordsRefusedError(told or invalid, str(translated[(told or invalid)[0]]))
        if not too_large:
            raise next(iter(translated.values()))
        if ONE_BY_ONE.keys().isdisjoint(self._settings) and len(records) > 1:
            self._settings |= ONE_BY_ONE
            raise DoubtError("a batch is larger than the topic allows; from now on each record is a batch")
        raise largest(records, too_large)

    def _made(self) -> dict[str, Any]:
        made = settings(self._cluster, KafkaProducer.DEFAULT_CONFIG, "producer", SinkError, **TIMEOUTS)
        return (
            OURS
            | made
            | {
                "transactional.id": self.id,
                "compression.type": self._compression or "none",
                "socket.timeout.ms": made["request.timeout.ms"],
                "error_cb": functools.partial(setattr, self, "_told"),
            }
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._library.KafkaException as error:
            raise translate(error.args[0]) from error
