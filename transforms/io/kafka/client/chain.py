"""One atomic append to the chain of one input partition.

Owns the transactions: when to begin one, what to do when its outcome is in doubt, and what the broker has told of each
chain's end. Must not know polling, nor what a record means. A `Chain` holds a transactional producer, whose id follows
from the job and the input partition. Its `commit` writes output records and the input position in one transaction, and
never reports success without proof.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kafka import errors
from kafka.structs import ConsumerGroupMetadata

from tagstream.schemas.errors import ChainMovedError, LedgerError, SinkError
from tagstream.transforms.io.kafka.client.cluster import DECIDED_MS, Cluster, Partition
from tagstream.transforms.io.kafka.client.contracts import DoubtError, Position, Record, RecordsRefusedError
from tagstream.transforms.io.kafka.client.factory import make_producer
from tagstream.transforms.runtime.retry import every, random_up_to, retrying
from tagstream.transforms.runtime.stop import Stop
from tagstream.transforms.runtime.watchdog import deadline

log = logging.getLogger(__name__)

NOT_OURS = (
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
    errors.FencedInstanceIdError,
)
HOPELESS = (errors.AuthorizationError, errors.InvalidTransactionTimeoutError, errors.UnsupportedVersionError)
AGAIN = (errors.ProducerFencedError, errors.RequestTimedOutError)
"""Errors of a producer's start that may be gone at the next attempt."""
ATTEMPTS = 8
DECIDED_SECONDS = DECIDED_MS / 1000 + 10
FORGETFUL_SECONDS = 45.0
ENDS: dict[tuple[str, str], int] = {}
"""By servers and transactional id: the furthest end of the chain that a broker has told this process."""


class PartitionLostError(Exception):
    """The group has given this partition to another member. Internal: the new owner processes the block."""


