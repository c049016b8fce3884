"""A Kafka cluster: how to reach it, which partitions its topics have, what its errors mean, its records as Arrow.

Owns connection settings, metadata and offsets looked up outside of a group, and the sentences that explain errors. Must
not know members, chains, or what a record means.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition, errors
from kafka.admin import KafkaAdminClient

from tagstream.schemas.errors import SourceError, TagstreamError
from tagstream.transforms.io.kafka.client.python_private import OddName, accept_any_header_name, refresh_topics
from tagstream.transforms.runtime.watchdog import deadline

CONNECT_SECONDS = 8.0
DECIDED_MS = 90_000
"""How long to wait while a transaction is undecided: longer than brokers keep a dead owner's transaction open."""
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
REFRESH = {"reconnect_backoff_max_ms": 1000, "metadata_max_age_ms": 10_000}
"""Settings of consumers: the longest time until one notices that a broker is back, and that partitions were added."""
RECORDS = pa.schema(
    [
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", HEADERS),
        ("timestamp", pa.timestamp("ms")),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("defect", pa.string()),
    ]
)
"""The schema of polled messages: one row a message, offsets ascending.

`defect`: why the message can't be taken as it is; else null. What is wrong with it is replaced or left out.
"""
NO_TIMESTAMP = -1
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, in milliseconds since 1970: Python's dates hold no others, nor do most databases."""
PROTECTED = {
    "bootstrap_servers", "group_id", "group_instance_id", "enable_auto_commit", "auto_offset_reset", "isolation_level",
    "transactional_id", "enable_idempotence", "acks", "retries", "max_in_flight_requests_per_connection",
    "key_deserializer", "value_deserializer", "key_serializer", "value_serializer", "partitioner", "kafka_client",
}  # fmt: skip
"""Client properties that exactly-once delivery rests on. A specification can't set them."""
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
"""Client properties that name a file."""
TRANSIENT = (errors.RetriableError, errors.BrokerNotAvailableError, OSError)
"""Errors that end when the broker comes back."""


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is and how to log in. `client`: any property of kafka-python, except the `PROTECTED` ones.

    `sasl_oauth_token_provider` is given as "module:Class" and names a subclass of the client's AbstractTokenProvider.
    `client` holds secrets and is never printed.
    """

    servers: str
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def properties(self, known: Mapping[str, Any], **ours: Any) -> dict[str, Any]:
        """Arguments for a kafka-python class whose defaults are `known`. Raises SourceError for unknown names."""
        if refused := sorted(PROTECTED & self.client.keys()):
            raise SourceError(f"client property {refused[0]!r} can't be set: exactly-once delivery depends on it")
        from kafka import KafkaProducer

        anywhere = {*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG}
        if unknown := sorted(self.client.keys() - anywhere):
            raise SourceError(f"kafka-python has no client property {unknown[0]!r}")
        for name in FILES:
            if (path := self.client.get(name)) and not Path(path).is_file():
                raise SourceError(f"client.{name}: there is no file {path!r} on this machine")
        given = {name: value for name, value in self.client.items() if name in known}
        if isinstance(provider := given.get("sasl_oauth_token_provider"), str):
            given["sasl_oauth_token_provider"] = _made(provider)
        ours = {"bootstrap_servers": self.servers, "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000)} | ours
        return ours | given

    def consumer(self, **ours: Any) -> KafkaConsumer:
        """A connected consumer that never moves its position by itself (rule 7). Raises SourceError."""
        safe = {
            "enable_auto_commit": False,
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "allow_auto_create_topics": False,
            "metrics_enabled": True,
        }
        arguments = self.properties(KafkaConsumer.DEFAULT_CONFIG, **(safe | REFRESH | ours))
        accept_any_header_name()
        with self.explained("connect", SourceError), deadline(60, f"connect to {self.servers}"):
            return KafkaConsumer(**arguments)

    def require(self, consumer: KafkaConsumer, topics: tuple[str, ...]) -> list[Partition]:
        """All partitions of the topics. Raises SourceError for a topic that is missing or not allowed."""
        with self.explained(f"read {', '.join(topics)}", SourceError), deadline(60, "read metadata"):
            for _ in range(3):  # the first answer may belong to a request that was made before the topics were wanted
                numbers = refresh_topics(consumer, topics, 10_000, at_once=True)
                if all(numbers.values()):
                    break
            if missing := [topic for topic in topics if not numbers[topic]]:
                raise SourceError(f"topic {missing[0]!r} does not exist on {self.servers}; create it first")
        return [Partition(topic, number) for topic in topics for number in sorted(numbers[topic])]

    def partitions(self, topics: tuple[str, ...]) -> list[Partition]:
        """All partitions of the topics, through a connection of its own."""
        with contextlib.closing(self.consumer()) as consumer:
            return self.require(consumer, topics)

    def members(self, group: str) -> list[tuple[str, str]]:
        """Client id and host of each member of a consumer group. Raises KafkaError, also when permission is missing."""
        with (
            deadline(60, f"describe group {group}"),
            contextlib.closing(KafkaAdminClient(**self.properties(KafkaAdminClient.DEFAULT_CONFIG))) as admin,
        ):
            found = admin.describe_groups([group])[group]["members"]
        return [(member["client_id"], member["client_host"].lstrip("/")) for member in found]

    @contextlib.contextmanager
    def explained(self, what: str, kind: type[TagstreamError]) -> Iterator[None]:
        """Turns an error of the client into a `kind` that says what to do and quotes the client's last log line."""
        log = _LastWords()
        logger = logging.getLogger("kafka")
        logger.addHandler(log)
        try:
            yield
        except TagstreamError:
            raise
        except Exception as error:
            cause = log.cause if isinstance(error, errors.KafkaTimeoutError) and log.cause else error
            explained = kind(explain(cause, self.servers, what))
            explained.transient = isinstance(cause, TRANSIENT)
            raise explained from error
        finally:
            logger.removeHandler(log)


