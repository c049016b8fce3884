"""Whole jobs with Kafka at one end or both, against a real broker."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError
from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.jobs.show import sample_rows
from tagstream.pipelines.jobs.verify import verify_job
from tagstream.schemas.errors import SinkError, SourceError, SpecError
from tagstream.schemas.kafka_spec import LIBRARIES
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.chain import commit_together
from tagstream.transforms.io.registry import open_sink
from tagstream.transforms.runtime.job_context import JobContext
from tests.pipelines.kafka.kafka_jobs import Topics, feeds_of, headers_of, running
from tests.services.java import wait_until
from tests.services.kafka_faults import count, differences

# A young broker makes its topic of offsets at the first question.
COORDINATOR_COMES = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError)

pytestmark = pytest.mark.xdist_group("kafka")


numbers = itertools.count()


@pytest.fixture
def topics(kafka):
    return Topics(kafka)


def test_json_in_json_out(topics):
    """Key, timestamp and partition stay. The value has id, kept fields and labels."""
    topics.send([b'{"user": {"name": "ann"}, "body": "hello"}'], key=b"k1", partition=1, timestamp_ms=1234)
    spec = topics.spec({"payload": "json", "text": "body", "id": "key", "keep": ["user.name", "offset"]})
    with running(spec) as result:
        wait_until(topics.labelled, 60, "a label")
    (record,) = topics.all(topics.target)
    assert json.loads(record.value) == {
        "key": "k1",
        "user.name": "ann",
        "offset": 0,
        "tag": "constant",
        "tag_score": 1.0,
        "tag_truncated": False,
    }
    assert (record.key, record.partition, record.timestamp) == (b"k1", 1, 1234)
    assert (result["report"].counts.rows_in, result["report"].counts.rows_out) == (1, 1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_in_headers_leave_the_message_as_it_was(topics, library):
    """Value, key, timestamp and headers stay the same, byte for byte."""
    value = b'{"body":   "hello", "b": "\\u00e4"}'
    topics.send([value], key=b"\x00\xff", headers=[("trace", b"\x01")], timestamp_ms=99, partition=0)
    with running(
        topics.spec({"payload": "json", "text": "body", "consumer": library}, {"mode": "headers", "producer": library})
    ):
        wait_until(topics.labelled, 60, "a label")
    (record,) = topics.all(topics.target)
    assert (record.key, record.value, record.timestamp) == (b"\x00\xff", value, 99)
    assert record.headers[0] == ("trace", b"\x01")
    assert headers_of(record)["tag"] == b"constant"


@pytest.mark.parametrize("mode", ["json", "headers"])
def test_the_newest_labels_are_shown(topics, mode):
    """The newest labels of all partitions are shown, by timestamp. Messages without labels are left out."""
    producer = KafkaProducer(bootstrap_servers=topics.broker.servers)
    for number in range(20):
        value = json.dumps({"body": f"text {number}"}).encode()
        producer.send(topics.source, value, partition=number % 2, timestamp_ms=1000 + number)
    producer.flush(30)
    spec = topics.spec({"payload": "json", "text": "body", "keep": ["body"]}, {"mode": mode})
    with running(spec):
        wait_until(lambda: topics.labelled() == 20, 60, "labels")
    for foreign in (b"no label", b"[1]", b"{}", None):
        producer.send(topics.target, foreign, key=b"k", partition=0, timestamp_ms=5000)
    producer.close()
    rows = sample_rows(spec, 3)
    told = {"tag": ["constant"] * 3, "tag_score": [1.0] * 3, "tag_truncated": [False] * 3}
    shown = [f"text {number}" for number in (19, 18, 17)]
    if mode == "json":
        assert rows.to_pydict() == {"body": shown, **told}
    else:
        assert rows.to_pydict() == {"value": [json.dumps({"body": text}) for text in shown], **told}


def test_labels_of_other_jobs_are_shown_as_they_are(topics):
    """Labels of other types in the same topic are shown as JSON, or as the text of a header."""
    producer = KafkaProducer(bootstrap_servers=topics.broker.servers)
    for row in ({"tag": "a", "tag_score": 0.5}, {"tag": ["b"], "tag_score": None}):
        producer.send(topics.target, json.dumps(row).encode(), partition=0, timestamp_ms=1000)
    headers = [("tag", b"1"), ("tag_score", b"high"), ("tag_model", b"m"), ("tag_truncated", b"")]
    producer.send(topics.target, b"text", headers=headers, partition=0, timestamp_ms=2000)
    producer.flush(30)
    producer.close()
    found = sample_rows(topics.spec(), 3).to_pydict()
    assert found == {"tag": ['"a"', '["b"]'], "tag_score": [0.5, None]}
    found = sample_rows(topics.spec(sink={"mode": "headers"}), 3).to_pylist()
    assert found == [{"value": "text", "tag": "1", "tag_score": "high", "tag_model": "m", "tag_truncated": ""}]


def test_a_bounded_run_beside_a_live_one_is_refused(topics, tmp_path):
    """The live run commits several partitions in one transaction, which fences only one producer of the other run."""
    settings = {"sink": {"mode": "headers"}, "backend": {"ms_per_row": 20}, "blocks": {"rows": 50}}
    bounded = tmp_path / "bounded.yaml"
    bounded.write_text(topics.spec({"until": "latest"}, **settings).model_dump_json())
    topics.send([b"text %d" % i for i in range(2000)])
    with running(topics.spec(**settings)):
        wait_until(topics.labelled, 60, "labels")
        command = [sys.executable, "-m", "tagstream", "run", str(bounded)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        before = topics.labelled()
        wait_until(lambda: topics.labelled() > before, 60, "labels go on")
    assert done.returncode == SinkError.exit_code, done.stderr
    assert "the job runs live in another process" in done.stderr
    found = differences(topics.broker.servers, topics.source, topics.target)
    assert found["doubled"] == found["foreign"] == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_message_larger_than_the_output_takes_is_a_dead_letter(kafka, library):
    """With labels as headers, a message that just fits the input may not fit the output."""
    topics = Topics(kafka)
    with kafka.admin() as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.source, {"max.message.bytes": "6000000"})])
    topics.send([b"small", b"x" * 5_000_000, b"small too"], partition=0)
    with running(topics.spec({"consumer": library}, {"mode": "headers", "producer": library})) as result:
        wait_until(lambda: topics.labelled() == 2, 180, "two labels")
    (letter,) = topics.all(topics.dead)
    assert headers_of(letter)["tagstream.code"] == b"too_large"
    assert result["report"].counts.dead == {"too_large": 1}


@pytest.mark.parametrize("library", LIBRARIES)
def test_partitions_share_transactions(kafka, library, monkeypatch):
    """Four partitions with few messages share transactions. Only a message that is too large dies alone."""
    topics = Topics(kafka, partitions=4)
    with kafka.admin() as admin:
        small = ConfigResource(ConfigResourceType.TOPIC, topics.target, {"max.message.bytes": "10000"})
        admin.alter_configs([small])
    shared = []

    def counted(appends):
        shared.append((len(appends), done := commit_together(appends)))
        return done

    monkeypatch.setattr("tagstream.transforms.io.kafka.sink.commit_together", counted)
    spec = topics.spec({"consumer": library}, {"mode": "headers", "producer": library}, max_dead=1)
    with running(spec) as result, contextlib.closing(KafkaProducer(bootstrap_servers=kafka.servers)) as sender:

        def send(count: int, large: int = -1) -> None:
            for number in range(count):
                value = b"%d" % (sum(sent) + number) + b"x" * 20_000 * (number == large)
                sender.send(topics.source, value, partition=number % 4)
                if number % 4 == 3:
                    time.sleep(0.002)
            sent.append(count)
            dead.append(large >= 0)
            wait_until(lambda: topics.labelled() == sum(sent) - sum(dead), 60, "labels of all that fits")
            wait_until(lambda: len(topics.all(topics.dead)) == sum(dead), 60, "the dead letter")

        def until(condition: Callable[[], bool], large: int = -1) -> None:
            """Try again: a slow machine may read one partition's messages alone, and then nothing is shared."""
            for _ in range(10):
                shared.clear()
                send(400, large)
                if condition():
                    return
            pytest.fail(f"of {sum(sent)} messages: {shared}")

        sent: list[int] = []
        dead: list[bool] = []
        send(4)
        until(lambda: not all(done for _, done in shared), large=296)
        until(lambda: all(done for _, done in shared) and max(size for size, _ in shared) > 2)
    rows_in, large = sum(sent), sum(dead)
    found = differences(kafka.servers, topics.source, topics.target)
    assert (found["in"], found["out"], found["lost"]) == (rows_in, rows_in - large, large)
    assert found["doubled"] == found["foreign"] == found["disordered"] == 0
    counts = result["report"].counts
    assert (counts.rows_in, counts.rows_out, dict(counts.dead)) == (rows_in, rows_in - large, {"too_large": large})


