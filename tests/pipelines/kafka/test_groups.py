"""Who is in the job's consumer group: members that come back, foreigners; and outputs that do not fit the input."""

from __future__ import annotations

import contextlib
import io
import threading

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.jobs.run_live import LiveLine
from tagstream.schemas.errors import LedgerError, SinkError, SourceError
from tagstream.schemas.kafka_spec import LIBRARIES
from tests.pipelines.kafka.kafka_jobs import Topics, feeds_of, running, yaml_of
from tests.services.java import wait_until
from tests.services.kafka import join
from tests.services.kafka_faults import Worker, count, differences

pytestmark = pytest.mark.xdist_group("kafka-jobs")


@pytest.fixture
def topics(kafka):
    return Topics(kafka)


def generation(topics):
    """How often the group has shared out its partitions, and who has which."""
    with topics.broker.admin() as admin:
        found = admin.describe_groups([topics.name])[topics.name]
    members = found["members"] if isinstance(found, dict) else found.members
    return sorted(
        (m["group_instance_id"], str(m["member_assignment"]))
        if isinstance(m, dict)
        else (m.group_instance_id, str(m.member_assignment))
        for m in members
    )


def test_a_rolling_restart_of_static_members_moves_no_partition(topics, tmp_path):
    """One process ends and comes back under its name; the other reads on without a rebalance, nothing is lost."""
    topics.client = {"session_timeout_ms": 30_000}
    workers = []
    for name, library in zip(("a", "b"), LIBRARIES, strict=True):
        spec = topics.spec({"instance_id": name, "consumer": library}, {"mode": "headers", "producer": library})
        (tmp_path / f"{name}.yaml").write_text(yaml_of(spec))
        command = ["-m", "tagstream", "run", str(tmp_path / f"{name}.yaml"), "--debug"]
        workers.append(Worker(*command, log=tmp_path / f"{name}.log"))
    try:
        first = f"reading {topics.source}/".encode()
        wait_until(lambda: all(first in w.log.read_bytes() for w in workers), 90, "both have joined", 0.3)
        wait_until(lambda: len(generation(topics)) == 2, 30, "two members", 0.3)
        sent = 0
        for round_ in range(2):
            topics.send([b"%d %d" % (round_, i) for i in range(400)])
            sent += 400
            wait_until(lambda n=sent: count(topics.servers, topics.target) >= n, 60, "labels", 0.3)
            if not round_:
                shares = [w.log.read_bytes().count(b"reading ") for w in workers]
                before = generation(topics)
                starts = workers[0].starts
                workers[0].process.terminate()
                wait_until(lambda s=starts: workers[0].starts > s, 30, "the first has come back")
                wait_until(lambda n=shares[0]: workers[0].log.read_bytes().count(b"reading ") > n, 60, "it reads", 0.3)
        assert generation(topics) == before
        assert workers[1].log.read_bytes().count(b"reading ") == shares[1], "the second was not disturbed"
    finally:
        for worker in workers:
            worker.stop()
    found = differences(topics.servers, topics.source, topics.target)
    assert (found["in"], found["out"], found["lost"], found["doubled"]) == (800, 800, 0, 0)


class Strange(RoundRobinPartitionAssignor):
    """A way to share partitions that nobody else knows."""

    name = "strange"


def test_a_group_that_a_foreign_consumer_is_in(topics):
    """Another program under the job's group name, sharing partitions its own way: said within seconds."""
    foreign = KafkaConsumer(
        topics.source,
        bootstrap_servers=topics.servers,
        group_id=topics.name,
        enable_auto_commit=False,  # else the job may find its positions before it joins
        partition_assignment_strategy=[Strange],
    )
    with contextlib.closing(foreign):
        join(foreign)
        done = threading.Event()

        def stay() -> None:
            while not done.is_set():
                foreign.poll(100)

        polling = threading.Thread(target=stay)
        polling.start()
        try:
            for library in LIBRARIES:
                with pytest.raises(SourceError, match=r"group is in use by another program.*source\.group"):
                    run_job(topics.spec({"consumer": library}), Console(file=io.StringIO()), max_seconds=90)
        finally:
            done.set()
            polling.join()


