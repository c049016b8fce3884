"""The names of a job's consumer groups, and the members of this process that read their partitions.

The sink's transaction must name the member that read the messages. Read, infer and write run fused in one process, so
the source leaves its members here for the sink.
"""

from __future__ import annotations

from tagstream.schemas.kafka_spec import kafka_source
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import Partition
from tagstream.transforms.io.kafka.client.member import Member
from tagstream.transforms.runtime.job_context import JobContext


class Members:
    """The members of this process, by group and partition. Thread-safe. A resource of the job's context."""

    def __init__(self, _: JobContext) -> None:
        self._members: dict[tuple[str, Partition], Member] = {}

    def of(self, group: str, partition: Partition) -> Member | None:
        """The member that reads this partition. None if no member of this process reads it."""
        return self._members.get((group, partition))

    def put(self, partition: Partition, member: Member) -> None:
        """Record that this member reads the partition from now on."""
        self._members[member.group, partition] = member

    def remove(self, partition: Partition, member: Member) -> None:
        """Record that this member no longer reads the partition. Does nothing if another member reads it already."""
        if self._members.get((member.group, partition)) is member:
            del self._members[member.group, partition]

    def close(self) -> None:
        """Forget all members. The feeds close them."""
        self._members.clear()


def group_of(spec: JobSpec) -> str:
    """The consumer group of a job. Its offsets are the ledger of a Kafka sink."""
    source = kafka_source(spec)
    return (source.group if source else None) or spec.name


def replay_group_of(spec: JobSpec) -> str:
    """The group of a job's replays. Its offsets say which dead letters were replayed."""
    return f"{group_of(spec)}.replay"
