"""The Kafka client, second part: a member of a consumer group.

A `Member` polls in a thread of its own into queues (`kafka_queue`) bounded in bytes: a slow model pauses partitions and
never costs the membership. Positions come from its `Owner` alone, never from the client. It must not know what records
mean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from kafka import errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from schemas.errors import SourceError, TagstreamError
from transforms.io.kafka_client import DECIDED_MS, Cluster, Partition, explain, offsets, to_records, topic_partition
from transforms.io.kafka_queue import Polled, SpanQueues
from transforms.watchdog import deadline

log = logging.getLogger(__name__)

POLL_MS = 100
POLL_AGAIN_SECONDS = 0.01
"""Between polls while nobody takes what is there: a poll costs as much with one record as with hundreds. At 300/s with
the spam model on 2 busy cores 20 ms makes a label 6 ms later, 5 ms no earlier."""
LOOK_AFTER_SECONDS = 2.0
"""From a rebalance until the group's members are looked at."""


class Owner(Protocol):
    """Whoever keeps the chains. Both methods run in a thread of their own while the rebalance waits for them."""

    def assigned(self, member: Member, partitions: list[Partition]) -> dict[Partition, int]:
        """Takes the partitions' chains over (rule 9) and says where each is to be read from."""

    def revoked(self, member: Member, partitions: list[Partition]) -> None:
        """Lets go of the chains, without aborting anything; also called when the membership was lost."""