def test_bounded_replay_to_parquet(topics, tmp_path):
    """`until: latest` reads the messages that are there and ends. A second run reads only new messages."""
    topics.send([b"text %d" % i for i in range(500)])
    spec = topics.spec(
        {"until": "latest", "keep": ["partition", "offset"]}, {"type": "parquet", "path": f"{tmp_path}/out"}
    )
    report = run_job(spec, Console(file=io.StringIO()))
    assert (report.state, report.rows_total, report.counts.rows_in) == ("done", 500, 500)
    topics.send([b"late %d" % i for i in range(7)])
    assert run_job(spec, Console(file=io.StringIO())).counts.rows_in == 7
    rows = pq.read_table(f"{tmp_path}/out").select(["partition", "offset"]).to_pylist()
    assert len({(r["partition"], r["offset"]) for r in rows}) == len(rows) == 507


def test_start_and_until_at_a_time(topics):
    """With two times, the messages between them are read from each partition."""
    for at in (1_000, 2_000, 3_000, 4_000):
        for partition in (0, 1):
            topics.send([b"at %d" % at], partition=partition, timestamp_ms=at)
    report = run_job(topics.spec({"start": 2_000, "until": 4_000}), Console(file=io.StringIO()))
    assert report.counts.rows_in == 4
    assert {r.timestamp for r in topics.all(topics.target)} == {2_000, 3_000}


