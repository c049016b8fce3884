"""A stream job without a model, as a process: copies every message of a topic to the same partition of another.

`python -m tests.services.kafka_copy SERVERS GROUP SOURCE TARGET PRODUCER`; SIGTERM ends it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

from schemas.errors import ChainMovedError
from transforms.io.kafka_client import Cluster
from transforms.io.kafka_commit import Chain, PartitionLostError
from transforms.io.kafka_member import Member
from transforms.io.kafka_producer import Record


class Chains:
    """An `Owner` that keeps one transactional chain for each partition."""

    def __init__(self, cluster, group, producer="kafka-python"):
        self.cluster, self.group, self.producer, self.chains = cluster, group, producer, {}
        self.commits = 0

    def assigned(self, member, partitions):
        starts = {}
        for p in partitions:
            chain = self.chains[p] = Chain(
                self.cluster,
                f"{self.group}/{p}",
                p,
                metadata=member.metadata,
                committed=lambda p=p: member.committed(p),
                owned=lambda p=p: member.owns(p),
                note=self.group,
                library=self.producer,
            )
            starts[p] = chain.open() or 0
        return starts

    def revoked(self, member, partitions):
        for p in partitions:
            self.chains.pop(p).close()

    def copy(self, member, target, polled):
        """Commits one block; drops it when it is not ours any more."""
        columns = [polled.records.column(name).to_pylist() for name in ("key", "value", "headers")]
        headers = [[(h["key"], h["value"]) for h in hs] for hs in columns[2]]
        records = [
            Record(target, polled.partition.number, k, v, h, None)
            for k, v, h in zip(*columns[:2], headers, strict=True)
        ]
        chain = self.chains.get(polled.partition)
        try:
            if chain is None:
                raise PartitionLostError
            chain.commit(records, polled.start, polled.stop)
            self.commits += 1
        except PartitionLostError:
            pass
        except ChainMovedError as moved:
            member.rewind(polled.partition, moved.position)
        member.settle(polled.partition, polled.stop)


def main(servers, group, source, target, producer):
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cluster = Cluster(servers)
    chains = Chains(cluster, group, producer)
    member = Member(cluster, group, (source,), chains)
    while not stop.is_set():
        polled = member.take(0.1, rows=500)
        if polled is not None:
            chains.copy(member, target, polled)
    member.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