class Member:
    """One member of the group. `take` and `settle` belong to one processing thread, the rest to any."""

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
    ) -> None:
        """`patience`: seconds a rebalance waits for work in flight on partitions that go away."""
        self.cluster, self.group, self.topics, self.owner = cluster, group, topics, owner
        self._client_id = str(cluster.client.get("client_id", f"tagstream-{group}"))
        self.strangers: list[str] = []
        """Consumers in the group that are not of this job, with their hosts: what they are given gets no label."""
        self._queue_bytes, self._poll_rows, self._patience = queue_bytes, poll_rows, patience
        self._consumer = cluster.consumer(
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
        self._consumer.subscribe(list(topics), listener=_Listener(self))
        try:  # with the metadata known before the first join, the group does not have to join twice
            self.there_at_first = frozenset(cluster.require(self._consumer, topics))
            """Partitions that were there when this member began; what came later is read from its beginning."""
        except BaseException:
            self._consumer.close(timeout_ms=1000)
            raise
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
        """Records of the partition that has waited longest, as many as are there within `rows` and `size` bytes.

        `without`: partitions to leave alone. None after `timeout` seconds without any. Raises what ended the polling
        thread: SourceError, mostly.
        """
        return self._queues.take(timeout, rows, size, without, lambda: self._error)

    def settle(self, partition: Partition, position: int) -> None:
        """Everything below `position` is committed, or dropped because it was not ours."""
        self._queues.settle(partition, position)

    def abandon(self, partition: Partition) -> None:
        """What was taken of this partition will not be committed here: a rebalance need not wait for it."""
        self.settle(partition, self._queues.taken.get(partition, 0))

    def wake(self) -> None:
        """Ends a `take` that waits: something else is to be done."""
        self._queues.wake()

    def report(self, positions: dict[Partition, int]) -> None:
        """Commits offsets for lag tools only, some time soon: positions come from elsewhere."""
        with self._ready:
            self._reports.update({p: at for p, at in positions.items() if self._reported.get(p) != at})

    def rewind(self, partition: Partition, position: int) -> None:
        """Goes on from `position` after a chain has moved; what was polled meanwhile is thrown away."""
        with self._ready:
            self._queues.drop(partition)
            self._rewinds[partition] = position
            self._queues.taken.pop(partition, None)

    def finish(self, partition: Partition) -> None:
        """No further record of this partition is wanted: bounded replay has reached its end."""
        with self._ready:
            self._finished.add(partition)
            self._queues.drop(partition)

    def close(self, seconds: float = 5.0) -> None:
        """Leaves the group; what was taken and not settled is read again by the next owner."""
        self._closing.set()
        with self._ready:  # a rebalance may wait for work in flight, which nobody will settle any more
            self._ready.notify_all()
        self._thread.join(seconds)

    # ---- for anyone

    @property
    def assignment(self) -> list[Partition]:
        """The partitions that are ours and ready to be read."""
        return self._queues.partitions

    @property
    def leaving(self) -> set[Partition]:
        """Partitions that a rebalance takes away as soon as what is in flight is settled."""
        return set(self._leaving)

    def owns(self, partition: Partition) -> bool:
        """Whether the group still gives us this partition, as far as we know."""
        return partition in self._queues or partition in self._leaving or partition in self._arriving

    def tenure(self, partition: Partition) -> int:
        """Another number each time that the partition has gone away: who owned it before does not own it again."""
        return self._tenures[partition]

    def in_flight(self, partition: Partition) -> bool:
        """Whether something was taken of this partition and is not settled."""
        return self._queues.in_flight([partition])

    def metadata(self) -> ConsumerGroupMetadata:
        """Generation and member id for `send_offsets_to_transaction`.

        Raises CommitFailedError without a generation, as after a lost membership: brokers don't check such a commit.
        """
        metadata = self._consumer.group_metadata()
        if metadata.generation_id < 0 or not metadata.member_id:
            raise errors.CommitFailedError(f"group {self.group}: no member at the moment")
        return metadata

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """The group's committed offset and its note; waits while a transaction on it is undecided."""
        found = self._consumer.committed(topic_partition(partition), metadata=True, timeout_ms=DECIDED_MS)
        return None if found is None else (found.offset, found.metadata)

    def settle_starts(self, starts: dict[Partition, int]) -> None:
        """Commits where partitions begin that nobody has read yet; not by the chains, see `Owner`."""
        if starts:
            positions = {topic_partition(p): OffsetAndMetadata(at, "", -1) for p, at in starts.items()}
            self._consumer.commit(positions, timeout_ms=30_000)

    def offsets(self, partitions: list[Partition], at: str | int) -> dict[Partition, int]:
        """Offsets at `earliest`, at `latest` (end of what is committed) or at a time in ms since the epoch."""
        return offsets(self._consumer, partitions, at)

    def lag(self) -> dict[Partition, int]:
        """Messages not yet handed out, for each partition of ours whose end is known; markers count as messages."""
        found = {}
        for partition in self.assignment:
            end = self._consumer.highwater(topic_partition(partition)) if self._assigned(partition) else None
            if end is not None:
                found[partition] = max(
                    0, end - self._queues.taken.get(partition, self._queues.next.get(partition, end))
                )
        return found

    def silence(self) -> float:
        """Seconds since the broker last answered a heartbeat; 0 before the first."""
        metrics = self._consumer.metrics() or {}
        value = metrics.get("consumer-coordinator-metrics", {}).get("last-heartbeat-seconds-ago", 0.0)
        return float(value) if value == value and value < 1e6 else 0.0  # noqa: PLR0124 — NaN

    # ---- the polling thread

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._steer()
                self._finish_joining()
                try:
                    with deadline(self._patience + 120, f"poll of group {self.group}"):
                        polled = self._consumer.poll(timeout_ms=POLL_MS, max_records=self._poll_rows)
                except errors.RetriableError as error:
                    log.warning("group %s: %r; trying again", self.group, error)
                    self._closing.wait(0.2)
                    continue
                self._store(polled)
                with self._ready:  # taken at once when the stage is idle: then the next poll does not wait
                    self._ready.wait_for(lambda: self._closing.is_set() or not self._queues.nbytes, POLL_AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001 — handed to the processing thread
            self._error = self._translated(error)
        finally:
            with self._ready:
                self._ready.notify_all()
            self._leave()

    def _translated(self, error: BaseException) -> BaseException:
        while type(error) is errors.KafkaError and error.__cause__ is not None:
            error = error.__cause__  # what the owner raised in a rebalance
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
                self._consumer.close(timeout_ms=3000)
        except Exception:
            log.exception("leaving group %s", self.group)

    def _steer(self) -> None:
        """Obeys rewinds, and pauses or resumes by the queue's size."""
        with self._ready:
            rewinds, self._rewinds = self._rewinds, {}
            full = self._queues.nbytes > (self._queue_bytes // 2 if self._paused else self._queue_bytes)
            finished = [p for p in self._finished if p in self._queues]
        for partition, position in rewinds.items():
            if self._assigned(partition) and partition in self._queues:
                self._consumer.seek(topic_partition(partition), position)
                with self._ready:
                    self._queues.drop(partition)
                    self._queues.next[partition] = position
        with self._ready:
            reports, self._reports = self._reports, {}
        if told := {p: at for p, at in reports.items() if self._assigned(p)}:
            self._consumer.commit_async({topic_partition(p): OffsetAndMetadata(at, "", -1) for p, at in told.items()})
            self._reported.update(told)
        mine = [topic_partition(p) for p in self.assignment if self._assigned(p)]
        if full and mine:
            self._consumer.pause(*mine)
        elif self._paused and mine:
            self._consumer.resume(*mine)
        self._paused = full
        if done := [topic_partition(p) for p in finished if self._assigned(p)]:
            self._consumer.pause(*done)

    def _finish_joining(self) -> None:
        """Makes the next poll go on with a join that the last one began.

        A leader that joins because partitions were added notes them as assigned before the group has answered; when a
        poll ends in between, kafka-python 3.0.12 takes the join for done, and the member has no partitions for ever.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001
        if coordinator.rejoining:
            coordinator.request_rejoin()

    def _store(self, polled: dict[Any, list[Any]]) -> None:
        """Queues what a poll brought, and notes positions that moved over markers alone."""
        with self._ready:
            for partition in self._queues.partitions:
                records = polled.get(topic_partition(partition))
                at = self._position(partition)
                start = self._queues.next.get(partition)
                if at is None or start is None or partition in self._rewinds or partition in self._finished:
                    continue
                if records or at > start:
                    self._queues.store(Polled(partition, start, at, to_records(partition, records or [])))
            self._ready.notify_all()

    def _position(self, partition: Partition) -> int | None:
        state = self._consumer._subscription.assignment.get(topic_partition(partition))  # noqa: SLF001 — `position()` may block
        return None if state is None or state.position is None else int(state.position.offset)

    def _assigned(self, partition: Partition) -> bool:
        return topic_partition(partition) in self._consumer.assignment()

    # ---- rebalances, in a thread of their own

    def _gain(self, partitions: list[Partition]) -> None:
        self._arriving = set(partitions)
        starts = self.owner.assigned(self, partitions)
        for partition in partitions:
            self._consumer.seek(topic_partition(partition), starts[partition])
            self._queues.open(partition, starts[partition])
        self._arriving = set()
        threading.Thread(target=self._look_around, name=f"members of {self.group}", daemon=True).start()
        log.info(
            "group %s: reading %s", self.group, ", ".join(f"{p} from {at}" for p, at in starts.items()) or "nothing"
        )

    def _look_around(self) -> None:
        """Finds strangers. Members of one job have one client id."""
        if self._closing.wait(LOOK_AFTER_SECONDS):
            return
        try:
            members = self.cluster.members(self.group)
        except Exception as error:  # noqa: BLE001 — a courtesy, for which there may be no permission
            log.info("group %s: can't see its members: %r", self.group, error)
            return
        self.strangers = sorted(f"{client} on {host}" for client, host in members if client != self._client_id)
        if self.strangers:
            log.warning("group %s: also in it: %s", self.group, ", ".join(self.strangers))

    def _let_go(self, partitions: list[Partition], patience: float) -> None:
        """Finishes what is in flight, then lets go; what is only queued will be read by the next owner."""
        with self._ready:
            for partition in partitions:
                self._queues.close(partition)
                self._rewinds.pop(partition, None)
            self._leaving.update(partitions)
            self._ready.wait_for(lambda: self._closing.is_set() or not self._queues.in_flight(partitions), patience)
            self._leaving.difference_update(partitions)
            self._tenures.update(partitions)
        self.owner.revoked(self, partitions)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Runs the member's part of a rebalance beside the client's event loop, which goes on sending heartbeats."""

    def __init__(self, member: Member) -> None:
        self.member = member

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._beside(self.member._gain, assigned)  # noqa: SLF001

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._beside(self.member._let_go, revoked, self.member._patience)  # noqa: SLF001

    async def on_partitions_lost(self, lost: Any) -> None:
        await self._beside(self.member._let_go, lost, 0.0)  # noqa: SLF001

    async def _beside(self, work: Any, partitions: Any, *arguments: Any) -> None:
        names = sorted(Partition(p.topic, p.partition) for p in partitions)
        with ThreadPoolExecutor(1, thread_name_prefix="rebalance") as pool:
            future = pool.submit(work, names, *arguments)
            while not future.done():
                await self.member._consumer._net.sleep(0.005)  # noqa: SLF001
        future.result()
