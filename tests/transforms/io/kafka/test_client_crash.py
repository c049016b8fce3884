"""Exactness of the Kafka client when brokers and workers die: whole output topic against whole input topic."""

from __future__ import annotations

import random

import pytest

from tagstream.schemas.kafka_spec import LIBRARIES
from tests.services.java import wait_until
from tests.services.kafka_copy import READY
from tests.services.kafka_faults import Load, Worker, committed_ends, count, differences

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("kafka-crash"), pytest.mark.timeout(1200)]


def test_nothing_is_lost_or_doubled_whatever_dies(mortal_kafka, tmp_path, long):
    """Broker kill -9, worker kill -9, workers stopped beyond their session and woken as zombies; both libraries."""
    broker, chance = mortal_kafka, random.Random(7)
    source, target = broker.create_topic("in", 4), broker.create_topic("out", 4)
    arguments = ("-m", "tests.services.kafka_copy", broker.servers, "job", source, target)
    workers = [Worker(*arguments, library, log=tmp_path / f"{library}.log") for library in LIBRARIES]
    load = Load(broker.servers, source, 4, rate=300)
    faults = ["worker", "broker", "zombie", "worker"] * (10 if long else 1)
    try:
        for fault in faults:
            before = committed_ends(broker.servers, target)
            wait_until(lambda b=before: committed_ends(broker.servers, target) > b + 300, 90, "work goes on", pause=0.3)
            worker = chance.choice(workers)
            if fault == "worker":
                worker.kill()
            elif fault == "broker":
                broker.kill()
                broker.start()
            else:
                other = workers[1 - workers.index(worker)]
                worker.freeze()
                before = committed_ends(broker.servers, target)
                wait_until(
                    lambda b=before: committed_ends(broker.servers, target) > b + 900, 90, "the others go on", pause=0.3
                )
                worker.thaw()
                assert other.process.poll() is None
        sent = load.stop()
        wait_until(lambda: count(broker.servers, target) >= sent, 120, "everything is copied", pause=0.5)
        wait_until(lambda: all(READY.encode() in w.said() for w in workers), 60, "the killed one runs again", pause=0.3)
    finally:
        statuses = [worker.stop() for worker in workers]
    found = differences(broker.servers, source, target)
    assert found["in"] == found["out"] >= sent
    assert not any(found[k] for k in ("lost", "doubled", "foreign", "disordered")), found
    assert statuses == [0, 0]
