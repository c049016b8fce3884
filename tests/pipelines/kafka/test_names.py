"""Jobs and strangers whose names begin alike do not touch each other's positions."""

from __future__ import annotations

import contextlib
import io
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.spec import JobSpec
from tests.pipelines.kafka.kafka_jobs import Topics

pytestmark = pytest.mark.xdist_group("kafka")


@pytest.fixture
def topics(kafka):
    return Topics(kafka, partitions=1)


def rows_to_topic(topics, folder, name, **job):
    """A job from ten rows of Parquet to the topic."""
    file = folder / "in.parquet"
    if not file.exists():
        pq.write_table(pa.table({"id": range(10), "text": [f"t{i}" for i in range(10)]}), file)
    return JobSpec.model_validate(
        {
            "name": name,
            "source": {"type": "parquet", "path": str(file), "id": "id", "split_rows": 5},
            "infer": [{"as": "tag", "backend": {"type": "constant"}}],
            "sink": {"type": "kafka", "servers": topics.servers, "topic": topics.target},
            **job,
        }
    )


def messages_to_topic(topics, _, name, **job):
    """A job from ten messages to the topic."""
    if not topics.all(topics.source):
        topics.send([b"%d" % i for i in range(10)])
    return topics.spec({"until": "latest", "group": name, "keep": ["offset"]}, name=name, **job)


def labelled(spec, **kwargs):
    return run_job(spec, Console(file=io.StringIO()), **kwargs).counts.rows_out


def offset_of(topics, group, topic):
    with topics.broker.admin() as admin:
        found = admin.list_group_offsets([group])[group]
    return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}


@pytest.mark.parametrize("job", [rows_to_topic, messages_to_topic])
def test_overwrite_forgets_the_positions_of_this_job_alone(topics, tmp_path, job):
    """Not those of a job whose name begins with ours, nor of a stranger's group that reads the output."""
    mine, theirs = (job(topics, tmp_path, name) for name in (topics.name, f"{topics.name}.de"))
    assert (labelled(mine), labelled(theirs)) == (10, 10)
    stranger = f"{topics.name}.billing"
    with contextlib.closing(KafkaConsumer(bootstrap_servers=topics.servers, group_id=stranger)) as reader:
        reader.assign([TopicPartition(topics.target, 0)])
        reader.commit({TopicPartition(topics.target, 0): OffsetAndMetadata(7, "", -1)})
    assert (labelled(mine), labelled(theirs)) == (0, 0)
    assert labelled(mine, overwrite=True) == 10
    assert (labelled(mine), labelled(theirs)) == (0, 0)
    assert offset_of(topics, stranger, topics.target) == {0: 7}
    key = "id" if job is rows_to_topic else "offset"
    values = sorted(str(json.loads(record.value)[key]) for record in topics.all(topics.target))
    assert [len(list(same)) for _, same in itertools.groupby(values)] == [3] * 10


def test_overwrite_leaves_what_others_keep_in_the_same_groups(topics, tmp_path):
    """Another program's offset of another topic, and the group of a job that is called like our replays."""
    mine = messages_to_topic(topics, tmp_path, topics.name)
    theirs = messages_to_topic(topics, tmp_path, f"{topics.name}.replay")
    elsewhere = topics.broker.create_topic(f"{topics.name}-elsewhere")
    assert (labelled(mine), labelled(theirs)) == (10, 10)
    with contextlib.closing(KafkaConsumer(bootstrap_servers=topics.servers, group_id=topics.name)) as reader:
        reader.assign([TopicPartition(elsewhere, 0)])
        reader.commit({TopicPartition(elsewhere, 0): OffsetAndMetadata(3, "", -1)})
    assert labelled(mine, overwrite=True) == 10
    assert (labelled(mine), labelled(theirs)) == (0, 0)
    assert offset_of(topics, topics.name, elsewhere) == {0: 3}
