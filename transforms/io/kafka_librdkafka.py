"""A transactional producer by librdkafka (confluent-kafka, extra `confluent`), of which a transaction takes less time.

Group and positions stay kafka-python's; the broker only wants the member id and generation, which librdkafka takes as
the bytes that its own consumer would give.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata

from schemas.errors import SinkError
from transforms.io.kafka_client import CONNECT_SECONDS, Cluster
from transforms.io.kafka_producer import (
    CALL_SECONDS,
    OPEN_SECONDS,
    TIMEOUTS,
    TOO_LARGE,
    DoubtError,
    Position,
    Record,
    largest,
)
from transforms.watchdog import deadline

PROPERTIES = {
    "client_id": "client.id",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
    "ssl_crlfile": "ssl.crl.location",
    "ssl_ciphers": "ssl.cipher.suites",
    "ssl_check_hostname": "ssl.endpoint.identification.algorithm",
    "delivery_timeout_ms": "delivery.timeout.ms",
    "request_timeout_ms": "request.timeout.ms",
    "transaction_timeout_ms": "transaction.timeout.ms",
    "reconnect_backoff_ms": "reconnect.backoff.ms",
    "reconnect_backoff_max_ms": "reconnect.backoff.max.ms",
    "retry_backoff_ms": "retry.backoff.ms",
    "linger_ms": "linger.ms",
    "max_request_size": "message.max.bytes",
    "connections_max_idle_ms": "connections.max.idle.ms",
    "metadata_max_age_ms": "topic.metadata.refresh.interval.ms",
    "receive_buffer_bytes": "socket.receive.buffer.bytes",
    "send_buffer_bytes": "socket.send.buffer.bytes",
}
"""librdkafka's names of kafka-python's client properties."""
IGNORED = {"batch_size", "bootstrap_timeout_ms", "max_block_ms", "metrics_enabled"}
OURS = {
    "log_level": 0,
    "partitioner": "murmur2_random",  # as kafka-python and Java
    "delivery.report.only.error": True,
    "socket.nagle.disable": True,
    "queue.buffering.max.messages": 10_000_000,
    "queue.buffering.max.kbytes": 2_097_151,
    "batch.size": 1_000_000,
}
ONE_BY_ONE = {"batch.num.messages": 1}
ANSWER_SECONDS = 8.0
"""How long the coordinators have for offsets and commit together."""
LOCAL = {
    "_FENCED": errors.ProducerFencedError,
    "_AUTHENTICATION": errors.SaslAuthenticationFailedError,
    "_TIMED_OUT": errors.KafkaTimeoutError,
    "_TIMED_OUT_QUEUE": errors.KafkaTimeoutError,
    "_MSG_TIMED_OUT": errors.KafkaTimeoutError,
}
"""kafka-python's classes for what librdkafka itself finds; any other is a KafkaConnectionError."""


