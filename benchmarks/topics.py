"""Helpers for the stream benchmarks: a load generator, a thread that watches the output, contestants as processes."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.children import ROOT
from tests.services.kafka import KafkaBroker
from tests.services.kafka_faults import read_all

PARTITIONS = 2


@dataclass
class Contestant:
    """A program that labels topic NAME-in into NAME-out. `command`: called with servers, source and target appended."""

    name: str
    command: list[str]
    spec: str | None = None
    """A job's YAML with {name}, {servers}, {source}, {target}. If given, the command gets its path appended instead."""


class Run:
    """One contestant's run, from `start` to `stop`, on a new pair of topics. A context manager."""

    def __init__(self, broker: KafkaBroker, folder: Path, contestant: Contestant, occasion: str) -> None:
        name = f"{contestant.name}-{occasion}"
        self.servers = broker.servers
        self.source = broker.create_topic(f"{name}-in", PARTITIONS)
        self.target = broker.create_topic(f"{name}-out", PARTITIONS)
        self.watcher = Watcher(broker.servers, self.target)
        self.log = folder / f"{name}.log"
        words = {"name": name, "servers": broker.servers, "source": self.source, "target": self.target}
        if contestant.spec is None:
            self.command = [*contestant.command, broker.servers, self.source, self.target]
        else:
            broker.create_topic(f"{name}-out-dead", PARTITIONS)
            spec = folder / f"{name}.yaml"
            text = contestant.spec
            for word, value in words.items():
                text = text.replace(f"{{{word}}}", value)
            spec.write_text(text)
            self.command = [*contestant.command, str(spec)]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.stop()
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def resident_mb(self) -> float:
        """Resident memory of the process at present, in MiB. Linux only."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)

    def wait_for(self, count: int, deadline: float) -> bool:
        """Wait until `count` messages are in the output. False if there are fewer after `deadline` seconds.

        Raises SystemExit if the contestant has ended.
        """
        end = time.monotonic() + deadline
        while len(self.watcher.seen) < count:
            if self.process and self.process.poll() is not None:
                raise SystemExit(f"{' '.join(self.command)} has ended:\n{self.log.read_text()[-3000:]}")
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


class Watcher(threading.Thread):
    """Reads a topic's committed messages from the start. Notes each message's timestamp and when it became visible.

    Uses librdkafka, as `send` does, because it shares the cores with the contestant and must need little of them.
    """

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self._stopping = threading.Event()
        settings = {"isolation.level": "read_committed", "enable.auto.commit": False, "group.id": "watcher"}
        self._consumer = Consumer({"bootstrap.servers": servers, **settings})
        partitions = self._consumer.list_topics(topic, 30).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        self.start()

    def run(self) -> None:
        while not self._stopping.is_set():
            found = self._consumer.consume(5000, 0.002)
            now = time.time()
            self.seen += [(now, message.timestamp()[1] / 1000) for message in found if message.error() is None]
        self._consumer.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)


def unaccounted(servers: str, source: str, target: str) -> tuple[int, int]:
    """How many messages of `source` are missing in `target`, and how many are there twice, over all partitions."""
    want, have = (
        [record.value for records in read_all(servers, topic).values() for record in records]
        for topic in (source, target)
    )
    return len(set(want) - set(have)), len(have) - len(set(have))


def send(servers: str, topic: str, texts: list[str], rate: float | None, count: int, first: int = 0) -> None:
    """Send `count` messages, numbered from `first`, to the partitions in turn, at `rate` a second (None: unlimited)."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 2 if rate else 20, "acks": "all"})
    began = time.monotonic()
    for i in range(count):
        if rate:
            time.sleep(max(0.0, began + i / rate - time.monotonic()))
        value = f"{texts[i % len(texts)]} {first + i}".encode()
        while True:
            try:
                producer.produce(topic, value, b"%d" % i, i % PARTITIONS)
                break
            except BufferError:  # its queue is full
                producer.poll(0.1)
    if producer.flush(600):
        raise SystemExit(f"{topic}: not all messages were sent")