@contextlib.contextmanager
def closed_on_failure(consumer: KafkaConsumer) -> Iterator[None]:
    """Closes the consumer if the body fails."""
    try:
        yield
    except BaseException:
        consumer.close(timeout_ms=1000)
        raise


def _made(provider: str) -> Any:
    """An object of the class named as "module:Class"."""
    module, _, name = provider.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SourceError(f"client.sasl_oauth_token_provider {provider!r} is no module:Class: {error}") from None


def explain(error: BaseException, servers: str, what: str) -> str:
    """One sentence for a user: what failed, why, and what to look at."""
    detail = str(error) or type(error).__name__
    match error:
        case errors.SaslAuthenticationFailedError() | errors.UnsupportedSaslMechanismError():
            return f"can't {what}: {servers} refuses the credentials ({detail}); check the sasl_* settings"
        case errors.UnknownTopicOrPartitionError():
            return f"can't {what}: the topic does not exist on {servers}; create it first"
        case errors.TopicAuthorizationFailedError():
            return f"can't {what}: no permission for this topic on {servers} ({detail}); ask for an ACL"
        case errors.GroupAuthorizationFailedError():
            return f"can't {what}: no permission for this consumer group on {servers}; ask for an ACL"
        case errors.TransactionalIdAuthorizationFailedError():
            return f"can't {what}: no permission for this job's transactional ids on {servers}; ask for an ACL"
        case errors.InconsistentGroupProtocolError():
            return (
                f"can't {what}: the consumer group is in use by another program, which shares partitions otherwise; "
                "give the job a group of its own (source.group)"
            )
        case errors.FencedInstanceIdError():
            return (
                f"can't {what}: another process has come under the same name and has the partitions now; give each "
                "process a name of its own (source.instance_id)"
            )
        case errors.AuthorizationError():
            return f"can't {what}: no permission on {servers} ({detail})"
        case errors.KafkaConnectionError() if "certificate" in detail.lower():
            return f"can't {what}: the certificate of {servers} is not accepted ({detail}); check the ssl_* settings"
        case errors.KafkaConnectionError() if "disconnected" in detail:
            return (
                f"can't {what}: {servers} closes the connection during the handshake ({detail}); check "
                "security_protocol, sasl_mechanism, user and password"
            )
        case errors.InvalidReceiveError():
            return f"can't {what}: {servers} answers in another protocol ({detail}); check security_protocol and port"
        case errors.KafkaConnectionError() | OSError():
            return f"can't {what}: no Kafka broker of this protocol answers at {servers} ({detail})"
        case errors.KafkaTimeoutError():
            return f"can't {what}: {servers} does not answer in time ({detail})"
    return f"can't {what} on {servers}: {type(error).__name__}: {detail}"