@pytest.mark.parametrize("kind", ["kafka", "parquet"])
def test_latest_is_settled_at_the_first_start(topics, tmp_path, kind):
    """Messages that come while the job is away are not skipped, even if the job has not written anything yet."""
    topics.send([b"old"] * 10)
    sink = {"type": "parquet", "path": f"{tmp_path}/out", "commit_every": 0.3} if kind == "parquet" else None
    spec = topics.spec({"start": "latest"}, sink)
    with running(spec) as job:
        wait_until(lambda: any(f.status().splits == 2 for f in feeds_of(job)), 60, "partitions")
    topics.send([b"while away"] * 5)
    labelled = topics.labelled if sink is None else lambda: _rows(tmp_path / "out")
    with running(spec):
        wait_until(lambda: labelled() == 5, 60, "what came meanwhile")


def test_a_partition_added_later_is_read_from_its_beginning(topics, tmp_path):
    """Also with `latest`, messages that are sent before the job sees the new partition are read."""
    sink = {"type": "parquet", "path": f"{tmp_path}/out", "commit_every": 0.3}
    topics.send([b"old"] * 10)
    with running(topics.spec({"start": "latest", "client": {"metadata_max_age_ms": 2000}}, sink)) as job:
        wait_until(lambda: any(f.status().splits == 2 for f in feeds_of(job)), 60, "partitions")
        with topics.broker.admin() as admin:
            admin.create_partitions({topics.source: NewPartitions(total_count=3)})
        topics.send([b"at once"] * 7, partition=2)
        wait_until(lambda: _rows(tmp_path / "out") == 7, 60, "the new partition's messages")


def test_overwrite_says_that_the_group_is_in_use(topics, monkeypatch):
    """If positions can't be deleted because the group is in use, the job says so and does not start."""
    monkeypatch.setattr("tagstream.transforms.io.kafka.group_offsets.RETRY_SECONDS", 1.0)
    topics.send([b"x"] * 3)
    spec = topics.spec()
    with running(spec):
        wait_until(lambda: topics.labelled() == 3, 60, "labels")
        said = r"can't delete the positions of group .* \(GroupSubscribedToTopicError\): stop"
        with pytest.raises(SinkError, match=said):
            open_sink(spec, JobContext()).prepare(Job.open(spec).fingerprint(), overwrite=True)


def test_input_and_output_topics_are_of_one_cluster(topics, secure_kafka):
    """Two clusters are refused, because they share no transaction. Two addresses of one cluster are fine."""
    there = {"servers": secure_kafka.secure_servers, "client": secure_kafka.secure_client()}
    for until in (None, "latest"):
        with pytest.raises(SpecError, match=r"is another cluster than source\.servers"):
            run_job(topics.spec({"until": until}, there), Console(file=io.StringIO()))
    topics.send([b"x"] * 3)
    other = {"servers": topics.servers.replace("127.0.0.1", "localhost")}
    assert other["servers"] != topics.servers
    assert run_job(topics.spec({"until": "latest"}, other), Console(file=io.StringIO())).counts.rows_out == 3


