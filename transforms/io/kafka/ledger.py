"""How far each split has come: a compacted topic beside the output, called `<topic>-ledger`.

The key of a record is a job and a split, exactly. Its value is the end of the split's chain, with the job's fingerprint
and the writer. A record without a value forgets the split. Each record is written in the transaction of the labels that
it covers, by the producer of their chain. Kafka keeps the newest record of a key for ever. It does not keep the offsets
of a consumer group without members: they expire after `offsets.retention.minutes`.

Output that is older than the ledger has only such offsets. They are copied under keys of their own, because a writer
may append to the ledger at the same time: what the writer says counts.

All splits share one partition, so a reader at `read_committed` sees nothing that follows an open transaction, even of
another split. `Ledger.end` waits for that transaction only if a record of its own split stands behind.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any, NamedTuple

from kafka import errors
from kafka.admin import ConfigResource

from tagstream.schemas.errors import LedgerError, SinkError
from tagstream.transforms.io.kafka.client.cluster import Cluster, Partition, topic_partition
from tagstream.transforms.io.kafka.client.contracts import Record
from tagstream.transforms.io.kafka.client.python_private import id_of_topic, refresh_topics
from tagstream.transforms.io.kafka.group_offsets import admin_of
from tagstream.transforms.runtime.watchdog import deadline

STANDSTILL_SECONDS = 20.0
"""A read of the ledger that brings nothing for this long ends with an error."""
UNDECIDED_SECONDS = 85.0
"""How long `end` waits for open transactions: brokers abort those of a dead producer earlier."""
COPIED = "offset"
SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": str(4 << 20),  # the newest segment is never compacted, and each start reads the whole of it
    "delete.retention.ms": str(3_600_000),  # compaction keeps the ends of transactions for this long
}
"""Of a ledger topic that a job creates. A job only insists on the first of them."""


class Entry(NamedTuple):
    """The end of a chain, the fingerprint of the job that made it, and the writer; without writer: a copied offset."""

    stop: int
    fingerprint: str
    writer: str

    @property
    def note(self) -> str:
        """As `Chain` writes it beside a committed offset."""
        return f"{self.fingerprint} {self.writer}"


class Ledger:
    """What the ledger of an output topic holds for one job. Thread-safe. Each process reads it once, and then on."""

    def __init__(self, cluster: Cluster, output: str, job: str) -> None:
        self.cluster, self.output, self.job = cluster, output, job
        self.topic = f"{output}-ledger"
        self._forget_all()

    def __getstate__(self) -> dict[str, Any]:
        return {"cluster": self.cluster, "output": self.output, "job": self.job, "topic": self.topic}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_all()

    def _forget_all(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._copied: dict[str, Entry] = {}
        self._next = 0
        self._id: object = None

    def prepare(self) -> None:
        """Create the topic, or check that it forgets nothing. Raises SinkError with what to do."""
        with (
            admin_of(self.cluster) as admin,
            self.cluster.explained(f"look at the settings of {self.topic}", SinkError),
        ):
            (found,) = admin.describe_topics([self.topic])
            if not found["partitions"]:
                self._create(admin)
                (found,) = admin.describe_topics([self.topic])
            if (count := len(found["partitions"])) != 1:
                raise SinkError(
                    f"the ledger topic {self.topic!r} has {count} partitions and must have one; delete it, if no job "
                    "has written to it yet, and the job creates it again"
                )
            resource = ConfigResource("topic", self.topic)
            settings = admin.describe_configs([resource], config_filter="all").get("topic", {}).get(self.topic, {})
        if (policy := settings.get("cleanup.policy")) is None:  # the client raises nothing for a missing permission
            raise SinkError(
                f"can't look at the settings of the ledger topic {self.topic!r}: ask for an ACL, DescribeConfigs on "
                "this topic"
            )
        if policy["value"] != SETTINGS["cleanup.policy"]:
            raise SinkError(
                f"the ledger topic {self.topic!r} has cleanup.policy={policy['value']}: Kafka would delete positions, "
                f"and their rows would be labelled again. Set it: kafka-configs.sh --bootstrap-server "
                f"{self.cluster.servers} --alter --entity-type topics --entity-name {self.topic} --add-config "
                "cleanup.policy=compact"
            )

    def _create(self, admin: Any) -> None:
        (output,) = admin.describe_topics([self.output])
        copies = len(output["partitions"][0]["replica_nodes"])
        topic = {"num_partitions": 1, "replication_factor": copies, "configs": SETTINGS}
        try:
            admin.create_topics({self.topic: topic}, wait_for_metadata=True)
        except errors.TopicAlreadyExistsError:
            pass  # another process was first
        except errors.BrokerResponseError as error:
            if error.retriable:
                raise
            raise SinkError(
                f"can't create the ledger topic {self.topic!r}, which holds the job's positions "
                f"({type(error).__name__}). Allow the job to create it, or create it: kafka-topics.sh "
                f"--bootstrap-server {self.cluster.servers} --create "
                f"--topic {self.topic} --partitions 1 --replication-factor {copies} --config cleanup.policy=compact"
            ) from error

    def record(self, split: str, stop: int, note: str) -> Record:
        """The record that says: the chain of `split` ends at `stop`. `note`: see `Entry.note`."""
        fingerprint, _, writer = note.partition(" ")
        value = json.dumps({"fingerprint": fingerprint, "stop": stop, "writer": writer})
        return Record(self.topic, 0, self._key(split), value.encode(), [], None)

    def copied(self, split: str, stop: int, fingerprint: str) -> Record:
        """The record of an offset that the split's group holds, for a split that the ledger does not know."""
        return self.record(split, stop, fingerprint)._replace(key=self._key(split, COPIED))

    def forgotten(self, split: str) -> list[Record]:
        """The records that take the split out of the ledger."""
        return [Record(self.topic, 0, self._key(split, *kind), None, [], None) for kind in ((), (COPIED,))]

    def entries(self) -> dict[str, Entry]:
        """By split: all that is committed, up to the first open transaction. Empty if the topic does not exist yet."""
        with self._lock:
            self._read_on()
            return self._copied | self._entries

    def known(self, split: str) -> Entry | None:
        """The split's entry as this process has last read it. Asks no broker."""
        with self._lock:
            return self._entries.get(split) or self._copied.get(split)

    def end(self, split: str) -> Entry | None:
        """The split's entry, once no record of the split is undecided. Called when its earlier writers are fenced.

        Raises SinkError if an open transaction of another split hides a record for too long.
        """
        until, key = time.monotonic() + UNDECIDED_SECONDS, self._key(split)
        while True:
            with self._lock:
                if self._id is None:
                    self._read_on()
                written, _, topic_id = self._records("read_uncommitted", self._next)
                known = topic_id == self._id
                if written or not known:
                    self._read_on()
                if known and all(record.key != key or record.offset < self._next for record in written):
                    return self._entries.get(split) or self._copied.get(split)
            if time.monotonic() > until:
                failed = SinkError(f"{self.topic}: a transaction has been open for {UNDECIDED_SECONDS:g} s")
                failed.transient = True
                raise failed
            time.sleep(0.2)

    def _key(self, *split: str) -> bytes:
        return json.dumps([self.job, *split]).encode()

    def _read_on(self) -> None:
        records, end, topic_id = self._records("read_committed", self._next)
        if topic_id != self._id:  # the first read, or the topic was deleted and made anew
            if self._id is not None:
                records, end, topic_id = self._records("read_committed", 0)
            self._entries, self._copied, self._id = {}, {}, topic_id
        self._next = end
        for record in records:
            try:
                job, split, *kind = json.loads(record.key)
                entry = None if record.value is None else Entry(**json.loads(record.value))
            except (TypeError, ValueError) as error:
                raise LedgerError(
                    f"the ledger topic {self.topic!r} holds something else at offset {record.offset:,} ({error}): only "
                    "jobs may write to it"
                ) from error
            if job != self.job:
                continue
            into = self._copied if kind == [COPIED] else self._entries
            if entry is None:
                into.pop(split, None)
            else:
                into[split] = entry

    def _records(self, isolation: str, start: int) -> tuple[list[Any], int, object]:
        """The records from `start` to the end that this isolation level sees, that end, and the topic's id."""
        found: list[Any] = []
        with (
            self.cluster.explained(f"read the ledger topic {self.topic}", SinkError),
            contextlib.closing(self.cluster.consumer(isolation_level=isolation)) as consumer,
        ):
            with deadline(60, f"look up the end of {self.topic}"):
                try:  # not at once: a commit is confirmed shortly before `read_committed` shows its records
                    refresh_topics(consumer, (self.topic,), 10_000)
                except errors.UnknownTopicOrPartitionError:
                    return [], 0, None
                topic_id = id_of_topic(consumer, self.topic)
                name = topic_partition(Partition(self.topic, 0))
                at = max(start, consumer.beginning_offsets([name], timeout_ms=20_000)[name])
                end = consumer.end_offsets([name], timeout_ms=20_000)[name]
            consumer.assign([name])
            consumer.seek(name, at)
            moved = time.monotonic()
            while at < end:
                with deadline(60, f"poll {self.topic}"):
                    found += consumer.poll(timeout_ms=1000).get(name, [])
                    before, at = at, consumer.position(name, timeout_ms=10_000)
                if at > before:
                    moved = time.monotonic()
                elif time.monotonic() - moved > STANDSTILL_SECONDS:
                    raise errors.KafkaTimeoutError(f"{end - at:,} positions are left to read")
        return found, max(at, end), topic_id
