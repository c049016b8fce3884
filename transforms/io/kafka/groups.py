"""A job's consumer groups, and which member of this process reads which partition.

A transaction carries the identity of the member that read the messages. Read, infer and write run fused in one
process, so the sink finds the member of the source here.
"""

from __future__ import annotations

from tagstream.schemas.kafka_spec import kafka_source
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import Partition
from tagstream.transforms.io.kafka.client.member import Member
from tagstream.transforms.runtime.job_context import JobContext


class Members:
    """The members that read, by group and partition. Thread-safe. A resource of the job's context."""

    def __init__(self, _: JobContext) -> None:
        self._members: dict[tuple[str, Partition], Member] = {}

    def of(self, group: str, partition: Partition) -> Member | None:
        """The member that reads this partition in this process; None if there is none."""
        return self._members.get((group, partition))

    def put(self, partition: Partition, member: Member) -> None:
        """From now on this member reads the partition."""
        self._members[member.group, partition] = member

    def remove(self, partition: Partition, member: Member) -> None:
        """The member no longer reads the partition; another one may do so already."""
        if self._members.get((member.group, partition)) is member:
            del self._members[member.group, partition]

    def close(self) -> None:
        """Forget them. The feeds close the members themselves."""
        self._members.clear()


def group_of(spec: JobSpec) -> str:
    """The consumer group of a job: its offsets are the ledger of a Kafka sink."""
    source = kafka_source(spec)
    return (source.group if source else None) or spec.name


def replay_group_of(spec: JobSpec) -> str:
    """The group whose offsets say which dead letters were replayed."""
    return f"{group_of(spec)}.replay"
