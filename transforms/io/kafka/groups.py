"""Which member of this process reads which partition: a transaction carries its member's identity.

Read, infer and write are fused into one process, so the sink finds the member of the source here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagstream.schemas.kafka_spec import kafka_source
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import Partition

if TYPE_CHECKING:
    from tagstream.transforms.io.kafka.client.member import Member

MEMBERS: dict[tuple[str, Partition], Member] = {}
"""By group and partition."""


def group_of(spec: JobSpec) -> str:
    """The consumer group of a job: its offsets are the ledger of a Kafka sink."""
    source = kafka_source(spec)
    return (source.group if source else None) or spec.name


def replay_group_of(spec: JobSpec) -> str:
    """The group whose offsets say which dead letters were replayed."""
    return f"{group_of(spec)}.replay"
