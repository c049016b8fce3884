"""What kafka-python can do and offers no public call for: every use of its private attributes, and no other code.

Each function says what is missing. All were checked with kafka-python 3.0.12, to which pyproject.toml pins the client;
a test names the attribute that another version lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.record.default_records import DefaultRecordBatch

CHECKED_VERSION = "3.0.12"
OF_CONSUMERS = (
    "_cluster._last_refresh_ms",
    "_cluster.partitions_for_topic",
    "_cluster.request_update",
    "_cluster.set_topics",
    "_cluster.topic_id",
    "_cluster.unauthorized_topics",
    "_coordinator._send_heartbeat_request",
    "_coordinator.rejoining",
    "_coordinator.request_rejoin",
    "_manager.wait_for",
    "_net.run",
    "_net.sleep",
    "_subscription.assignment",
)
"""What is used of a consumer in a group."""
OF_PRODUCERS = ("_sender.force_close", "_transaction_manager.producer_id_and_epoch")
"""What is used of a transactional producer."""
OF_BATCHES = ("_buffer", "_read_msg")
"""What is used of a batch of records."""


def refresh_topics(
    consumer: KafkaConsumer, topics: tuple[str, ...], timeout_ms: int, *, at_once: bool = False
) -> dict[str, set[int]]:
    """The partitions of each topic as a broker knows them now; none for a topic that does not exist.

    Missing: the public calls answer from what was known before, or ask for the metadata of every topic of the cluster.
    The client also waits until 100 ms have passed since its last request, even if that request succeeded. `at_once`
    leaves that pause out; after a failure the client keeps it.
    Raises TopicAuthorizationFailedError, KafkaTimeoutError. Checked with 3.0.12.
    """
    cluster = consumer._cluster  # noqa: SLF001
    if at_once:
        cluster._last_refresh_ms = 0  # noqa: SLF001
    cluster.set_topics(list(topics))
    consumer._net.run(consumer._manager.wait_for, cluster.request_update(), timeout_ms)  # noqa: SLF001
    if refused := cluster.unauthorized_topics & set(topics):
        raise errors.TopicAuthorizationFailedError(refused)
    return {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}


def accept_any_header_name() -> None:
    """From now on a header's name that is not valid UTF-8 is an `OddName`.

    Missing: one such name makes the client refuse the whole batch as corrupt, at every poll. Other records are read as
    before. Affects all consumers of the process. Checked with 3.0.12.
    """
    if getattr(DefaultRecordBatch._read_msg, "lenient", False):  # noqa: SLF001
        return
    read = DefaultRecordBatch._read_msg  # noqa: SLF001

    def read_leniently(batch: Any, *arguments: Any) -> Any:
        try:
            return read(batch, *arguments)
        except UnicodeDecodeError:
            held = batch._buffer  # noqa: SLF001
            batch._buffer = _LenientBytes(held)  # noqa: SLF001
            try:
                return read(batch, *arguments)
            finally:
                batch._buffer = held  # noqa: SLF001

    read_leniently.lenient = True  # type: ignore[attr-defined]
    DefaultRecordBatch._read_msg = read_leniently  # noqa: SLF001


class OddName(str):
    """The name of a header that is not valid UTF-8, as far as it can be shown. `raw`: its bytes."""

    __slots__ = ("raw",)
    raw: bytes

    def encode(self, *_: object) -> bytes:
        """The bytes that were sent. The client counts them."""
        return self.raw


class _LenientBytes(bytearray):
    """Bytes whose slices are decoded to an `OddName` where they must."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _LenientBytes(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raw = bytes(self)
        try:
            return raw.decode(encoding, errors)
        except UnicodeDecodeError:
            name = OddName(raw.decode(encoding, "replace"))
            name.raw = raw
            return name


def id_of_topic(consumer: KafkaConsumer, topic: str) -> object:
    """The id that the cluster gave the topic when it was made. The consumer must know the topic.

    Missing: no public call of a consumer tells topic ids, and the admin client asks over another connection. Checked
    with 3.0.12.
    """
    return consumer._cluster.topic_id(topic)  # noqa: SLF001


def known_position(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """The offset that the next poll of an assigned partition goes on from, if there is one.

    Missing: `position()` waits for the committed offset when it has no position. Checked with 3.0.12.
    """
    state = consumer._subscription.assignment.get(partition)  # noqa: SLF001
    return None if state is None or state.position is None else int(state.position.offset)


def watch_heartbeats(consumer: KafkaConsumer, fenced: Callable[[errors.FencedInstanceIdError], None]) -> None:
    """Calls `fenced` once another process has the name of this static member.

    Missing: the client ends its heartbeats then, tells nobody, and polls bring nothing. Checked with 3.0.12.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    send = coordinator._send_heartbeat_request  # noqa: SLF001

    async def watched() -> Any:
        try:
            return await send()
        except errors.FencedInstanceIdError as error:
            fenced(error)
            raise

    coordinator._send_heartbeat_request = watched  # noqa: SLF001


def finish_joining(consumer: KafkaConsumer) -> None:
    """Makes the next poll go on with a join that the last one began.

    Missing: a leader that joins because partitions were added notes them as assigned before the group has answered.
    When a poll ends in between, the client takes the join for done and never gets its partitions. Checked with 3.0.12.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    if coordinator.rejoining:
        coordinator.request_rejoin()


async def sleep(consumer: KafkaConsumer, seconds: float) -> None:
    """Lets the client's event loop go on, which sends heartbeats, from within a rebalance listener.

    Missing: the loop is the client's own, so asyncio's sleep does not work in it. Checked with 3.0.12.
    """
    await consumer._net.sleep(seconds)  # noqa: SLF001


def force_close(producer: KafkaProducer) -> None:
    """Ends the producer's thread and drops what it has not sent.

    Missing: `close(timeout=0)` may raise and leave the thread running. Checked with 3.0.12.
    """
    producer._sender.force_close()  # noqa: SLF001


def identity(producer: KafkaProducer) -> tuple[int, int]:
    """Producer id and epoch of a transactional producer.

    Missing: the client takes another id or epoch by itself when it has lost track of its sequence, and then reports a
    commit that may have covered nothing. Checked with 3.0.12.
    """
    found = producer._transaction_manager.producer_id_and_epoch  # noqa: SLF001
    return found.producer_id, found.epoch
