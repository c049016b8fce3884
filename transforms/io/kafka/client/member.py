"""A member of a consumer group.

Owns the polling thread, which fills queues (`queue`) bounded in bytes: a slow model pauses partitions and never costs
the membership. Must not know what records mean, nor where a partition begins: positions come from its `Owner` alone,
never from the client.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Container
from typing import Protocol

import pyarrow as pa
from kafka import KafkaConsumer, errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.errors import SourceError, TagstreamError
from tagstream.transforms.io.kafka.client.cluster import RECORDS, Cluster, Partition, explain
from tagstream.transforms.io.kafka.client.contracts import Arrived
from tagstream.transforms.io.kafka.client.factory import make_group_consumer
from tagstream.transforms.io.kafka.client.queue import Polled, SpanQueues
from tagstream.transforms.runtime.watchdog import deadline

log = logging.getLogger(__name__)

POLL_MS = 100
NOTHING = pa.RecordBatch.from_pylist([], RECORDS)
POLL_AGAIN_SECONDS = 0.01
"""Wait between polls while records are queued: a poll costs as much for one record as for hundreds. At 300 messages/s
with the spam model on 2 busy cores, a wait of 20 ms makes labels 6 ms later, and one of 5 ms makes them no earlier."""
LOOK_AFTER_SECONDS = 2.0
"""Time from a rebalance until the member looks for strangers in the group."""


class Owner(Protocol):
    """Keeps the chains of a member's partitions. Rebalances wait for both methods, which the client's thread calls."""

    def assigned(self, member: Member, partitions: list[Partition]) -> dict[Partition, int]:
        """Takes the partitions' chains over (rule 9) and returns where to read each from."""

    def revoked(self, member: Member, partitions: list[Partition]) -> None:
        """Lets go of the chains and aborts nothing. Also called when the membership was lost."""