def topic_partition(partition: Partition) -> TopicPartition:
    """The client's own name of a partition."""
    return TopicPartition(partition.topic, partition.number)


def named(partitions: Iterable[Any]) -> list[Partition]:
    """Our names for the partitions of either client library, sorted."""
    return sorted(Partition(p.topic, p.partition) for p in partitions)


def committed(consumer: KafkaConsumer, partition: Partition, timeout_ms: int = DECIDED_MS) -> tuple[int, str] | None:
    """The committed offset of the consumer's group and its note. Waits while a transaction on it is undecided."""
    found = consumer.committed(topic_partition(partition), metadata=True, timeout_ms=timeout_ms)
    return None if found is None else (found.offset, found.metadata)


def offsets(consumer: KafkaConsumer, partitions: list[Partition], at: str | int) -> dict[Partition, int]:
    """Offsets at `earliest`, at `latest` (the end of committed messages) or at a time in ms since the epoch."""
    names = {topic_partition(p): p for p in partitions}
    with deadline(60, f"look up offsets at {at}"):
        if at == "earliest":
            found = consumer.beginning_offsets(list(names), timeout_ms=20_000)
        elif at == "latest":
            found = consumer.end_offsets(list(names), timeout_ms=20_000)
        else:
            later = consumer.offsets_for_times({name: int(at) for name in names}, timeout_ms=20_000)
            end = consumer.end_offsets(list(names), timeout_ms=20_000)
            found = {name: later[name].offset if later.get(name) else end[name] for name in names}
    return {partition: int(found[name]) for name, partition in names.items()}


def to_records(partition: Partition, records: list[Any]) -> pa.RecordBatch:
    """The client's record objects as one batch of schema `RECORDS`. A null header value stays null."""
    return record_batch(
        partition,
        [r.key for r in records],
        [r.value for r in records],
        [r.headers for r in records],
        [NO_TIMESTAMP if r.timestamp is None else r.timestamp for r in records],
        [r.offset for r in records],
    )


def record_batch(
    partition: Partition,
    keys: list[bytes | None],
    values: list[bytes | None],
    headers: list[Any],
    timestamps: list[int],
    at: list[int],
    defects: dict[int, str] | None = None,
) -> pa.RecordBatch:
    """One batch of schema `RECORDS` from its columns. `headers`: for each message a list of pairs, or None.

    `defects`: those that the client has found, by row.
    """
    n, defects = len(at), defects or {}
    if any(headers):
        listed = pa.array([pairs or [] for pairs in headers], HEADERS)
        odd = ((row, name) for row, pairs in enumerate(headers) for name, _ in pairs or () if type(name) is OddName)
        for row, name in odd:
            defects[row] = f"the name of a header is not valid UTF-8: {name.raw[:60]!r}"
    else:
        listed = pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], HEADERS.value_type)).cast(HEADERS)
    times = np.array(timestamps, np.int64)
    strange = (times < FIRST_MS) | (times > LAST_MS)
    for row in np.flatnonzero(strange).tolist():
        defects[row] = f"the message's timestamp, {timestamps[row]} ms, is in no year from 1 to 9999"
    return pa.RecordBatch.from_arrays(
        [
            pa.array(keys, pa.binary()),
            pa.array(values, pa.binary()),
            listed,
            pa.array(times, mask=strange | (times == NO_TIMESTAMP)).cast(pa.timestamp("ms")),
            pa.array(np.full(n, partition.number, np.int32)),
            pa.array(np.array(at, np.int64)),
            pa.array([defects.get(row) for row in range(n)], pa.string()) if defects else pa.nulls(n, pa.string()),
        ],
        schema=RECORDS,
    )


class _LastWords(logging.Handler):
    """Keeps the cause of the last failed connection. The client only logs it, and its exception says 'timeout'."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cause: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, errors.SaslAuthenticationFailedError):
                self.cause = argument
            elif isinstance(argument, errors.KafkaError) and not isinstance(
                argument, errors.KafkaTimeoutError | errors.NodeNotReadyError | errors.RequestTimedOutError
            ):  # an attempt that the deadline cut short tells no cause
                self.cause = self.cause if isinstance(self.cause, errors.SaslAuthenticationFailedError) else argument
