"""The Kafka client, third part: one atomic append to the chain of one input partition.

A `Chain` is a transactional producer whose transactional id is fixed by job and input partition. Its `commit` writes
output records and the input position in one transaction, and never reports success without proof. The rules in the
comments were found by killing brokers and workers: used as its documentation shows, kafka-python 3.0.12 loses
records (an expired batch fails only its future, a sequence gap makes it take a new epoch inside a commit that then
reports success, and a request may be dropped without an error while a connection is down).
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from schemas.errors import ChainMovedError, LedgerError, SinkError
from transforms.io.kafka_client import Cluster, Partition, topic_partition
from transforms.watchdog import deadline

log = logging.getLogger(__name__)

OPEN_SECONDS, CALL_SECONDS = 60.0, 30.0
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
NOT_OURS = (
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
    errors.FencedInstanceIdError,
)
HOPELESS = (errors.AuthorizationError, errors.InvalidTransactionTimeoutError, errors.UnsupportedVersionError)
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
ATTEMPTS = 8


class Record(NamedTuple):
    """One output record. `number` None: the client's own partitioner, by key."""

    topic: str
    number: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int | None


class PartitionLostError(Exception):
    """The group has given this partition to another member. Internal: the block is dropped, its new owner does it."""


class DoubtError(Exception):
    """Nobody can say whether the transaction took place. Internal: the committed offset decides."""


class RecordTooLargeError(Exception):
    """The broker does not take this record, by index into what was to be committed. Nothing was committed."""

    def __init__(self, index: int) -> None:
        super().__init__(f"record {index} is larger than the output topic takes")
        self.index = index