def test_stream_to_parquet_goes_on_where_the_chain_ends(topics, tmp_path):
    """Files appear after a time. After a restart no message is missing and none is there twice."""
    sink = {"type": "parquet", "path": f"{tmp_path}/out", "commit_every": 0.3}
    spec = topics.spec({"keep": ["partition", "offset"]}, sink)
    for part in range(2):
        topics.send([b"part %d" % part] * 300)
        with running(spec):
            done = (part + 1) * 300
            wait_until(lambda d=done: _rows(tmp_path / "out") >= d, 60, "files")
    rows = pq.read_table(f"{tmp_path}/out").select(["partition", "offset"]).to_pylist()
    assert len({(r["partition"], r["offset"]) for r in rows}) == len(rows) == 600


def _rows(folder):
    return sum(pq.read_metadata(f).num_rows for f in folder.glob("*.parquet")) if folder.exists() else 0


def test_parquet_to_kafka_is_written_once(topics, tmp_path):
    """A second run has nothing to do."""
    pq.write_table(pa.table({"id": range(1000), "text": [f"t{i}" for i in range(1000)]}), tmp_path / "in.parquet")
    source = {"type": "parquet", "path": f"{tmp_path}/in.parquet", "id": "id", "split_rows": 300}
    spec = JobSpec.model_validate(
        {
            "name": topics.name,
            "source": source,
            "infer": [{"as": "tag", "backend": {"type": "constant", "fail_on": "7$"}}],
            "sink": {"type": "kafka", "servers": topics.servers, "topic": topics.target},
            "max_dead": 1,
        }
    )
    assert run_job(spec, Console(file=io.StringIO())).counts.rows_in == 1000
    assert run_job(spec, Console(file=io.StringIO())).counts.rows_in == 0
    ids = sorted(json.loads(r.value)["id"] for r in topics.all(topics.target))
    dead = topics.all(topics.dead)
    assert ids == [i for i in range(1000) if not str(i).endswith("7")]
    assert sorted(int(r.key) for r in dead) == [i for i in range(1000) if str(i).endswith("7")]


def test_stops_within_seconds_and_commits_what_is_in_flight(topics):
    """After a stop under load, no message is read again."""
    topics.send([b"m %d" % i for i in range(3000)])
    spec = topics.spec(sink={"mode": "headers"})
    with running(spec) as job:
        wait_until(lambda: topics.labelled() > 0, 60, "labels")
        job["context"].stop.request()
        began = time.monotonic()
        wait_until(lambda: not feeds_of(job), 10, "the member has left")
        assert time.monotonic() - began < 10
    with running(spec):
        wait_until(lambda: topics.labelled() >= 3000, 60, "the rest", 0.3)
    found = differences(topics.servers, topics.source, topics.target)
    assert (found["in"], found["out"], found["lost"], found["doubled"]) == (3000, 3000, 0, 0)


def test_by_key_and_fewer_partitions(kafka):
    """Fewer output partitions are an error by default, and allowed with by-key."""
    topics = Topics(kafka, 3)
    small = kafka.create_topic(f"{topics.name}-small", 2)
    kafka.create_topic(f"{small}-dead")
    topics.send([b"hello"], key=b"a", partition=2)
    with pytest.raises(SinkError, match=r"has 2 partitions, but the input has one numbered 2.*by-key"):
        run_job(topics.spec({"until": "latest"}, {"topic": small}), Console(file=io.StringIO()))
    run_job(topics.spec({"until": "latest"}, {"topic": small, "partitioner": "by-key"}), Console(file=io.StringIO()))
    assert count(kafka.servers, small) == 1


@pytest.mark.parametrize("until", [None, "latest"])
def test_unknown_topic_unknown_broker(topics, until):
    quiet = Console(file=io.StringIO())
    with pytest.raises(SourceError, match="can't read nowhere: the topic does not exist"):
        run_job(topics.spec({"topics": "nowhere", "until": until}), quiet)
    with pytest.raises(SinkError, match="can't read nowhere: the topic does not exist"):
        run_job(topics.spec({"until": until}, {"topic": "nowhere"}), quiet)
    with pytest.raises(SourceError, match=r"no Kafka broker .* answers at 127\.0\.0\.1:1"):
        run_job(topics.spec({"servers": "127.0.0.1:1", "client": {"bootstrap_timeout_ms": 1000}}), quiet)


def test_limit_is_for_input_that_ends(topics):
    with pytest.raises(SpecError, match=r"source\.until=latest"):
        run_job(topics.spec(), Console(file=io.StringIO()), limit=5)


def test_another_model_on_the_same_group_is_refused(topics):
    """Another model is refused, because the group's positions belong to the first job."""
    topics.send([b"one"])
    quiet = Console(file=io.StringIO())
    run_job(topics.spec({"until": "latest"}), quiet)
    with pytest.raises(SinkError, match="belongs to another job"):
        run_job(topics.spec({"until": "latest"}, backend={"label": "other"}), quiet)


