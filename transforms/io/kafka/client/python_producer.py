"""A transactional producer by kafka-python. `rdkafka_producer` is faster.

Owns the order of a transaction's calls and their deadlines. Must not know chains or groups.

The rules in the comments were found by killing brokers and workers. Used as its documentation shows, kafka-python
3.0.12 loses records: an expired batch fails only its own future; a sequence gap makes the client take a new epoch
inside a commit, which then reports success; a request may be dropped without an error while a connection is down.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from tagstream.transforms.io.kafka.client.cluster import Cluster, topic_partition
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
    RecordTooLargeError,
    largest,
)
from tagstream.transforms.io.kafka.client.python_private import force_close, identity
from tagstream.transforms.runtime.watchdog import deadline

RANGE = re.compile(r"Timestamp (-?\d+) of message .* within \[(-?\d+), (-?\d+)\]")
"""A broker's words for a timestamp that the topic does not accept."""


class PythonProducer:
    """See TransactionalProducer."""

    def __init__(self, cluster: Cluster, transactional_id: str, compression: str | None) -> None:
        self.id, self._cluster, self._compression = transactional_id, cluster, compression
        self._producer: Any = None
        self._one_by_one = False

    def start(self) -> None:
        """See TransactionalProducer."""
        arguments = self._cluster.properties(
            KafkaProducer.DEFAULT_CONFIG,
            **(TIMEOUTS | ({"batch_size": 0} if self._one_by_one else {})),
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
                if "unknown reasons" in str(error):  # how the client calls a request that was not answered
                    raise errors.RequestTimedOutError(str(error)) from error
                raise

    def transact(
        self, records: list[Record], positions: Sequence[Position] = (), group: ConsumerGroupMetadata | None = None
    ) -> None:
        """Makes the calls in the order of rule 3, each under a deadline (rule 6)."""
        producer = self._producer
        with deadline(CALL_SECONDS, f"{self.id}: begin"):
            producer.begin_transaction()
            began = identity(producer)
        with deadline(CALL_SECONDS, f"{self.id}: send"):
            futures: list[Any] = []
            unsent: Exception | None = None
            try:
                for r in records:
                    future = producer.send(r.topic, r.value, r.key, r.headers, r.number, r.timestamp)
                    futures.append(future)
            except TOO_LARGE:  # the client's own limit
                raise RecordTooLargeError(len(futures)) from None
            except errors.KafkaError as error:  # an earlier record has failed already; its future tells why
                unsent = error
            with contextlib.suppress(errors.UnknownError):  # raised for a batch that was split; the futures tell more
                producer.flush(timeout=CALL_SECONDS / 2)
        too_large, invalid = [], {}
        alone, self._one_by_one = self._one_by_one, False
        with deadline(CALL_SECONDS, f"{self.id}: look at what was sent"):
            until = time.monotonic() + CALL_SECONDS / 2
            for index, future in enumerate(futures):  # all of them: a failed batch fails nothing else
                try:
                    future.get(timeout=max(0.0, until - time.monotonic()))
                except TOO_LARGE:
                    too_large.append(index)
                except INVALID as error:
                    invalid[index] = error
                except errors.KafkaError as error:  # of the batch of a record that is refused, or nobody's fault
                    unsent = unsent or error
        if too_large:
            raise largest(records, too_large)
        if (
            len(invalid) > 1 and not alone and not any(RANGE.search(str(error)) for error in invalid.values())
        ):  # a broker does not tell which of a batch it means
            self._one_by_one = True
            raise DoubtError("a topic refuses some records; at the next attempt each record is a batch")
        if invalid:
            raise _refusal(records, invalid)
        if unsent is not None:
            raise unsent
        if group is not None:
            offsets = {topic_partition(p.partition): OffsetAndMetadata(p.offset, p.note, -1) for p in positions}
            with deadline(CALL_SECONDS, f"{self.id}: send offsets"):
                producer.send_offsets_to_transaction(offsets, group)  # rule 1: never the bare group name
        self._same(began, "sending")
        with deadline(CALL_SECONDS, f"{self.id}: commit"):
            producer.commit_transaction()
        self._same(began, "the commit")

    def shut(self) -> None:
        """See TransactionalProducer."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        with deadline(CALL_SECONDS, "close a producer"):
            with contextlib.suppress(Exception):
                producer.close(timeout=0)
            force_close(producer)

    def _same(self, began: tuple[int, int], after: str) -> None:
        """Rule 4: another id or epoch means that the commit may have covered nothing."""
        if (now := identity(self._producer)) != began:
            raise DoubtError(f"the producer id changed during {after}: {began} -> {now}")


def _refusal(records: list[Record], invalid: dict[int, Exception]) -> RecordsRefusedError:
    """The error for refused records. `invalid`: errors by index; the client may fail other records along with them."""
    for index, error in invalid.items():
        if (told := RANGE.search(str(error))) and records[index].timestamp == int(told[1]):
            topic, low, high = records[index].topic, int(told[2]), int(told[3])
            late = [
                other
                for other, record in enumerate(records)
                if record.topic == topic and record.timestamp is not None and not low <= record.timestamp <= high
            ]
            return RecordsRefusedError(late, str(error))
    indexes = [index for index in invalid if records[index].key is None] or [min(invalid)]
    return RecordsRefusedError(indexes, str(invalid[indexes[0]]))