class Chain:
    """The chain of one input partition; its end is the offset that the group has committed.

    `metadata` gives the group's current generation and member id; with a subscribed consumer the broker refuses a
    zombie by them (rule 1). `committed` reads the committed offset and its note, `owned` says whether the group still
    gives us the partition. The note beside the offset names the job and this object. One thread commits; `open` and
    `close` may come from another, during a rebalance.
    """

    def __init__(
        self,
        cluster: Cluster,
        transactional_id: str,
        partition: Partition,
        *,
        metadata: Callable[[], ConsumerGroupMetadata],
        committed: Callable[[], tuple[int, str] | None],
        owned: Callable[[], bool] = lambda: True,
        compression: str | None = None,
        note: str = "",
    ) -> None:
        self.cluster, self.id, self.partition, self.note = cluster, transactional_id, partition, note
        self.position: int | None = None
        """Where the chain ends; None when it has not begun."""
        self._me = uuid.uuid4().hex[:16]
        self._last_writer = ""
        self.doubts = 0
        self._metadata, self._committed, self._owned, self._compression = metadata, committed, owned, compression
        self._producer: KafkaProducer | None = None
        self._closed = False
        self._lock = threading.RLock()

    def open(self) -> int | None:
        """Takes the chain over and reads where it ends. What an earlier owner left open is aborted first.

        Raises SinkError when the cluster doesn't let us, LedgerError when the group belongs to another job.
        """
        with self._lock:
            self._closed = False
            self._reopen()
            return self.position

    def close(self) -> None:
        """Lets go without aborting: whoever opens next does that. A commit under way ends as PartitionLostError."""
        self._closed = True
        self._discard()

    def commit(self, records: Iterable[Record], start: int, stop: int) -> None:
        """Appends `records` and moves the chain's end from `start` to `stop`, both or neither, exactly once.

        Where the process may die, and what follows (the next owner runs `open`):

        1. before begin: nothing has happened; the span is read again.
        2. while records are sent: the transaction is open; `open` aborts it, read_committed readers never see it.
        3. after the offsets, before the commit: as 2, the offsets vanish with the records.
        4. while the commit is under way: the coordinator has decided or not; `open` waits for its decision, and the
           committed offset says which it was.
        5. after the commit: the committed offset is `stop`; the span is not read again.

        A doubt in a living process is treated as a death: never commit or abort, rebuild, ask the committed offset
        (rule 5). Raises ChainMovedError when another owner has appended, PartitionLostError when the partition
        is not ours any more, RecordTooLargeError, SinkError when the cluster will never take it.
        """
        records = list(records)
        with self._lock:
            for attempt in range(ATTEMPTS):
                if self._closed or not self._owned():
                    raise PartitionLostError(str(self.partition))
                if attempt:  # two that take the chain from each other again and again: one of them waits
                    time.sleep(random.uniform(0, 0.05) * 2**attempt)  # noqa: S311
                if self._producer is None:
                    self._reopen()
                if self.position is not None and self.position != start:
                    if self.position == stop and self._last_writer == self._me:
                        return  # the doubtful transaction had taken place
                    raise ChainMovedError(self.position)
                try:
                    self._transact(records, stop)
                except NOT_OURS as error:
                    self._discard()
                    raise PartitionLostError(f"{self.partition}: {error}") from error
                except RecordTooLargeError:
                    self._discard()
                    raise
                except HOPELESS:
                    self._discard()
                    with self.cluster.explained("write", SinkError):
                        raise
                except Exception as error:  # noqa: BLE001 — rule 5: any exception is doubt
                    self.doubts += 1
                    log.warning("%s: doubt about [%d, %d): %r; asking the broker", self.id, start, stop, error)
                    self._discard()
                else:
                    self.position = stop
                    return
            raise SinkError(f"{self.id}: {ATTEMPTS} transactions in a row ended in doubt; see the log above")

    def _transact(self, records: list[Record], stop: int) -> None:
        """One transaction, in the order of rule 3, each call under a deadline (rule 6)."""
        producer = self._producer
        assert producer is not None
        with deadline(CALL_SECONDS, f"{self.id}: begin"):
            producer.begin_transaction()
            began = self._identity(producer)
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
            # the client fails the records behind it with the same error; the largest is surely too large
            raise RecordTooLargeError(max(too_large, key=lambda index: len(records[index].value or b"")))
        if unsent is not None:
            raise unsent
        offsets = {topic_partition(self.partition): OffsetAndMetadata(stop, f"{self.note} {self._me}", -1)}
        with deadline(CALL_SECONDS, f"{self.id}: send offsets"):
            producer.send_offsets_to_transaction(offsets, self._metadata())  # rule 1: never the bare group name
        self._same(producer, began, "sending offsets")
        with deadline(CALL_SECONDS, f"{self.id}: commit"):
            producer.commit_transaction()
        self._same(producer, began, "the commit")

    def _reopen(self) -> None:
        """Rule 5 and 9: a new producer of the same id, init_transactions, and only then the committed offset.

        Again and again when another takes the id meanwhile, for a while.
        """
        self._discard()
        for _ in range(ATTEMPTS):
            try:
                return self._open_once()
            except SinkError as error:
                if not isinstance(error.__cause__, errors.ProducerFencedError):
                    raise
                fenced = error
        raise fenced

    def _open_once(self) -> None:
        arguments = self.cluster.properties(
            KafkaProducer.DEFAULT_CONFIG,
            **TIMEOUTS,
            transactional_id=self.id,
            compression_type=self._compression,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        with self.cluster.explained("start a transactional producer", SinkError):
            with deadline(OPEN_SECONDS, f"{self.id}: connect"):
                producer = KafkaProducer(**arguments)
            try:
                with deadline(OPEN_SECONDS, f"{self.id}: init_transactions"):
                    producer.init_transactions()
                with deadline(OPEN_SECONDS, f"{self.id}: read the committed offset"):
                    committed = self._committed()
            except BaseException:
                _shut(producer)
                raise
        note, _, self._last_writer = (committed[1] if committed else "").partition(" ")
        if note and note != self.note:
            _shut(producer)
            raise LedgerError(another_job(str(self.partition), note, self.note))
        self.position = None if committed is None else committed[0]
        self._producer = producer

    def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _shut(producer)

    @staticmethod
    def _identity(producer: Any) -> tuple[int, int]:
        """Producer id and epoch: the client changes them by itself when it has lost track of its sequence."""
        identity = producer._transaction_manager.producer_id_and_epoch  # noqa: SLF001
        return identity.producer_id, identity.epoch

    def _same(self, producer: Any, began: tuple[int, int], after: str) -> None:
        """Rule 4: another id or epoch means that the commit may have covered nothing."""
        if self._identity(producer) != began:
            raise DoubtError(f"the producer id changed during {after}: {began} -> {self._identity(producer)}")


def another_job(where: str, theirs: str, ours: str) -> str:
    """What to tell when the note beside a committed offset is not ours."""
    return (
        f"the group's position in {where} belongs to another job: its fingerprint is {theirs}, this one is {ours}. "
        "Give the job another name, or --overwrite to forget its positions and begin again"
    )


def _shut(producer: Any) -> None:
    """Closes without waiting and without aborting; the client's own close may raise and leave its thread running."""
    with deadline(CALL_SECONDS, "close a producer"):
        with contextlib.suppress(Exception):
            producer.close(timeout=0)
        producer._sender.force_close()  # noqa: SLF001
