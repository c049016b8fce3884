"""The committed offsets of a job's consumer groups: which of them are the job's own, and how to forget those.

A group's name alone does not tell whose the group is. Job `orders` has made the group `orders.in-parquet-0-1f0c…`, job
`orders.de` the group `orders.de.in-parquet-0-1f0c…`, and anybody may have made the group `orders.billing`. So an offset
is the job's own by the exact name of its group, the topic and the note that a `Chain` writes beside the offset.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition, errors
from kafka.admin import KafkaAdminClient

from tagstream.schemas.errors import SinkError
from tagstream.transforms.io.kafka.client.cluster import Cluster, Partition, committed, topic_partition
from tagstream.transforms.runtime.retry import every, retrying
from tagstream.transforms.runtime.stop import Stop
from tagstream.transforms.runtime.watchdog import deadline

RETRY_SECONDS = 30.0
MARK = re.compile(r"(\S+) [0-9a-f]{16}\0?")
"""The note of a chain: the job's fingerprint, and the writer. librdkafka may append a zero byte."""
SPLIT = re.compile(r"[a-z0-9-]+-[0-9a-f]{12}")
"""An id that `schemas.block.split_id` has made. It has no dot, so it is no end of another job's name with a split."""

GONE = (errors.NoError, errors.GroupIdNotFoundError, errors.UnknownTopicOrPartitionError)
"""Answers to the deletion of an offset after which the offset is no longer there."""


class Held(NamedTuple):
    """An offset that a group of the job has committed. `fingerprint`: of the job that did; empty: another program."""

    group: str
    partition: Partition
    offset: int
    fingerprint: str


class GroupOffsets:
    """The offsets of the groups of one job."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def of_members(self, group: str, topics: set[str]) -> list[Held]:
        """What a group of this exact name has committed for these topics, or with a chain's note for any topic."""
        return [held for held in self._read([group]) if held.fingerprint or held.partition.topic in topics]

    def that_begin_with(self, name: str) -> frozenset[str]:
        """All groups whose names begin so, whoever has made them."""
        with admin_of(self.cluster) as admin, self.cluster.explained("look for the job's groups", SinkError):
            listed = self._patiently(admin.list_groups)
        names = (group["group_id"] if isinstance(group, dict) else group.group_id for group in listed)
        return frozenset(found for found in names if found.startswith(name))

    def of_splits(self, job: str, topic: str) -> list[Held]:
        """The offset of each group that the job has made for a split. Its partition is `topic`/0.

        Jobs had such groups before they had a `Ledger`. No other group is read.
        """
        groups = self.that_begin_with(f"{job}.")
        held = self._read([name for name in groups if SPLIT.fullmatch(name.removeprefix(f"{job}."))])
        return [at for at in held if at.fingerprint and at.partition == Partition(topic, 0)]

    def forget(self, held: list[Held], stop: Stop) -> None:
        """Delete these offsets and nothing else. Tries again for a while: a killed member stays for one session."""
        if not held:
            return
        left: dict[str, list[TopicPartition]] = {}
        for at in held:
            left.setdefault(at.group, []).append(topic_partition(at.partition))

        def delete() -> None:
            for group, partitions in list(left.items()):
                try:
                    said = admin.delete_group_offsets(group, partitions).values()
                    why = next((kind.__name__ for kind in said if kind not in GONE), None)
                except GONE:
                    why = None
                except errors.KafkaError as error:
                    why = type(error).__name__
                if why:
                    raise SinkError(
                        f"--overwrite can't delete the positions of group {group} ({why}): stop the processes that are "
                        "still in it, wait until their sessions end, and try again"
                    )
                del left[group]

        with admin_of(self.cluster) as admin:
            retrying(SinkError, every(0.5), seconds=RETRY_SECONDS, stop=stop)(delete)

    def committed(self, group: str, partition: Partition) -> tuple[int, str] | None:
        """The offset of this exact group and its note. Waits while a transaction on it is undecided."""
        consumer: KafkaConsumer
        with contextlib.closing(self.cluster.consumer(group_id=group)) as consumer:
            try:
                return committed(consumer, partition, 30_000)
            except errors.KafkaError as error:
                failed = SinkError(f"can't read the committed offset of group {group}: {error}")
                failed.transient = isinstance(error, errors.RetriableError)
                raise failed from error

    def _read(self, groups: list[str]) -> list[Held]:
        if not groups:
            return []
        with admin_of(self.cluster) as admin, self.cluster.explained("read the job's positions", SinkError):
            found = self._patiently(lambda: admin.list_group_offsets(groups))
        return [
            Held(group, Partition(tp.topic, tp.partition), at.offset, made_by(at.metadata))
            for group, offsets in found.items()
            for tp, at in offsets.items()
        ]

    @staticmethod
    def _patiently(ask: Any) -> Any:
        """Tries again for a while, which the admin client does not do by itself."""
        return retrying(errors.RetriableError, every(0.1), seconds=RETRY_SECONDS)(ask)


def made_by(note: str | None) -> str:
    """The fingerprint in a chain's note; empty for the note of another program."""
    mark = MARK.fullmatch(note or "")
    return mark[1] if mark else ""


@contextlib.contextmanager
def admin_of(cluster: Cluster) -> Iterator[Any]:
    """A connected admin client. Raises SinkError."""
    with cluster.explained("connect", SinkError), deadline(60, f"connect to {cluster.servers}"):
        admin = KafkaAdminClient(**cluster.properties(KafkaAdminClient.DEFAULT_CONFIG))
    with contextlib.closing(admin):
        yield admin
