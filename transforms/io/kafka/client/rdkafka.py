"""What the consumer and the producer by librdkafka (confluent-kafka, extra `confluent`) share.

Owns the translation of settings, errors and a group's identity between kafka-python's form and librdkafka's. Must not
know partitions or records.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from kafka import errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.errors import TagstreamError
from tagstream.transforms.io.kafka.client.cluster import Cluster

PROPERTIES = {
    "client_id": "client.id",
    "client_rack": "client.rack",
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
    "group_id": "group.id",
    "group_instance_id": "group.instance.id",
    "session_timeout_ms": "session.timeout.ms",
    "heartbeat_interval_ms": "heartbeat.interval.ms",
    "max_poll_interval_ms": "max.poll.interval.ms",
    "fetch_max_wait_ms": "fetch.wait.max.ms",
    "fetch_min_bytes": "fetch.min.bytes",
    "fetch_max_bytes": "fetch.max.bytes",
    "max_partition_fetch_bytes": "max.partition.fetch.bytes",
    "check_crcs": "check.crcs",
}
"""librdkafka's names for kafka-python's client properties."""
IGNORED = {"batch_size", "bootstrap_timeout_ms", "max_block_ms", "metrics_enabled", "max_poll_records"}
LOCAL = {
    "_FENCED": errors.ProducerFencedError,
    "_AUTHENTICATION": errors.SaslAuthenticationFailedError,
    "_TIMED_OUT": errors.KafkaTimeoutError,
    "_TIMED_OUT_QUEUE": errors.KafkaTimeoutError,
    "_MSG_TIMED_OUT": errors.KafkaTimeoutError,
    "_AUTO_OFFSET_RESET": errors.OffsetOutOfRangeError,
}
"""kafka-python's classes for errors that librdkafka itself finds. All others become KafkaConnectionError."""
BEHIND_THE_MAGIC = b"CGMDv2:"


def library(what: str, kind: type[TagstreamError]) -> Any:
    """The module confluent_kafka. If it is missing, raises a `kind` that says how to install it."""
    try:
        import confluent_kafka
    except ImportError:
        raise kind(f"{what}: confluent-kafka is not installed: pip install 'tagstream[confluent]'") from None
    return confluent_kafka


def settings(
    cluster: Cluster, known: Mapping[str, Any], what: str, kind: type[TagstreamError], **ours: Any
) -> dict[str, Any]:
    """Settings of librdkafka. `ours`: settings by kafka-python's names. `known`: defaults of the kafka-python class; a
    specification may use their names.

    Raises `kind` for a client property that has no counterpart.
    """
    given = cluster.properties(known, **{name: value for name, value in ours.items() if name not in IGNORED})
    servers = given.pop("bootstrap_servers")
    given = {name: value for name, value in given.items() if name not in IGNORED and value is not None}
    if unknown := sorted(given.keys() - PROPERTIES.keys()):
        raise kind(f"client property {unknown[0]!r} is not for {what}: confluent-kafka")
    if (check := given.get("ssl_check_hostname")) is not None:
        given["ssl_check_hostname"] = "https" if check else "none"
    return {PROPERTIES[name]: value for name, value in given.items()} | {
        "bootstrap.servers": servers,
        "socket.nagle.disable": True,
        "log_level": 0,
        "logger": logging.getLogger("kafka.librdkafka"),
    }


def translate(error: Any) -> errors.KafkaError:
    """kafka-python's error for one of confluent_kafka. Positive codes are those of Kafka's protocol."""
    local = LOCAL.get(error.name(), errors.KafkaConnectionError)
    kind = errors.for_code(error.code()) if error.code() > 0 else local
    return kind(error.str())


def refused(error: Any) -> bool:
    """Whether the broker refuses the credentials. A broken handshake has the same code, and does not count."""
    return error.name() == "_AUTHENTICATION" and "handshake failed: Local:" not in error.str()


class Caller:
    """Makes calls one after another in a thread of its own.

    A call of librdkafka may never return when its connection breaks, whatever its time-out. Then the thread hangs and
    keeps the client, and the caller goes on.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="librdkafka", daemon=True).start()

    def call(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """A future of what the call returns or raises."""
        future: Future[Any] = Future()
        self._calls.put((future, call, arguments))
        return future

    def close(self) -> None:
        """Ends the thread after the calls that were made."""
        self._calls.put(None)

    def _run(self) -> None:
        while (made := self._calls.get()) is not None:
            future, call, arguments = made
            try:
                future.set_result(call(*arguments))
            except BaseException as error:  # noqa: BLE001 — raised by the waiting thread
                future.set_exception(error)


def group_bytes(group: ConsumerGroupMetadata) -> bytes:
    """The bytes of librdkafka's consumer_group_metadata: a magic, the generation, then strings that end with a zero."""
    instance = group.group_instance_id
    generation: bytes = group.generation_id.to_bytes(4, sys.byteorder, signed=True)
    strings = f"{group.group_id}\0{group.member_id}\0" + ("\1" if instance is None else f"\0{instance}\0")
    return BEHIND_THE_MAGIC + generation + strings.encode()


def group_of_bytes(data: bytes) -> ConsumerGroupMetadata:
    """The reverse of `group_bytes`."""
    at = len(BEHIND_THE_MAGIC)
    assert data[:at] == BEHIND_THE_MAGIC, "a magic that this version of librdkafka does not write"
    group, member, rest = data[at + 4 :].decode().split("\0", 2)
    generation = int.from_bytes(data[at : at + 4], sys.byteorder, signed=True)
    return ConsumerGroupMetadata(group, generation, member, None if rest == "\1" else rest[1:-1])