def test_over_tls_with_scram(secure_kafka):
    """Source, sink and ledger use one login."""
    topics = Topics(secure_kafka, servers=secure_kafka.secure_servers, client=secure_kafka.secure_client())
    topics.send([b"hello"])
    with running(topics.spec()):
        wait_until(topics.labelled, 60, "a label")


def test_a_foreign_client_reads_the_output(topics):
    """Kafka's own console consumer reads the output, committed messages only."""
    topics.send([b"hello %d" % i for i in range(20)])
    run_job(topics.spec({"until": "latest"}), Console(file=io.StringIO()))
    arguments = ["--bootstrap-server", topics.servers, "--topic", topics.target, "--from-beginning"]
    arguments += ["--isolation-level", "read_committed", "--timeout-ms", "6000"]
    printed = topics.broker.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", *arguments)
    assert [json.loads(line)["tag"] for line in printed.splitlines() if line.startswith("{")] == ["constant"] * 20


def test_verify_compares_live_and_bulk(topics):
    """Every label and dead letter of the range is compared, and no output is written."""
    topics.send([b"text %d" % i for i in range(300)])
    spec = topics.spec(backend={"fail_on": "7$"}, runner={"type": "flink"})  # verify runs on this machine all the same
    verdict = verify_job(spec, Console(file=io.StringIO()), 60)
    assert (verdict.rows, verdict.dead, verdict.different) == (270, 30, 0)
    assert not topics.labelled()
    with pytest.raises(SpecError, match=r"--set source\.start=earliest"):
        verify_job(topics.spec({"start": "committed"}), Console(file=io.StringIO()), 60)


def test_verify_of_an_empty_topic_ends(topics):
    """There is nothing to compare. A topic of nothing but an aborted message is empty too."""
    verdict = verify_job(topics.spec(), Console(file=io.StringIO()), 60)
    assert (verdict.rows, verdict.dead, verdict.different) == (0, 0, 0)
    with contextlib.closing(KafkaProducer(bootstrap_servers=topics.servers, transactional_id=topics.name)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topics.source, b"never", partition=0).get(10)
        producer.abort_transaction()
    verdict = verify_job(topics.spec(), Console(file=io.StringIO()), 60)
    assert (verdict.rows, verdict.dead, verdict.different) == (0, 0, 0)


def test_verify_ends_after_its_seconds(topics):
    """The live path is not given the time that it needs."""
    topics.send([b"text %d" % i for i in range(50)])
    with pytest.raises(SourceError, match=r"within 0\.1 s.*--seconds"):
        verify_job(topics.spec(backend={"ms_per_row": 20}), Console(file=io.StringIO()), 0.1)


def test_lag_tools_see_the_position_of_a_stream_to_files(topics, tmp_path):
    """With a sink of files, the group's offsets follow the chains."""
    topics.send([b"x"] * 50, partition=0)
    sink = {"type": "parquet", "path": f"{tmp_path}/out", "commit_every": 0.2}
    with running(topics.spec(sink=sink)), topics.broker.admin() as admin:

        def committed():
            try:
                found = admin.list_group_offsets([topics.name])[topics.name]
            except COORDINATOR_COMES:
                return None
            return {tp.partition: at.offset for tp, at in found.items()}.get(0)

        wait_until(lambda: committed() == 50, 30, "the group's offset")


def test_goes_on_after_the_quantum(topics, monkeypatch):
    """After its quantum a seat asks to be called again, and the same member reads on."""
    monkeypatch.setattr("tagstream.transforms.stages.read_live.QUANTUM", 0.3)
    with running(topics.spec()) as job:
        for part in range(4):
            topics.send([b"part %d" % part])
            wait_until(lambda n=part + 1: topics.labelled() == n, 30, "its label")
            (feed,) = feeds_of(job)
            assert feed.member.metadata().generation_id == 1


def test_survives_a_broker_that_is_away(mortal_kafka):
    """If the broker is away for longer than clients wait, the job says so, and continues when the broker is back."""
    topics = Topics(mortal_kafka, client={"bootstrap_timeout_ms": 1000, "request_timeout_ms": 2000})
    topics.send([b"before"])
    console = Console(file=io.StringIO())
    with running(topics.spec(), console):
        wait_until(topics.labelled, 60, "a label")
        topics.broker.kill()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 6, 20, "it is away for a while", 0.5)
        topics.broker.start()
        topics.send([b"after"])
        wait_until(lambda: topics.labelled() == 2, 90, "the second label", 0.5)
    assert topics.labelled() == 2
