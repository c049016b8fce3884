"""Tests that take long at full size: thousands of malformed payloads, and a model that takes minutes."""

from __future__ import annotations

import copy
import json
import random

import pytest
from kafka import KafkaProducer

from tagstream.schemas.kafka_spec import LIBRARIES
from tagstream.transforms.runtime.job_context import JobContext
from tests.pipelines.kafka.kafka_jobs import Topics, feeds_of, headers_of, running
from tests.services.java import wait_until
from tests.services.kafka_faults import count

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("kafka-jobs"), pytest.mark.timeout(900)]


@pytest.fixture
def topics(kafka):
    return Topics(kafka)


def malformed(chance):
    """A value that is no JSON object with a valid text in `body`."""
    whole = json.dumps({"body": "text", "n": chance.random()}).encode()
    kinds = [
        lambda: chance.randbytes(chance.randint(1, 60)),
        lambda: whole[: chance.randint(1, len(whole) - 1)],
        lambda: whole + chance.randbytes(3),
        lambda: whole.replace(b"text", b"te\xffxt"),
        lambda: b'{"body": %d}' % chance.randint(0, 9),
        lambda: b'{"other": "x"}',
        lambda: b'{"body": null}',
        lambda: b'{"body": "\\ud800"}',
        lambda: b'{"body": "cut',
        lambda: b"",
        lambda: b"[" * 5000,
        lambda: None,
    ]
    return chance.choice(kinds)()


def test_every_message_is_labelled_or_a_dead_letter_with_its_bytes(topics, long):
    """Fuzzed payloads become dead letters with their bytes and a reason, in one transaction with the good messages."""
    chance, size = random.Random(11), 10_000 if long else 1000
    messages = [(json.dumps({"body": f"text {i}"}).encode(), True) for i in range(size)]
    messages += [(malformed(chance), False) for _ in range(size)]
    chance.shuffle(messages)
    producer = KafkaProducer(bootstrap_servers=topics.servers)
    for i, (value, _) in enumerate(messages):
        producer.send(topics.source, value, key=b"%d" % i, headers=[("n", b"%d" % i)], timestamp_ms=1000 + i)
    producer.close()
    with running(topics.spec({"payload": "json", "text": "body", "id": "key"})) as result:
        wait_until(lambda: result["context"].metrics.snapshot().rows_in >= 2 * size, 300, "all done", 0.3)
    labels, letters = topics.all(topics.target), topics.all(topics.dead)
    assert len(labels) == len(letters) == size
    assert sorted(int(r.key) for r in labels) == [i for i, (_, good) in enumerate(messages) if good]
    assert {int(r.key): r.value for r in letters} == {i: value for i, (value, good) in enumerate(messages) if not good}
    for r in letters:
        assert headers_of(r).get("n") == r.key, r
        assert r.timestamp == 1000 + int(r.key)
        assert headers_of(r)["tagstream.message"]
    dead = result["report"].counts.dead
    assert {"bad_payload", "bad_schema", "bad_encoding", "null_text"} == set(dead)
    assert sum(dead.values()) == size


def test_a_slow_model_costs_no_membership(topics, long):
    """A batch may take longer than session, poll interval and transaction, without a rebalance or a second label.

    Three minutes in the long form.
    """
    rows, ms = (4, 46_000) if long else (8, 1100)
    topics.send([b"slow %d" % i for i in range(rows)], partition=0)
    topics.client = {"transaction_timeout_ms": 5000}
    with running(topics.spec(backend={"ms_per_row": ms})) as result:
        wait_until(lambda: feeds_of(result) and feeds_of(result)[0].status().splits == 2, 60, "partitions")
        before = feeds_of(result)[0].member.metadata()
        wait_until(lambda: topics.labelled() == rows, 400, "labels", 0.3)
        after = feeds_of(result)[0].member.metadata()
    assert (before.generation_id, before.member_id) == (after.generation_id, after.member_id)
    assert topics.labelled() == rows
    counts = result["report"].counts
    assert (counts.rows_in, counts.sequences, counts.lost_races) == (rows, rows, 0), "no work was repeated"


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_joins_while_the_model_thinks_waits_and_repeats_nothing(topics, library, long):
    """A rebalance waits for the batch in flight. The new member gets its partition afterwards."""
    rows, ms = (4, 46_000) if long else (8, 1100)
    topics.send([b"slow %d" % i for i in range(rows)], partition=0)
    with running(topics.spec({"consumer": library}, backend={"ms_per_row": ms})) as result:
        wait_until(lambda: feeds_of(result) and feeds_of(result)[0].status().splits == 2, 60, "partitions")
        (feed,) = feeds_of(result)
        wait_until(lambda: any(map(feed.member.in_flight, feed.member.assignment)), 60, "a batch in flight")
        source, sink = copy.copy(feed.source), copy.copy(feed.sink)  # copies share nothing, like another process
        source.context = sink.context = JobContext()
        other = source.feed(sink)
        try:
            wait_until(lambda: other.status().splits == 1 == feed.status().splits, 400, "they share", 0.3)
            assert topics.labelled() == rows, "the batch was finished first"
        finally:
            other.close()
    assert result["report"].counts.sequences == rows, "no work was repeated"
    assert count(topics.servers, topics.target) == rows
