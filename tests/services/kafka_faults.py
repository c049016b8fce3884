"""What the crash tests share: a load, workers as processes, and the comparison of whole topics."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from tests.services.java import ROOT
from tests.services.kafka import partitions_of


class Load:
    """Sends numbered messages at a rate to all partitions in turn, through broker failures, until `stop`."""

    def __init__(self, servers: str, topic: str, partitions: int, rate: float, text="message {}") -> None:
        self.sent = 0
        self._stopping = threading.Event()
        self._arguments = (servers, topic, partitions, rate, text)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Waits until everything sent has been acknowledged; how many were sent."""
        self._stopping.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the load generator hangs"
        return self.sent

    def _run(self) -> None:
        servers, topic, partitions, rate, text = self._arguments
        producer = KafkaProducer(
            bootstrap_servers=servers, linger_ms=5, reconnect_backoff_max_ms=500, delivery_timeout_ms=120_000
        )
        began = time.monotonic()
        while not self._stopping.is_set():
            due = int((time.monotonic() - began) * rate)
            for _ in range(min(due - self.sent, 1000)):
                value = text.format(self.sent).encode()
                producer.send(topic, value, key=b"%d" % self.sent, partition=self.sent % partitions)
                self.sent += 1
            time.sleep(0.005)
        producer.flush(100)
        producer.close(5)


class Worker:
    """A Python process that is started again whenever it ends, as a runner would; `kill` is SIGKILL."""

    def __init__(self, *arguments: str, log) -> None:
        self.arguments = arguments
        self.log = log
        log.touch()
        self.starts = self._size = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self.process: subprocess.Popen | None = None
        self._thread.start()

    def _supervise(self) -> None:
        while not self._stopping:
            self._size = self.log.stat().st_size
            with self.log.open("ab") as log:
                self.process = subprocess.Popen([sys.executable, *self.arguments], stdout=log, stderr=log, cwd=ROOT)
            self.starts += 1
            self.process.wait()

    def said(self) -> bytes:
        """Its log since its last start."""
        return self.log.read_bytes()[self._size :]

    def kill(self) -> None:
        if self.process:
            self.process.kill()

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, no new start; the exit status."""
        self._stopping = True
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self._thread.join(5)


def read_all(servers: str, topic: str, deadline: float = 60, **client) -> dict[int, list]:
    """Every committed message of a topic by partition, as the client's record objects, in order."""
    end = time.monotonic() + deadline
    with _reader(servers, topic, end, **client) as (consumer, partitions):
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        found = defaultdict(list)
        while any(consumer.position(p) < ends[p] for p in partitions):
            assert time.monotonic() < end, f"reading {topic}: {ends}, at {[consumer.position(p) for p in partitions]}"
            for p, records in consumer.poll(timeout_ms=200, max_records=10_000).items():
                found[p.partition] += records
    return found


def committed_ends(servers: str, topic: str, deadline: float = 60) -> int:
    """Where committed messages end, summed over the partitions: grows with each, and by one a transaction; cheap."""
    with _reader(servers, topic, time.monotonic() + deadline) as (consumer, partitions):
        return sum(consumer.end_offsets(partitions).values())


@contextlib.contextmanager
def _reader(servers: str, topic: str, end: float, **client):
    """A read_committed consumer, and the topic's partitions; waits for the broker until `end`."""
    while True:
        with contextlib.suppress(KafkaError):
            consumer = KafkaConsumer(
                bootstrap_servers=servers, isolation_level="read_committed", auto_offset_reset="earliest", **client
            )
            break
        assert time.monotonic() < end, f"{servers} does not answer"
    with contextlib.closing(consumer):
        yield consumer, [TopicPartition(topic, n) for n in partitions_of(consumer, topic)]


def count(servers: str, topic: str) -> int:
    return sum(map(len, read_all(servers, topic).values()))


def differences(servers: str, source: str, target: str, value=lambda record: record.value) -> dict[str, int]:
    """Compares whole topics, partition by partition: messages lost, doubled, foreign, out of order."""
    left, right = read_all(servers, source), read_all(servers, target)
    found = {"in": 0, "out": 0, "lost": 0, "doubled": 0, "foreign": 0, "disordered": 0}
    for number in left.keys() | right.keys():
        want = [r.value for r in left.get(number, [])]
        have = [value(r) for r in right.get(number, [])]
        found["in"] += len(want)
        found["out"] += len(have)
        found["lost"] += len(set(want) - set(have))
        found["foreign"] += len(set(have) - set(want))
        found["doubled"] += len(have) - len(set(have))
        found["disordered"] += have != want and set(have) == set(want) and len(have) == len(want)
    return found
