"""One bad message costs one message: a dead letter, and its neighbours are labelled. With both clients."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections import Counter
from typing import NamedTuple, Self

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.kafka_spec import LIBRARIES
from tests.pipelines.kafka.kafka_jobs import Topics, headers_of, running
from tests.services.java import wait_until
from tests.services.kafka_faults import count

pytestmark = pytest.mark.xdist_group("kafka")
DAY = 86_400_000
ANYTHING = {"message.timestamp.after.max.ms": str(2**63 - 1), "max.message.bytes": str(8 << 20), "retention.ms": "-1"}


class Raw(str):
    """A header's name that is sent as these bytes, as other clients can."""

    __slots__ = ("raw",)

    def __new__(cls, raw: bytes) -> Self:
        made = super().__new__(cls, raw.decode("utf-8", "replace"))
        made.raw = raw
        return made

    def encode(self, *_: object) -> bytes:
        return self.raw


class Poisoned(Topics):
    """An input topic that accepts any timestamp, as topics of older brokers do. The output topic has the defaults."""

    def __init__(self, broker, library, partitions=2):
        super().__init__(broker, partitions)
        self.reader = library
        with broker.admin() as admin:
            admin.alter_configs([ConfigResource("topic", self.dead, {"max.message.bytes": str(8 << 20)})])
        self.source = broker.create_topic(f"{self.name}-any", partitions, **ANYTHING)

    def job(self, **source):
        kept = {"keep": ["partition", "offset"], "consumer": self.reader}
        return self.spec(kept | source, {"producer": self.reader})

    def labels(self):
        """How often each offset of each partition has a label."""
        values = [json.loads(record.value) for record in self.all(self.target)]
        return Counter((value["partition"], value["offset"]) for value in values)

    def letters(self):
        """The dead letters by partition and offset of their messages."""
        found = {}
        for record in self.all(self.dead):
            told = headers_of(record)
            at = int(told["tagstream.partition"]), int(told["tagstream.position"])
            assert at not in found, "a message has two dead letters"
            found[at] = record
        return found

    def finished(self, total):
        return count(self.servers, self.target) + count(self.servers, self.dead) >= total


NOW = int(time.time() * 1000)
POISON = {
    "a timestamp in microseconds": ({"timestamp_ms": NOW * 1000}, "bad_value"),
    "a timestamp a day ahead": ({"timestamp_ms": NOW + DAY}, "refused"),
    "a header that is not UTF-8": ({"headers": [("fine", b"1"), (Raw(b"\xff\xfe"), b"2")]}, "bad_value"),
}