class LibrdkafkaProducer:
    """See TransactionalProducer."""

    def __init__(self, cluster: Cluster, transactional_id: str, compression: str | None) -> None:
        """Raises SinkError if confluent-kafka is not installed, or has no counterpart of a client property."""
        try:
            import confluent_kafka
        except ImportError:
            raise SinkError("producer: confluent-kafka is not installed: pip install 'tagstream[confluent]'") from None
        self._library = confluent_kafka
        self.id, self._cluster, self._compression = transactional_id, cluster, compression
        self._settings = self._made()
        self._producer: Any = None
        self._told: Any = None
        """The last of librdkafka's errors that no call has raised."""

    def start(self) -> None:
        """See TransactionalProducer."""
        with deadline(OPEN_SECONDS, f"{self.id}: init_transactions"), self._translated():
            self._told = None
            self._producer = self._library.Producer(self._settings)
            ends = time.monotonic() + 2 * CONNECT_SECONDS
            while True:  # librdkafka goes on trying, and tells on the side what fails
                try:
                    self._producer.init_transactions(0.5)
                except self._library.KafkaException as error:
                    self._producer.poll(0)
                    failed, told = error.args[0], self._told
                    if not failed.retriable():
                        raise
                    if time.monotonic() > ends or (told is not None and told.name() == "_AUTHENTICATION"):
                        raise self._translate(told or failed) from error
                else:
                    return

    def transact(self, records: list[Record], positions: list[Position], group: ConsumerGroupMetadata) -> None:
        """Every delivery is looked at before the offsets go in, each call is under a deadline."""
        producer = self._producer
        with self._translated():
            with deadline(CALL_SECONDS, f"{self.id}: send"):
                producer.begin_transaction()
                failed = self._send(producer, records)
            if failed:
                self._blame(failed, records)
            at = [self._library.TopicPartition(*p.partition, p.offset, p.note) for p in positions]
            _bounded(self._end, producer, at, group_bytes(group))

    def shut(self) -> None:
        """Unsent records are dropped, and the client ends with the last reference to it: in a thread, since either may
        hang as its calls do.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            threading.Thread(target=producer.purge, daemon=True).start()

    def _send(self, producer: Any, records: list[Record]) -> dict[int, Any]:
        """Sends all and waits; the KafkaError of each that was not delivered, by index."""
        failed: dict[int, Any] = {}

        def report(index: int, error: Any, _: Any) -> None:
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
                except self._library.KafkaException as error:  # its own limit, or one before has failed already
                    failed.setdefault(index, error.args[0])
                    break
            if failed:
                break
        ends = time.monotonic() + CALL_SECONDS / 2
        while (waiting := producer.flush(0.1)) and not failed:  # those behind a refused one wait for nothing
            if time.monotonic() > ends:
                raise DoubtError(f"{waiting} records were not delivered in time")
        return failed

    @staticmethod
    def _end(producer: Any, at: list[Any], group: bytes) -> None:
        producer.send_offsets_to_transaction(at, group, ANSWER_SECONDS / 2)
        producer.commit_transaction(ANSWER_SECONDS / 2)

    def _blame(self, failed: dict[int, Any], records: list[Record]) -> None:
        """Raises the error, the record that is too large if there is one: the others may have failed because of it."""
        translated = {index: self._translate(error) for index, error in failed.items()}
        too_large = [index for index, error in translated.items() if isinstance(error, TOO_LARGE)]
        if not too_large:
            raise next(iter(translated.values()))
        if ONE_BY_ONE.keys().isdisjoint(self._settings) and len(records) > 1:
            self._settings |= ONE_BY_ONE
            raise DoubtError("a batch is larger than the topic takes; from now on each record is one")
        raise largest(records, too_large)

    def _made(self) -> dict[str, Any]:
        """The settings of librdkafka. Raises SinkError for a client property that has no counterpart there."""
        ours = {name: value for name, value in TIMEOUTS.items() if name not in IGNORED}
        given = self._cluster.properties(KafkaProducer.DEFAULT_CONFIG, **ours)
        servers = given.pop("bootstrap_servers")
        given = {name: value for name, value in given.items() if name not in IGNORED and value is not None}
        if unknown := sorted(given.keys() - PROPERTIES.keys()):
            raise SinkError(f"client property {unknown[0]!r} is not for producer: confluent-kafka")
        if (check := given.get("ssl_check_hostname")) is not None:
            given["ssl_check_hostname"] = "https" if check else "none"
        settings = OURS | {PROPERTIES[name]: value for name, value in given.items()}
        return settings | {
            "bootstrap.servers": servers,
            "transactional.id": self.id,
            "compression.type": self._compression or "none",
            "socket.timeout.ms": settings["request.timeout.ms"],
            "error_cb": functools.partial(setattr, self, "_told"),
            "logger": logging.getLogger("kafka.librdkafka"),
        }

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._library.KafkaException as error:
            raise self._translate(error.args[0]) from error

    def _translate(self, error: Any) -> errors.KafkaError:
        """kafka-python's error: positive codes are the protocol's, negative ones librdkafka's own."""
        if error.code() > 0:
            kind = errors.for_code(error.code())
        else:
            kind = LOCAL.get(error.name(), errors.KafkaConnectionError)
        return kind(error.str())


def _bounded(call: Callable[..., None], *arguments: Any) -> None:
    """The call in a thread of its own: when its connection breaks, librdkafka's may never return, whatever time-out it
    has. Raises what it raises, or DoubtError; then the thread keeps the client, which the next of its id fences.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            call(*arguments)
        except BaseException as error:  # noqa: BLE001 — raised by the waiting thread
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="librdkafka", daemon=True).start()
    try:
        done.result(ANSWER_SECONDS + 1)
    except TimeoutError:
        raise DoubtError("librdkafka does not return") from None


def group_bytes(group: ConsumerGroupMetadata) -> bytes:
    """What librdkafka's consumer_group_metadata gives: a magic, the generation, then strings that end with a zero."""
    instance = group.group_instance_id
    generation: bytes = group.generation_id.to_bytes(4, sys.byteorder, signed=True)
    strings = f"{group.group_id}\0{group.member_id}\0" + ("\1" if instance is None else f"\0{instance}\0")
    return b"CGMDv2:" + generation + strings.encode()
