"""The Kafka client, fourth part: a transactional producer, by kafka-python. `rdkafka_producer` is faster.

The rules in the comments were found by killing brokers and workers: used as its documentation shows, kafka-python
3.0.12 loses records (an expired batch fails only its future, a sequence gap makes it take a new epoch inside a commit
that then reports success, and a request may be dropped without an error while a connection is down).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from tagstream.transforms.io.kafka.client.cluster import Cluster, topic_partition
from tagstream.transforms.io.kafka.client.contracts import (
    CALL_SECONDS,
    OPEN_SECONDS,
    TOO_LARGE,
    DoubtError,
    Position,
    Record,
    RecordTooLargeError,
    largest,
)
from tagstream.transforms.runtime.watchdog import deadline

TIMEOUTS = {  # rule 2; all but the security settings can be changed through `client`
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


class PythonProducer:
    """kafka-python's."""

    def __init__(self, cluster: Cluster, transactional_id: str, compression: str | None) -> None:
        self.id, self._cluster, self._compression = transactional_id, cluster, compression
        self._producer: Any = None

    def start(self) -> None:
        """See TransactionalProducer."""
        arguments = self._cluster.properties(
            KafkaProducer.DEFAULT_CONFIG,
            **TIMEOUTS,
            transactional_id=self.id,
            compression_type=self._compression,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        with deadline(OPEN_SECONDS, f"{self.id}: connect"):
            self._producer = KafkaProducer(**arguments)
        with deadline(OPEN_SECONDS, f"{self.id}: init_transactions"):
            try:
                self._producer.init_transactions()
            except errors.KafkaError as error:
                if "unknown reasons" in str(error):  # its words, in a plain KafkaError, for a request without an answer
                    raise errors.RequestTimedOutError(str(error)) from error
                raise

    def transact(self, records: list[Record], positions: list[Position], group: ConsumerGroupMetadata) -> None:
        """In the order of rule 3, each call under a deadline (rule 6)."""
        producer = self._producer
        with deadline(CALL_SECONDS, f"{self.id}: begin"):
            producer.begin_transaction()
            began = self._identity()
        with deadline(CALL_SECONDS, f"{self.id}: send"):
            futures: list[Any] = []
            unsent: Exception | None = None
            try:
                for r in records:
                    future = producer.send(r.topic, r.value, r.key, r.headers, r.number, r.timestamp)
                    futures.append(future)
            except TOO_LARGE:  # by the client's own limit
                raise RecordTooLargeError(len(futures)) from None
            except errors.KafkaError as error:  # one sent before has failed already; the futures tell why
                unsent = error
            with contextlib.suppress(errors.UnknownError):  # raised for a batch that was split; its futures tell
                producer.flush(timeout=CALL_SECONDS / 2)
        too_large = []
        with deadline(CALL_SECONDS, f"{self.id}: look at what was sent"):
            until = time.monotonic() + CALL_SECONDS / 2
            for index, future in enumerate(futures):  # every one, since a failed batch fails nothing else
                try:
                    future.get(timeout=max(0.0, until - time.monotonic()))
                except TOO_LARGE:
                    too_large.append(index)
        if too_large:
            raise largest(records, too_large)
        if unsent is not None:
            raise unsent
        offsets = {topic_partition(p.partition): OffsetAndMetadata(p.offset, p.note, -1) for p in positions}
        with deadline(CALL_SECONDS, f"{self.id}: send offsets"):
            producer.send_offsets_to_transaction(offsets, group)  # rule 1: never the bare group name
        self._same(began, "sending offsets")
        with deadline(CALL_SECONDS, f"{self.id}: commit"):
            producer.commit_transaction()
        self._same(began, "the commit")

    def shut(self) -> None:
        """The client's own close may raise and leave its thread running."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        with deadline(CALL_SECONDS, "close a producer"):
            with contextlib.suppress(Exception):
                producer.close(timeout=0)
            producer._sender.force_close()  # noqa: SLF001

    def _identity(self) -> tuple[int, int]:
        """Producer id and epoch: the client changes them by itself when it has lost track of its sequence."""
        identity = self._producer._transaction_manager.producer_id_and_epoch  # noqa: SLF001
        return identity.producer_id, identity.epoch

    def _same(self, began: tuple[int, int], after: str) -> None:
        """Rule 4: another id or epoch means that the commit may have covered nothing."""
        if self._identity() != began:
            raise DoubtError(f"the producer id changed during {after}: {began} -> {self._identity()}")
