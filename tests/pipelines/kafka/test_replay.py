"""Dead letters of a topic run again: what succeeds joins the output once, what does not keeps its origin and bytes."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from tagstream.pipelines.jobs.replay import replay_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import LedgerError, SourceError, SpecError
from tagstream.schemas.spec import JobSpec
from tests.pipelines.kafka.kafka_jobs import Topics, headers_of, running, yaml_of
from tests.services.java import ROOT, wait_until
from tests.services.kafka_faults import Worker, count

pytestmark = pytest.mark.xdist_group("kafka-jobs")
BULK = {"until": "latest"}
POISON = {"fail_on": "poison"}


def quiet():
    return Console(file=io.StringIO(), width=200)


def replay(spec):
    report = replay_job(spec, quiet())
    assert report.counts.rows_in == report.counts.rows_out + report.counts.dead_rows
    return report


@pytest.fixture
def topics(kafka):
    return Topics(kafka, 3)


def test_what_succeeds_now_is_as_if_it_had_at_once(topics):
    """Value, key, timestamp, headers, partition and every kept column of the message that died."""
    topics.send([b'{"body": "good", "n": 1}'], key=b"g", partition=2, timestamp_ms=77)
    topics.send([b'{"body": "poison", "n": 2}'], key=b"\xff", partition=2, timestamp_ms=88, headers=[("h", b"\x01")])
    source = {"payload": "json", "text": "body", "keep": ["n", "topic", "partition", "offset", "timestamp", "headers"]}
    spec = topics.spec(source | BULK, backend=POISON, max_dead=1)
    run_job(spec, quiet())
    assert replay(topics.spec(source)).counts.rows_out == 1  # the source's own end does not matter
    first, second = topics.all(topics.target)
    assert (second.key, second.partition, second.timestamp) == (b"\xff", 2, 88)
    assert second.headers == [("h", b"\x01")]
    before, now = json.loads(first.value), json.loads(second.value)
    assert (now["topic"], now["partition"], now["offset"], now["n"]) == (topics.source, 2, 1, "2")
    assert before.keys() == now.keys()
    assert now["timestamp"] == "1970-01-01T00:00:00.088000"
    with pytest.raises(SourceError, match="no dead letters to replay"):
        replay(spec)


def test_the_message_itself_with_labels_in_headers(topics):
    """`mode: headers` after a replay too; headers of the dead letter are gone."""
    topics.send([b"poison \xc3\xa4"], key=b"k", headers=[("h", b"1")])
    headers = {"mode": "headers"}
    run_job(topics.spec(BULK, headers, backend=POISON, max_dead=1), quiet())
    replay(topics.spec(sink=headers))
    (record,) = topics.all(topics.target)
    assert (record.key, record.value) == (b"k", "poison ä".encode())
    assert [name for name, _ in record.headers] == ["h", "tag", "tag_score", "tag_truncated"]


def test_what_fails_again_keeps_origin_bytes_and_reason(topics):
    """However often: malformed ones, tombstones, a message without key and value, one too large for the output."""
    with topics.broker.admin() as admin:
        from kafka.admin import ConfigResource, ConfigResourceType

        large = {"max.message.bytes": "3000000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.source, large)])
    topics.send([b"{", b'{"body": 5}', b'{"body": "\xff"}'], key=b"bad", partition=0, headers=[("h", b"1")])
    topics.send([None], key=b"tombstone", partition=1)
    topics.send([b'{"body": "poison"}'], key=b"poison", partition=2)
    topics.send([b'{"body": "%s"}' % (b"x" * 2_000_000)], key=b"large", partition=2)
    source = {"payload": "json", "text": "body", "keep": ["offset"]}
    spec = topics.spec(source | BULK, {"mode": "headers"}, backend=POISON, max_dead=1)
    run_job(spec, quiet())
    seen = set()
    first = letters(topics, seen)
    assert len(first) == 6
    for _ in range(2):
        report = replay(spec)
        assert (report.counts.rows_in, report.counts.rows_out) == (6, 0)
        assert letters(topics, seen) == first
    assert replay(topics.spec(source, {"mode": "headers"})).counts.rows_out == 1
    codes = sorted(letter["code"] for letter in letters(topics, seen))
    assert codes == ["bad_encoding", "bad_payload", "bad_schema", "null_text", "too_large"]


def letters(topics, seen):
    """The dead letters that are not in `seen` yet: everything but where they are now."""
    found = []
    for record in topics.all(topics.dead):
        if (record.partition, record.offset) in seen:
            continue
        seen.add((record.partition, record.offset))
        told = {name.removeprefix("tagstream."): value.decode() for name, value in record.headers}
        del told["split"], told["position"]
        found.append({"key": record.key, "value": record.value, "timestamp": record.timestamp, **told})
    return sorted(found, key=str)


def test_a_killed_replay_goes_on_where_it_was(topics, tmp_path):
    """kill -9 again and again: every letter is replayed once."""
    topics.send([b"poison %d" % i for i in range(3000)])
    spec = topics.spec(BULK, backend=POISON, max_dead=1)
    run_job(spec, quiet())
    assert count(topics.servers, topics.dead) == 3000
    (tmp_path / "job.yaml").write_text(yaml_of(spec))
    slow = ["--set", "infer.0.backend.fail_on=null", "--set", "infer.0.backend.ms_per_row=3"]
    arguments = ["-m", "tagstream", "replay", str(tmp_path / "job.yaml"), "--set", "blocks.rows=50", *slow]
    worker = Worker(*arguments, log=tmp_path / "replay.log")
    try:
        for part in (200, 900, 1700):
            wait_until(lambda n=part: topics.labelled() > n, 120, f"{part} labels", 0.3)
            worker.kill()
        wait_until(lambda: topics.labelled() >= 3000, 120, "all labels", 0.5)
    finally:
        worker.stop()
    values = [json.loads(r.value) for r in topics.all(topics.target)]
    assert len(values) == 3000
    assert worker.starts >= 4
    with pytest.raises(SourceError, match="no dead letters to replay"):
        replay(spec)


def test_while_the_job_runs(topics, tmp_path):
    """Replay has a group and positions of its own; the job's are not touched."""
    with running(topics.spec(backend=POISON)):
        topics.send([b"poison", b"good"])
        wait_until(lambda: topics.labelled() == 1 and count(topics.servers, topics.dead) == 1, 60, "label and letter")
        (tmp_path / "job.yaml").write_text(yaml_of(topics.spec()))
        command = [sys.executable, "-m", "tagstream", "replay", str(tmp_path / "job.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        topics.send([b"later"])
        wait_until(lambda: topics.labelled() == 3, 60, "the replayed and the later one")
    with topics.broker.admin() as admin:
        groups = admin.list_group_offsets([topics.name, f"{topics.name}.replay"])
    assert {tp.topic for tp in groups[topics.name]} == {topics.source}
    assert {tp.topic for tp in groups[f"{topics.name}.replay"]} == {topics.dead}


def test_letters_without_their_bytes_stay_dead(topics):
    """`payload: false`: there is nothing to run again."""
    topics.send([b"poison"], key=b"k")
    spec = topics.spec(BULK, backend=POISON, max_dead=1, payload=False)
    run_job(spec, quiet())
    report = replay(topics.spec(payload=False))
    assert (report.counts.rows_out, dict(report.counts.dead)) == (0, {"inference_failed": 1})
    assert {headers_of(r)["tagstream.code"] for r in topics.all(topics.dead)} == {b"inference_failed"}


def test_what_can_not_be_replayed(topics):
    """Other messages in the topic, another model, another kind of source, no letters at all."""
    with pytest.raises(SourceError, match="no dead letters to replay"):
        replay(topics.spec())
    topics.send([b"poison"])
    run_job(topics.spec(BULK, backend=POISON, max_dead=1), quiet())
    with pytest.raises(LedgerError, match="belongs to another job"):
        replay(topics.spec(backend={"label": "other"}))
    spec = topics.spec(sink={"servers": topics.servers}).model_dump(by_alias=True)
    spec["source"] = {"type": "parquet", "path": "in"}
    with pytest.raises(SpecError, match="can be replayed when the source is Kafka too; this one is parquet"):
        replay(JobSpec.model_validate(spec))
    topics.send([b"no letter"])
    strange = topics.spec(sink={"topic": topics.target}, dead_letters={"type": "kafka", "topic": topics.source})
    with pytest.raises(SourceError, match="holds messages that are not dead letters"):
        replay(strange)
