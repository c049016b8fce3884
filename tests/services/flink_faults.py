"""Kills parts of a Flink cluster under a live load, and measures how long the labels take to come again."""

from __future__ import annotations

import os
import random
import signal
import time

from benchmarks.topics import Watcher
from tests.services.flink import FlinkCluster
from tests.services.java import wait_until
from tests.services.kafka import KafkaBroker
from tests.services.kafka_faults import Load, count

FAULTS = ("worker", "task manager", "worker pool", "job server", "broker")
BEHIND_SECONDS = 0.5
"""Seconds. Labels keep up as long as fewer messages are unlabelled than arrive in this time."""
PATIENCE = 180.0


def inflict(fault: str, cluster: FlinkCluster, broker: KafkaBroker) -> None:
    """Kill one part with SIGKILL, and start again what a supervisor would start again."""
    if fault == "worker":
        os.kill(random.choice(cluster.workers()), signal.SIGKILL)
    elif fault == "task manager":
        cluster.kill("taskmanager2")
        cluster.start_process("taskmanager2")
    elif fault == "worker pool":
        cluster.kill("workers")
        cluster.start_process("workers")
    elif fault == "job server":
        cluster.kill("jobserver")
        cluster.start_process("jobserver")
    else:
        broker.kill()
        broker.start()


class Flow:
    """A load on one topic, and the labels that arrive in another topic."""

    def __init__(self, broker: KafkaBroker, source: str, target: str, rate: float, partitions: int = 4) -> None:
        self.rate = rate
        self.topics = (broker.servers, source, target)
        self.before = count(broker.servers, target)
        """How many labels were there before."""
        self.watcher = Watcher(broker.servers, target)
        self.load = Load(broker.servers, source, partitions, rate)

    @property
    def behind(self) -> int:
        """How many messages have no label yet."""
        return self.load.sent + self.before - len(self.watcher.seen)

    def recovers(self, seconds: float, alive) -> float:
        """Wait until labels keep up for `seconds`. Returns the seconds from the call until they began to keep up.

        `alive`: returns the reason if the labels can't come any more.
        """
        began = caught_up = time.monotonic()
        while time.monotonic() - caught_up < seconds:
            alive()
            if self.behind > BEHIND_SECONDS * self.rate:
                caught_up = time.monotonic()
                assert caught_up - began < PATIENCE, self.stuck()
            time.sleep(0.05)
        return caught_up - began

    def stuck(self) -> str:
        """Which part is stuck: the load, the job, or the watcher."""
        servers, source, target = self.topics
        return (
            f"{self.behind} messages without a label: {self.load.sent} sent, {count(servers, source)} in {source}, "
            f"{count(servers, target)} in {target}, {len(self.watcher.seen)} seen there"
        )

    def finish(self) -> int:
        """End the load and wait for the last label. Returns how many messages were sent."""
        sent = self.load.stop()
        wait_until(lambda: self.behind <= 0, PATIENCE, "every message has its label", 0.1)
        return sent

    def close(self) -> None:
        self.load.stop()
        self.watcher.stop()