def test_a_foreign_consumer_that_shares_partitions_as_we_do_is_named(topics):
    """It is given partitions, whose messages get no label: the status line says who it is, until it has left."""
    quiet = Console(file=io.StringIO())
    with running(topics.spec()) as job:
        topics.send([b"one"])
        wait_until(topics.labelled, 60, "a label")
        line = LiveLine(quiet, job["context"])
        assert "another program" not in line.line()
        foreign = KafkaConsumer(
            topics.source,
            bootstrap_servers=topics.servers,
            group_id=topics.name,
            client_id="intruder",
            enable_auto_commit=False,
        )
        with contextlib.closing(foreign):
            join(foreign)
            wait_until(
                lambda: foreign.poll(100) or "takes messages: intruder on 127.0.0.1" in line.line(), 30, "its name"
            )
        wait_until(lambda: "another program" not in line.line(), 60, "its leaving")


def test_offsets_that_another_program_has_committed(topics):
    """Not believed, neither when the job starts nor later; `start: committed` goes on from them."""
    topics.send([b"one", b"two", b"three", b"four"], partition=0)
    foreign = KafkaConsumer(bootstrap_servers=topics.servers, group_id=topics.name)
    with contextlib.closing(foreign):
        partitions = [TopicPartition(topics.source, number) for number in (0, 1)]
        foreign.assign(partitions)
        foreign.commit({p: OffsetAndMetadata(at, "", -1) for p, at in zip(partitions, (3, 0), strict=True)})
    quiet, bounded, sink = Console(file=io.StringIO()), {"until": "latest"}, {"mode": "headers"}
    with pytest.raises(LedgerError, match=r"committed by another program.*--set source\.start=committed"):
        run_job(topics.spec(bounded, sink), quiet)
    assert topics.labelled() == 0
    for expected in ([b"four"], [b"four", b"five"]):
        run_job(topics.spec(bounded | {"start": "committed"}, sink), quiet)
        assert [record.value for record in topics.all(topics.target)] == expected
        topics.send([b"five"], partition=0)


def test_fewer_output_partitions_end_a_live_job(kafka):
    """At the first message that has no place, with what to do; nothing is committed for it."""
    topics = Topics(kafka, 3)
    small = kafka.create_topic(f"{topics.name}-small", 2)
    kafka.create_topic(f"{small}-dead")
    topics.send([b"hello"], partition=2)
    with pytest.raises(SinkError, match=r"has 2 partitions, but the input has one numbered 2.*by-key"):
        run_job(topics.spec(sink={"topic": small}), Console(file=io.StringIO()))
    assert count(kafka.servers, small) == 0
    run_job(topics.spec({"until": "latest"}, {"topic": small, "partitioner": "by-key"}), Console(file=io.StringIO()))
    assert count(kafka.servers, small) == 1


def test_a_message_of_5_mb(topics):
    """Labelled like any other where the topics take it."""
    from kafka.admin import ConfigResource, ConfigResourceType

    with topics.broker.admin() as admin:
        for topic in (topics.source, topics.target):
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "6000000"})])
    topics.send([b"small", b"x" * 5_000_000, b"small too"], partition=0)
    with running(topics.spec(sink={"mode": "headers"})) as result:
        wait_until(lambda: topics.labelled() == 3, 60, "three labels")
        assert feeds_of(result)
    assert [len(r.value) for r in topics.all(topics.target)] == [5, 5_000_000, 9]
    assert not result["report"].counts.dead


def test_tombstones(topics):
    """A null value is a dead letter and stays null, with or without a key; its neighbours are labelled."""
    topics.send([None, b"text"], key=b"k", partition=0)
    with running(topics.spec({"id": "key"})) as result:
        wait_until(lambda: topics.labelled() == 1 and count(topics.servers, topics.dead) == 1, 60, "label and letter")
    (letter,) = topics.all(topics.dead)
    assert (letter.key, letter.value) == (b"k", None)
    assert result["report"].counts.dead == {"null_text": 1}
