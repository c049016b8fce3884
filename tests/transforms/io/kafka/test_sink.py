"""A Kafka topic keeps every promise of a sink."""

from __future__ import annotations

import itertools
import json
import os

import pyarrow as pa
import pytest

from tagstream.schemas.dead_letters import dead_schema
from tagstream.schemas.errors import SinkError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import Partition
from tagstream.transforms.io.kafka.source import split_of
from tagstream.transforms.io.registry import open_sink
from tagstream.transforms.runtime.job_context import JobContext
from tests.services.kafka_faults import read_all
from tests.transforms.io.sink_contract import JOB, KEPT, SPLIT, SinkContract, block

pytestmark = pytest.mark.xdist_group("kafka")
LABELS = pa.schema([("id", pa.string()), ("tag", pa.string()), ("tag_score", pa.float32())])
numbers = itertools.count()


class TestKafkaSink(SinkContract):
    """The output of a folder is a pair of topics and a job name."""

    @pytest.fixture(autouse=True)
    def _broker(self, kafka):
        self.kafka = kafka
        self.topics = {}

    def topic(self, folder):
        if folder not in self.topics:
            name = self.topics[folder] = f"sink-{os.getpid()}-{next(numbers)}"
            self.kafka.create_topic(name, 3)
            self.kafka.create_topic(f"{name}-dead", 1)
        return self.topics[folder]

    def open_sink(self, folder, **settings):
        settings.pop("commit_every", None)
        topic = self.topic(folder)
        spec = self.job({"type": "kafka", "servers": self.kafka.servers, "topic": topic, **settings})
        return open_sink(JobSpec.model_validate({**spec.model_dump(), "name": topic}), JobContext())

    def labels(self, folder):
        found = read_all(self.kafka.servers, self.topic(folder))
        rows = [json.loads(r.value) for records in found.values() for r in records]
        return pa.Table.from_pylist(rows, LABELS) if rows else pa.table({})

    def dead(self, folder):
        rows = []
        for record in read_all(self.kafka.servers, f"{self.topic(folder)}-dead")[0]:
            headers = {name.removeprefix("tagstream."): value.decode() for name, value in record.headers}
            positions = {name: int(headers[name]) for name in ("position", "origin_position")}
            row = json.loads(headers["row"])
            rows.append({**headers, **positions, "payload": record.value, "row": row})
        return pa.Table.from_pylist(rows, dead_schema(KEPT)) if rows else pa.table({})

    def test_due_by_time(self, tmp_path):
        """Every block is a transaction."""
        writer = self.ready(tmp_path).open(SPLIT)
        assert not writer.due
        writer.write(block(0, 5))
        assert writer.due
        writer.commit()
        assert not writer.due

    def test_overwrite_starts_anew(self, tmp_path):
        """The positions are forgotten; what is in the topic stays."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        sink = self.ready(tmp_path, JOB, overwrite=True)
        assert sink.progress() == {}
        writer = sink.open(SPLIT)
        writer.write(block(0, 3))
        writer.commit()
        assert sink.progress()[SPLIT.id].stop == 3
        assert self.ids(tmp_path).count(0) == 2

    def test_a_missing_topic_is_named(self, tmp_path):
        topic = self.topic(tmp_path)
        with pytest.raises(SinkError, match="can't read nowhere: the topic does not exist"):
            self.ready(tmp_path, topic="nowhere")
        assert topic


def test_a_live_partition_that_no_member_reads_opens_no_chain():
    """It has gone to another member meanwhile, which the transactions of a chain that knows none would not heed."""
    source = {"type": "kafka", "servers": "localhost:1", "topics": "in"}
    infer = [{"as": "tag", "backend": {"type": "constant"}}]
    spec = JobSpec.model_validate({"source": source, "infer": infer, "sink": {"type": "kafka", "topic": "out"}})
    with pytest.raises(SinkError, match="lost while its chain was opened") as failed:
        open_sink(spec, JobContext()).open(split_of(Partition("in", 0), "topic-id"))
    assert failed.value.transient
