"""Whole live jobs label every message once, whatever is killed: `tagstream run` processes or the broker."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest

from tests.services.java import wait_until
from tests.services.kafka_faults import Load, Worker, committed_ends, count, differences, read_all

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("kafka-crash"), pytest.mark.timeout(3600)]
SPEC = """
name: crash
source: {{type: kafka, servers: "{servers}", topics: in, keep: [partition, offset], consumer: {library}}}
infer: [{{as: tag, backend: {{type: constant, ms_per_row: 0.3, fail_on: "77$"}}}}]
sink: {sink}
blocks: {{rows: 500}}
"""


@pytest.fixture
def job(mortal_kafka, tmp_path):
    """Starts `tagstream run` for a sink, as processes that are started again when they end."""
    broker = mortal_kafka
    for topic in ("in", "out", "out-dead"):
        broker.create_topic(topic, 4)
    workers = []

    def start(sink, library="kafka-python"):
        spec = tmp_path / f"crash-{library}.yaml"
        spec.write_text(SPEC.format(servers=broker.servers, sink=sink, library=library))
        log = tmp_path / f"worker-{len(workers)}.log"
        workers.append(Worker("-m", "tagstream", "run", str(spec), "--debug", log=log))
        return workers[-1]

    yield broker, start
    for worker in workers:
        worker.stop()


def end(*workers):
    """End the processes with SIGTERM, once they read and so can handle it. A killed process first starts again."""
    for worker in workers:
        wait_until(lambda w=worker: b"reading in/" in w.said(), 120, "it has joined", 0.3)
    assert [worker.stop() for worker in workers] == [0] * len(workers)


def test_topic_to_topic(job, long):
    """Every message comes once and in order, in spite of kill -9 of job and broker, rebalances and zombies."""
    broker, start = job
    chance = random.Random(3)
    sink = "{type: kafka, topic: out, mode: headers}"
    first = start(sink)
    load = Load(broker.servers, "in", 4, rate=300)

    def progress(more):
        before = committed_ends(broker.servers, "out")
        try:
            wait_until(lambda: committed_ends(broker.servers, "out") >= before + more, 180, "labels go on", 0.5)
        except AssertionError as error:
            with broker.admin() as admin:
                raise AssertionError(f"{error}; the group: {admin.describe_groups(['crash'])}") from None

    progress(300)
    second = start(sink.replace("headers", "headers, producer: confluent-kafka"), "confluent-kafka")
    faults = ["kill", "broker", "zombie", "join"]
    if long:
        faults = ["kill"] * 20 + ["broker"] * 10 + ["join"] * 10 + ["zombie", "down"]
        chance.shuffle(faults)
    for fault in faults:
        victim = chance.choice([first, second])
        if fault == "kill":
            victim.kill()
        elif fault == "broker":
            broker.kill()
            broker.start()
        elif fault == "down":
            broker.kill()
            with pytest.raises(AssertionError):
                wait_until(lambda: False, 60, "a minute without a broker", 1)
            broker.start()
        elif fault == "zombie":
            victim.freeze()
            progress(1500 if not long else 45 * 300)
            victim.thaw()
        else:
            third = start(sink)
            end(third)
        progress(300)
    sent = load.stop()
    everything = lambda: count(broker.servers, "out") + count(broker.servers, "out-dead") >= sent  # noqa: E731
    wait_until(everything, 180, "everything is labelled or dead", 1)
    end(first, second)
    dead = {r.value for records in read_all(broker.servers, "out-dead").values() for r in records}
    found = differences(broker.servers, "in", "out")
    assert found["doubled"] == found["foreign"] == 0, found
    assert count(broker.servers, "out-dead") == len(dead) == found["lost"], "each is labelled or dead, once"
    assert all(value.endswith(b"77") for value in dead)
    for records in read_all(broker.servers, "out").values():
        offsets = [int(r.value.rpartition(b" ")[2]) for r in records]
        assert offsets == sorted(offsets), "in order within a partition"


def test_topic_to_parquet(job, tmp_path, long):
    """With files that are committed by time, each message is in one file, once."""
    broker, start = job
    out = tmp_path / "files"
    sink = f"{{type: parquet, path: {out}, commit_every: 0.5}}"
    workers = [start(sink), start(sink)]
    load = Load(broker.servers, "in", 4, rate=300)

    def rows():
        return sum(pq.read_metadata(f).num_rows for f in out.glob("*.parquet")) if out.exists() else 0

    def progress(more):
        before = rows()
        wait_until(lambda: rows() >= before + more, 180, "files go on", 0.3)

    progress(300)
    for fault in ["kill", "broker"] * (5 if long else 1):
        if fault == "kill":
            random.choice(workers).kill()
        else:
            broker.kill()
            broker.start()
        progress(600)
    sent = load.stop()
    dead = sum(1 for i in range(sent) if str(i).endswith("77"))
    wait_until(lambda: rows() >= sent - dead, 180, "every message is in a file", 0.5)
    end(*workers)
    table = pq.read_table(out).select(["partition", "offset"]).to_pylist()
    keys = {(row["partition"], row["offset"]) for row in table}
    total = count(broker.servers, "in")
    letters = pq.read_table(f"{out}-dead").num_rows
    assert len(keys) == len(table)
    assert len(table) + letters == total
