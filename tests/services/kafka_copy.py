"""A stream job without a model, as a process: copies every message of a topic to the same partition of another.

Blocks of several partitions go into one transaction, as in a job.

`python -m tests.services.kafka_copy SERVERS GROUP SOURCE TARGET LIBRARY`; SIGTERM ends it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

from tagstream.schemas.errors import ChainMovedError
from tagstream.transforms.io.kafka.client.chain import Append, Chain, PartitionLostError, commit_together
from tagstream.transforms.io.kafka.client.cluster import Cluster
from tagstream.transforms.io.kafka.client.contracts import Record
from tagstream.transforms.io.kafka.client.member import Member

READY = "copying"
"""What a process logs once a SIGTERM ends it politely."""


class Chains:
    """An `Owner` that keeps one transactional chain for each partition."""

    def __init__(self, cluster, group, library="kafka-python"):
        self.cluster, self.group, self.client_library, self.chains = cluster, group, library, {}
        self.commits = 0
        self.together = 0

    def assigned(self, member, partitions):
        starts = {}
        for p in partitions:
            tenure = member.tenure(p)
            chain = self.chains[p] = Chain(
                self.cluster,
                f"{self.group}/{p}",
                p,
                metadata=member.metadata,
                committed=lambda p=p: member.committed(p),
                owned=lambda p=p, tenure=tenure: member.owns(p) and member.tenure(p) == tenure,
                note=self.group,
                library=self.client_library,
                member=member,
            )
            starts[p] = chain.open() or 0
        return starts

    def revoked(self, member, partitions):
        for p in partitions:
            self.chains.pop(p).close()

    def copy(self, member, target, *blocks):
        """Commit blocks of different partitions. Drop blocks of partitions that were revoked meanwhile."""
        appends = {}
        for polled in blocks:
            if (chain := self.chains.get(polled.partition)) is not None:
                columns = [polled.records.column(name).to_pylist() for name in ("key", "value", "headers")]
                headers = [[(h["key"], h["value"]) for h in hs] for hs in columns[2]]
                records = [
                    Record(target, polled.partition.number, k, v, h, None)
                    for k, v, h in zip(*columns[:2], headers, strict=True)
                ]
                appends[polled.partition] = Append(chain, records, polled.start, polled.stop)
        done = len(appends) > 1 and commit_together(list(appends.values()))
        self.together += done
        for polled in blocks:
            if polled.partition in appends and not done:
                self._commit(member, polled.partition, appends[polled.partition])
            member.settle(polled.partition, polled.stop)
        self.commits += len(appends)

    @staticmethod
    def _commit(member, partition, append):
        try:
            append.chain.commit(append.records, append.start, append.stop)
        except PartitionLostError:
            pass
        except ChainMovedError as moved:
            member.rewind(partition, moved.position)


def main(servers, group, source, target, library):
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cluster = Cluster(servers)
    chains = Chains(cluster, group, library)
    member = Member(cluster, group, (source,), chains, library=library)
    logging.getLogger("copy").warning(READY)
    while not stop.is_set():
        blocks = []
        while (polled := member.take(0.0 if blocks else 0.1, 500, without=[p.partition for p in blocks])) is not None:
            blocks.append(polled)
        chains.copy(member, target, *blocks)
    member.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