class Chain:
    """The chain of one input partition. Its end is in a ledger topic, as the offset of a group, or in both.

    `metadata` returns the group's current generation and the member id, by which the broker refuses a zombie of a
    subscribed consumer (rule 1); without it no offset is committed. `entry` makes the ledger's record of an end and its
    note. `committed` reads the end and its note. `owned` tells whether the group still gives us the partition. The note
    names the job and this object. One thread commits; another may call `open` and `close` during a rebalance.
    """

    def __init__(
        self,
        cluster: Cluster,
        transactional_id: str,
        partition: Partition,
        *,
        metadata: Callable[[], ConsumerGroupMetadata] | None = None,
        entry: Callable[[int, str], Record] | None = None,
        committed: Callable[[], tuple[int, str] | None],
        owned: Callable[[], bool] = lambda: True,
        library: str = "kafka-python",
        compression: str | None = None,
        note: str = "",
        adopts: bool = False,
        member: object = None,
        rivals: Callable[[], list[tuple[str, str]]] = list,
        stop: Stop | None = None,
    ) -> None:
        """`library`: see `make_producer`. `adopts`: go on from an offset that another program has committed. `member`:
        the chain's member of the group; chains of one member may share a transaction. `rivals`: client and host of
        each process that commits the same offset in transactions of other ids, which this chain's id does not fence.
        `open` raises SinkError if there is one. `stop`: the job's request to stop; a commit that waits for a
        broker gives up when its grace is over.
        """
        self.cluster, self.id, self.partition, self.note = cluster, transactional_id, partition, note
        self.position: int | None = None
        """The end of the chain; None when it has not begun."""
        self._me = uuid.uuid4().hex[:16]
        self._last_writer = ""
        self.doubts = 0
        self._adopts, self._rivals = adopts, rivals
        self.member = member
        self._stop = stop or Stop()
        self._metadata, self._entry, self._committed, self._owned = metadata, entry, committed, owned
        self._producer = make_producer(library, cluster, transactional_id, compression)
        self._started = False
        self._closed = False
        self._lock = threading.RLock()

    def open(self) -> int | None:
        """Takes the chain over and returns its end. A transaction that an earlier owner left open is aborted first.

        Raises SinkError when the cluster refuses, LedgerError when the group belongs to another job.
        """
        with self._lock:
            self._closed = False
            self._reopen()
            return self.position

    def close(self) -> None:
        """Lets go without aborting: the next owner aborts. A commit under way ends with PartitionLostError."""
        self._closed = True
        self._discard()

    def commit(self, records: Iterable[Record], start: int, stop: int) -> None:
        """Appends `records` and moves the chain's end from `start` to `stop`, both or neither, exactly once.

        Where the process may die, and what follows (the next owner runs `open`):

        1. before begin: nothing has happened; the span is read again.
        2. while records are sent: the transaction is open; `open` aborts it, and read_committed readers never see it.
        3. after the offsets, before the commit: as 2; the offsets vanish with the records.
        4. during the commit: the coordinator has decided or not; `open` waits for its decision, and the committed
           offset tells it.
        5. after the commit: the committed offset is `stop`; the span is not read again.

        A doubt in a living process is treated as a death: neither commit nor abort, make a new producer, ask for the
        committed offset (rule 5). Raises ChainMovedError when another owner has appended, PartitionLostError when
        another member owns the partition, RecordsRefusedError, and SinkError when no attempt can succeed.
        """
        records = list(records)
        with self._lock:
            # random waits: two that take the chain from each other again and again must not go on in step
            again = retrying(DoubtError, random_up_to(0.1, 6.4), attempts=ATTEMPTS, before_wait=self._may_go_on)
            try:
                again(self._commit_once, records, start, stop)
            except DoubtError:
                said = f"{self.id}: {ATTEMPTS} transactions in a row ended in doubt; see the log above"
                raise SinkError(said) from None

    def _commit_once(self, records: list[Record], start: int, stop: int) -> None:
        """Raises DoubtError when nobody can say whether the transaction took place."""
        if self._closed or not self._owned():
            raise PartitionLostError(str(self.partition))
        if not self._started:
            self._reopen()
        generation = self._generation()
        if self.position is not None and self.position != start:
            if self.position == stop and self._last_writer == self._me:
                return  # the doubtful transaction had taken place
            raise ChainMovedError(self.position)
        try:
            self._producer.transact([*records, *self._entries(stop)], [self._at(stop)], generation)
        except NOT_OURS as error:
            self._discard()
            raise PartitionLostError(f"{self.partition}: {error}") from error
        except RecordsRefusedError as error:
            self._discard()
            if max(error.indexes) >= len(records):
                raise SinkError(f"{self.id}: the ledger topic refuses a record ({error.reason})") from error
            raise
        except HOPELESS:
            self._discard()
            with self.cluster.explained("write", SinkError):
                raise
        except Exception as error:
            self.doubts += 1
            log.warning("%s: doubt about [%d, %d): %r; asking the broker", self.id, start, stop, error)
            self._discard()
            raise DoubtError from error  # rule 5: any exception is doubt
        self._stands_at(stop)

    def _may_go_on(self) -> None:
        if self._closed or not self._owned():
            raise PartitionLostError(str(self.partition))
        self._give_up_in_time()

    def _reopen(self) -> None:
        """Rules 5 and 9: a new producer of the same id, init_transactions, and only then the committed offset.

        Tries again when another producer has taken the id meanwhile, or a broker is slow.
        """
        self._discard()
        again = retrying(
            lambda error: isinstance(error, SinkError) and isinstance(error.__cause__, AGAIN),
            every(0),
            attempts=ATTEMPTS,
            before_wait=self._give_up_in_time,
        )
        again(self._open_once)

    def _open_once(self) -> None:
        with self.cluster.explained("start a transactional producer", SinkError):
            try:
                self._producer.start()
            except BaseException:
                self._producer.shut()
                raise
        try:
            self._alone()  # a member that joins later opens this chain too, and so fences this producer
            committed = self._read_end()
        except BaseException:
            self._producer.shut()
            raise
        said = (committed[1] or "").rstrip("\0") if committed else ""  # librdkafka may append a zero byte
        note, _, self._last_writer = said.partition(" ")
        if committed and note != self.note and (note or not self._adopts):
            self._producer.shut()
            raise LedgerError(another_job(str(self.partition), note, self.note))
        self._stands_at(None if committed is None else committed[0])
        self._started = True

    def _alone(self) -> None:
        """Raises SinkError if another process reads the partitions live: the transactional ids would not show that."""
        with self.cluster.explained("look for the group's members", SinkError):
            found = self._rivals()
        if found:
            client, host = found[0]
            raise SinkError(
                f"{self.partition}: the job runs live in another process ({client} at {host}): end it first (after a "
                "kill its session takes a while to end), or let it do this too"
            )

    def _read_end(self) -> tuple[int, str] | None:
        """The committed offset and its note; never an offset behind one that a broker has told this process before.

        Kafka 4.1.1 forgot acknowledged offsets of a group after kill -9 of a lone broker with a long offsets topic.
        The messages between would be labelled a second time. Waits for a better answer, then raises LedgerError.
        """
        known, until = ENDS.get((self.cluster.servers, self.id)), time.monotonic() + FORGETFUL_SECONDS
        while True:
            with (
                self.cluster.explained("read the committed offset", SinkError),
                deadline(DECIDED_SECONDS, f"{self.id}: read the committed offset"),
            ):
                committed = self._committed()
            if known is None or (committed is not None and committed[0] >= known):
                return committed
            if self._closed or not self._owned():
                raise PartitionLostError(str(self.partition))
            self._give_up_in_time()
            found = "none" if committed is None else f"{committed[0]:,}"
            if time.monotonic() > until:
                raise LedgerError(
                    f"{self.partition}: the broker has acknowledged position {known:,} to this process, and now says "
                    f"{found}: messages between would get a second label. If nobody has reset the group's offsets, "
                    "restart the group's coordinator (a broker), which then reads its log again, and start the job "
                    f"again once the group's offset is {known:,}"
                )
            log.warning("%s: the broker says %s, and had acknowledged %d; asking again", self.id, found, known)
            self._stop.wait(1.0)

    def _generation(self) -> ConsumerGroupMetadata | None:
        """The group's generation, if the chain has a group. Raises PartitionLostError.

        Asked for before the check that the partition is ours. A member that is given the partition after the check has
        a later generation, and the broker refuses ours.
        """
        try:
            generation = self._metadata() if self._metadata else None
        except NOT_OURS as error:
            raise PartitionLostError(f"{self.partition}: {error}") from error
        if self._closed or not self._owned():
            raise PartitionLostError(str(self.partition))
        return generation

    def _ready(self, start: int) -> bool:
        """Whether a transaction from `start` may begin, as far as this process knows."""
        ours = self._started and not self._closed and self._owned()
        known = ENDS.get((self.cluster.servers, self.id))
        return ours and self.position == known and (known is None or known == start)

    def _settle_doubt(self, chains: list[Chain]) -> None:
        """Called after a doubtful transaction for `chains`, before any of them goes on: nothing of it may arrive late.

        A chain that is not ours any more needs none of this: the broker takes no offset from its older generation.
        """
        if self._closed or not self._owned():
            return
        try:
            self._reopen()
        except PartitionLostError:
            for chain in chains:
                chain._closed = True  # noqa: SLF001

    def _give_up_in_time(self) -> None:
        """Raises PartitionLostError when the job is asked to stop and its grace is over. The next run goes on."""
        if self._stop.is_set() and not self._stop.seconds_left():
            raise PartitionLostError(str(self.partition))

    def _at(self, stop: int) -> Position:
        return Position(self.partition, stop, f"{self.note} {self._me}")

    def _entries(self, stop: int) -> list[Record]:
        return [self._entry(stop, f"{self.note} {self._me}")] if self._entry else []

    def _stands_at(self, position: int | None) -> None:
        self.position = position
        if position is not None:
            ENDS[self.cluster.servers, self.id] = position

    def _discard(self) -> None:
        self._started = False
        self._producer.shut()