class Member:
    """One member of the group. One processing thread calls `take` and `settle`; any thread may call the rest."""

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: tuple[str, ...],
        owner: Owner,
        *,
        queue_bytes: int = 32 << 20,
        poll_rows: int = 2048,
        instance_id: str | None = None,
        patience: float = 240.0,
        library: str = "kafka-python",
    ) -> None:
        """`patience`: seconds that a rebalance waits for work in flight on partitions that go away. `library`: see
        `make_group_consumer`.
        """
        self.cluster, self.group, self.topics, self.owner = cluster, group, topics, owner
        self._client_id = str(cluster.client.get("client_id", f"tagstream-{group}"))
        self.strangers: list[str] = []
        """Consumers in the group that are not of this job, with their hosts. Messages given to them get no label."""
        self._queue_bytes, self._poll_rows, self._patience = queue_bytes, poll_rows, patience
        self._consumer = make_group_consumer(
            library,
            cluster,
            topics,
            self,
            group_id=group,
            client_id=self._client_id,
            group_instance_id=instance_id,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1500,
            max_poll_interval_ms=int((patience + 60) * 1000),
            fetch_max_wait_ms=POLL_MS,
            retry_backoff_ms=50,
            max_poll_records=poll_rows,
        )
        self.there_at_first = frozenset(self._consumer.partitions)
        """Partitions that existed when this member began. Later ones are read from their beginning."""
        self._queues = SpanQueues()
        self._ready = self._queues.ready
        self._rewinds: dict[Partition, int] = {}
        self._reports: dict[Partition, int] = {}
        self._reported: dict[Partition, int] = {}
        self._leaving: set[Partition] = set()
        self._arriving: set[Partition] = set()
        self._finished: set[Partition] = set()
        self._tenures: Counter[Partition] = Counter()
        self._paused = False
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self.joined = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"poll {group}", daemon=True)
        self._thread.start()

    # ---- for the processing thread

    def take(
        self, timeout: float, rows: int = 2048, size: int = 8 << 20, without: Container[Partition] = ()
    ) -> Polled | None:
        """Queued records of the partition that has waited longest, up to `rows` and `size` bytes.

        `without`: partitions to leave alone. Returns None after `timeout` seconds without records. Raises the exception
        that ended the polling thread, mostly SourceError.
        """
        return self._queues.take(timeout, rows, size, without, lambda: self._error)

    def settle(self, partition: Partition, position: int) -> None:
        """Everything below `position` is committed, or was dropped because another member owns it."""
        self._queues.settle(partition, position)

    def abandon(self, partition: Partition) -> None:
        """The records taken of this partition will not be committed here, so no rebalance need wait for them."""
        self.settle(partition, self._queues.taken.get(partition, 0))

    def wake(self) -> None:
        """Ends a waiting `take`, so that its thread can do something else."""
        self._queues.wake()

    def report(self, positions: dict[Partition, int]) -> None:
        """Commits offsets some time soon, for tools that show lag. The job's own positions come from its chains."""
        with self._ready:
            self._reports.update({p: at for p, at in positions.items() if self._reported.get(p) != at})

    def rewind(self, partition: Partition, position: int) -> None:
        """Reads on from `position` after a chain has moved. Records polled meanwhile are thrown away."""
        with self._ready:
            self._queues.drop(partition)
            self._rewinds[partition] = position
            self._queues.taken.pop(partition, None)

    def finish(self, partition: Partition) -> None:
        """Reads no further in this partition: a bounded replay has reached its end."""
        with self._ready:
            self._finished.add(partition)
            self._queues.drop(partition)

    def close(self, seconds: float = 5.0) -> None:
        """Leaves the group. The next owner reads again what was taken and not settled."""
        self._closing.set()
        with self._ready:  # a rebalance may wait for work in flight that nobody will settle any more
            self._ready.notify_all()
        self._thread.join(seconds)

    # ---- for anyone

    @property
    def assignment(self) -> list[Partition]:
        """The partitions of this member that are ready to be read."""
        return self._queues.partitions

    @property
    def leaving(self) -> set[Partition]:
        """Partitions that a rebalance takes away as soon as their records in flight are settled."""
        return set(self._leaving)

    def owns(self, partition: Partition) -> bool:
        """Whether the group still gives us this partition, as far as this process knows."""
        return partition in self._queues or partition in self._leaving or partition in self._arriving

    def tenure(self, partition: Partition) -> int:
        """A number that changes each time the partition goes away: an owner with an earlier number has lost it."""
        return self._tenures[partition]

    def in_flight(self, partition: Partition) -> bool:
        """Whether records of this partition are taken and not settled."""
        return self._queues.in_flight([partition])

    def metadata(self) -> ConsumerGroupMetadata:
        """Generation and member id for `send_offsets_to_transaction`.

        Raises CommitFailedError when there is no generation, as after a lost membership: brokers would not check the
        commit.
        """
        metadata = self._consumer.metadata()
        if metadata.generation_id < 0 or not metadata.member_id:
            raise errors.CommitFailedError(f"group {self.group}: no member at the moment")
        return metadata

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """The group's committed offset and its note. Waits while a transaction on it is undecided."""
        return self._consumer.committed(partition)

    def settle_starts(self, starts: dict[Partition, int]) -> None:
        """Commits the starts of partitions that nobody has read yet, outside of any transaction."""
        if starts:
            self._consumer.commit(starts)

    def lookup(self) -> KafkaConsumer:
        """A consumer that knows the topics' metadata. Raises SourceError."""
        return self._consumer.lookup()

    def lag(self) -> dict[Partition, int]:
        """Messages not yet handed out, for each partition of ours whose end is known. Markers count as messages."""
        found = {}
        for partition in self.assignment:
            if (end := self._consumer.end(partition)) is not None:
                found[partition] = max(
                    0, end - self._queues.taken.get(partition, self._queues.next.get(partition, end))
                )
        return found

    def silence(self) -> float:
        """Seconds since the broker last answered a heartbeat; 0 before the first."""
        return self._consumer.silence()

    # ---- the polling thread

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    with deadline(self._patience + 120, f"poll of group {self.group}"):
                        self._steer()
                        polled = self._consumer.poll(POLL_MS / 1000, self._poll_rows)
                except errors.RetriableError as error:
                    log.warning("group %s: %r; trying again", self.group, error)
                    self._closing.wait(0.2)
                    continue
                self._store(polled)
                with self._ready:  # an idle stage takes the records at once, and then the next poll does not wait
                    self._ready.wait_for(lambda: self._closing.is_set() or not self._queues.nbytes, POLL_AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001 — handed to the processing thread
            self._error = self._translated(error)
        finally:
            with self._ready:
                self._ready.notify_all()
            self._leave()

    def _translated(self, error: BaseException) -> BaseException:
        while type(error) is errors.KafkaError and error.__cause__ is not None:
            error = error.__cause__  # the exception that the owner raised in a rebalance
        cause = error
        if isinstance(cause, TagstreamError) or not isinstance(cause, errors.KafkaError):
            return cause
        if isinstance(cause, errors.OffsetOutOfRangeError):
            return SourceError(
                f"group {self.group}: {self.cluster.servers} deleted messages before they were read ({cause}); "
                "raise the topic's retention, or reset the group's offsets to go on without them"
            )
        failed = SourceError(explain(cause, self.cluster.servers, f"read {', '.join(self.topics)}"))
        failed.transient = isinstance(cause, errors.RetriableError)
        return failed

    def _leave(self) -> None:
        try:
            with deadline(30, f"leave group {self.group}"):
                self._consumer.close()
        except Exception:
            log.exception("leaving group %s", self.group)

    def _steer(self) -> None:
        """Carries out rewinds and reports, and pauses or resumes partitions by the queues' size."""
        mine = self._consumer.owned()
        with self._ready:
            rewinds = dict(self._rewinds)
            reports, self._reports = self._reports, {}
            full = self._queues.nbytes > (self._queue_bytes // 2 if self._paused else self._queue_bytes)
            finished = [p for p in self._finished if p in self._queues]
        for partition, position in rewinds.items():
            if here := partition in mine and partition in self._queues:
                try:
                    self._consumer.seek(partition, position)
                except errors.RetriableError as error:
                    log.info("group %s: %r; trying again", self.group, error)
                    continue  # records polled meanwhile are dropped
            with self._ready:
                if here:
                    self._queues.drop(partition)
                    self._queues.next[partition] = position
                if self._rewinds.get(partition) == position:
                    del self._rewinds[partition]
        if told := {p: at for p, at in reports.items() if p in mine}:
            self._consumer.commit_soon(told)
            self._reported.update(told)
        ready = [p for p in self.assignment if p in mine]
        if full and ready:
            self._consumer.pause(ready)
        elif self._paused and ready:
            self._consumer.resume(ready)
        self._paused = full
        if done := [p for p in finished if p in mine]:
            self._consumer.pause(done)

    def _store(self, polled: dict[Partition, Arrived]) -> None:
        """Queues the records of a poll, and notes positions that moved over transaction markers alone."""
        with self._ready:
            for partition, (records, stop) in polled.items():
                start = self._queues.next.get(partition)
                unwanted = partition in self._rewinds or partition in self._finished
                if start is None or unwanted or partition not in self._queues:
                    continue
                if records is not None or stop > start:
                    self._queues.store(Polled(partition, start, stop, NOTHING if records is None else records))
            self._ready.notify_all()

    # ---- rebalances: within a poll, or in a thread of their own

    def gained(self, partitions: list[Partition]) -> dict[Partition, int]:
        """See `Rebalance`."""
        self._arriving = set(partitions)
        starts = self.owner.assigned(self, partitions)
        for partition in partitions:
            self._queues.open(partition, starts[partition])
        self._arriving = set()
        threading.Thread(target=self._look_around, name=f"members of {self.group}", daemon=True).start()
        log.info(
            "group %s: reading %s", self.group, ", ".join(f"{p} from {at}" for p, at in starts.items()) or "nothing"
        )
        return starts

    def _look_around(self) -> None:
        """Looks for strangers: the members of one job share a client id."""
        if self._closing.wait(LOOK_AFTER_SECONDS):
            return
        try:
            members = self.cluster.members(self.group)
        except Exception as error:  # noqa: BLE001 — the warning is optional, and permission may be missing
            log.info("group %s: can't see its members: %r", self.group, error)
            return
        self.strangers = sorted(f"{client} on {host}" for client, host in members if client != self._client_id)
        if self.strangers:
            log.warning("group %s: also in it: %s", self.group, ", ".join(self.strangers))

    def let_go(self, partitions: list[Partition], *, lost: bool) -> None:
        """Waits for the work in flight, then lets go. The next owner reads what is only queued."""
        with self._ready:
            for partition in partitions:
                self._queues.close(partition)
                self._rewinds.pop(partition, None)
            self._leaving.update(partitions)
            self._ready.wait_for(
                lambda: self._closing.is_set() or not self._queues.in_flight(partitions),
                0.0 if lost else self._patience,
            )
            self._leaving.difference_update(partitions)
            self._tenures.update(partitions)
        self.owner.revoked(self, partitions)