@pytest.mark.parametrize("live", [True, False], ids=["live", "bounded"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_each_bad_message_is_one_dead_letter(kafka, library, live):
    """Between good messages, two of a kind in one batch. The dead letter has the message's key and value."""
    topics, expected, at = Poisoned(kafka, library, 1), {}, 0
    with contextlib.closing(KafkaProducer(bootstrap_servers=topics.servers, linger_ms=50)) as producer:
        for what, (arguments, code) in POISON.items():
            for bad in (False, True, True, False):
                producer.send(topics.source, what.encode(), b"key", partition=0, **(arguments if bad else {}))
                if bad:
                    expected[0, at] = (what, code)
                at += 1
    if live:
        with running(topics.job()) as job:
            wait_until(lambda: topics.finished(at), 90, "all messages have a label or a dead letter")
        counts = job["report"].counts
    else:
        counts = run_job(topics.job(until="latest"), Console(file=io.StringIO())).counts
    assert counts.dead == Counter(code for _, code in expected.values())
    assert topics.labels() == Counter((0, offset) for offset in range(at) if (0, offset) not in expected)
    letters = topics.letters()
    assert {
        where: (r.value.decode(), headers_of(r)["tagstream.code"].decode()) for where, r in letters.items()
    } == expected
    for record in letters.values():
        assert record.key == b"key"
        assert abs(record.timestamp - NOW) < 6 * 3_600_000, "its own time, where the topic refuses the message's"
    messages = {headers_of(record)["tagstream.message"].decode() for record in letters.values()}
    assert any(str(NOW * 1000) in message for message in messages)
    assert any(str(NOW + DAY) in message for message in messages)
    assert any(r"\xff\xfe" in message for message in messages)


class Sent(NamedTuple):
    """How a message was sent, and whether it must get a label."""

    arguments: dict
    good: bool


def anything(chance):
    """A message of any kind that a broker may hold."""
    good = True
    value = chance.choice([b"text", b"", "grün 中文 \U0001f600".encode(), b"x" * chance.randrange(1, 20_000)])
    kind = chance.random()
    if kind < 0.01:
        value, good = None, False
    elif kind < 0.02:
        value, good = b"\xff" + value, False
    elif kind < 0.022:
        value = b"large " * 200_000  # larger than the output topic allows, but the label is not
    key = chance.choice([None, b"", b"key", chance.randbytes(chance.randrange(1, 40))])
    headers = []
    for _ in range(chance.choice([0, 0, 1, 3])):
        raw = chance.choice([b"name", b"", "größe".encode(), b"\0", b"tagstream.code"])
        if chance.random() < 0.02:
            raw, good = chance.choice([b"\xff", b"\xed\xa0\x80", b"ok\xc3"]), False
        headers.append((Raw(raw), chance.choice([b"", b"value", chance.randbytes(20)])))
    stamp = chance.choice([None, NOW, NOW - 300 * DAY, 0, 1])
    if chance.random() < 0.02:
        stamp, good = chance.choice([NOW * 1000, NOW * 1_000_000, 2**62, NOW + DAY, NOW + 3000 * DAY]), False
    return Sent({"value": value, "key": key, "headers": headers, "timestamp_ms": stamp}, good)


def fuzz(topics, number, seed):
    """Send messages of every kind: all codecs, in transactions and outside of any. Returns offset -> Sent."""
    chance, sent = random.Random(seed), {}
    codecs = [None, "gzip", "snappy", "lz4", "zstd"]
    producers = []
    for index, codec in enumerate([*codecs, *codecs]):
        transactional = {"transactional_id": f"{topics.name}-{index}"} if index >= len(codecs) else {}
        producers.append(
            KafkaProducer(
                bootstrap_servers=topics.servers,
                compression_type=codec,
                linger_ms=5,
                max_request_size=4 << 20,
                **transactional,
            )
        )
        if transactional:
            producers[-1].init_transactions()
    with contextlib.ExitStack() as stack:
        for producer in producers:
            stack.enter_context(contextlib.closing(producer))
        left = number
        while left > 0:
            index, size = chance.randrange(len(producers)), min(left, chance.randrange(1, 80))
            producer, batch = producers[index], []
            transactional = index >= len(codecs)
            if transactional:
                producer.begin_transaction()
            for _ in range(size):
                message = anything(chance)
                if message.arguments["value"] is None and message.arguments["key"] is None:
                    message.arguments["key"] = b"k"
                future = producer.send(topics.source, partition=chance.randrange(2), **message.arguments)
                batch.append((future, message))
            producer.flush(60)
            done = [(future.get(30), message) for future, message in batch]
            if transactional and chance.random() < 0.3:
                producer.abort_transaction()
                continue
            if transactional:
                producer.commit_transaction()
            sent |= {(at.partition, at.offset): message for at, message in done}
            left -= size
    return sent


def check_fuzz(topics, sent):
    with running(topics.job()) as job:
        wait_until(lambda: topics.finished(len(sent)), 60 + len(sent) / 10, "all have a label or a dead letter", 0.5)
    wrong = [at for at in topics.labels().keys() | topics.letters().keys() if at not in sent]
    assert not wrong
    assert topics.labels() == Counter(at for at, message in sent.items() if message.good)
    assert topics.letters().keys() == {at for at, message in sent.items() if not message.good}
    assert job["report"].counts.rows_in == len(sent)


@pytest.mark.parametrize("library", LIBRARIES)
def test_messages_of_every_kind(kafka, library):
    """400 messages of random keys, headers, timestamps, sizes and codecs, with markers and aborted ones between."""
    topics = Poisoned(kafka, library)
    check_fuzz(topics, fuzz(topics, 400, seed=library))


@pytest.mark.crash
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("library", LIBRARIES)
def test_twenty_thousand_messages_of_every_kind(kafka, library, long):
    """As the short one, with `make crash`."""
    if not long:
        pytest.skip("needs --crash-long")
    topics = Poisoned(kafka, library)
    check_fuzz(topics, fuzz(topics, 20_000, seed=f"long {library}"))