class Append(NamedTuple):
    """The part of one chain in `commit_together`; see `Chain.commit`."""

    chain: Chain
    records: list[Record]
    start: int
    stop: int


def commit_together(appends: list[Append]) -> bool:
    """Appends to several chains of one member in one transaction of the first chain's producer.

    Returns whether the transaction has certainly taken place. If not, each chain must `commit` for itself, which asks
    the broker first. A transaction costs the same for one partition as for many.

    The process may die at the same points as in `Chain.commit`. The next owner of the first partition aborts the
    transaction. Until then the other partitions' committed offsets are undecided, and their next owners wait. All
    partitions of a dead member are taken over in one rebalance. The broker refuses a zombie by its generation
    (`Chain._generation`), since the other chains' transactional ids play no part.
    """
    carrier = appends[0].chain
    with contextlib.ExitStack() as locks:
        for append in sorted(appends, key=lambda append: append.chain.id):
            locks.enter_context(append.chain._lock)  # noqa: SLF001
        try:
            generation = carrier._generation()  # noqa: SLF001
        except PartitionLostError:
            return False
        if not all(append.chain._ready(append.start) for append in appends):  # noqa: SLF001
            return False
        records = [record for append in appends for record in append.records]
        records += [record for append in appends for record in append.chain._entries(append.stop)]  # noqa: SLF001
        positions = [append.chain._at(append.stop) for append in appends]  # noqa: SLF001
        try:
            carrier._producer.transact(records, positions, generation)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 — rule 5: any exception is doubt
            carrier.doubts += 1
            log.warning("%s: doubt about a transaction for %d partitions: %r", carrier.id, len(appends), error)
            for append in appends:
                append.chain._discard()  # noqa: SLF001
            carrier._settle_doubt([append.chain for append in appends])  # noqa: SLF001
            return False
        for append in appends:
            append.chain._stands_at(append.stop)  # noqa: SLF001
        return True


def forget_ends(cluster: Cluster, ids: str) -> None:
    """Forgets the chains whose transactional ids begin with `ids`: their positions are about to be deleted."""
    for key in [key for key in ENDS if key[0] == cluster.servers and key[1].startswith(ids)]:
        del ENDS[key]


def another_job(where: str, theirs: str, ours: str) -> str:
    """The message for a committed offset whose note is not ours."""
    if not theirs:
        return (
            f"the group's position in {where} was committed by another program: messages before it may have no label. "
            "Give the job a group of its own (source.group); or go on from there, with --set source.start=committed"
        )
    return (
        f"the group's position in {where} belongs to another job: its fingerprint is {theirs}, this one is {ours}. "
        "Give the job another name, or --overwrite to forget its positions and begin again"
    )
