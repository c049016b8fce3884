"""The ledger topic keeps the positions when Kafka has forgotten the groups' offsets."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer, TopicPartition, errors
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ResourcePattern,
    ResourceType,
)
from kafka.structs import OffsetAndMetadata
from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import LedgerError, SinkError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.chain import forget_ends
from tagstream.transforms.io.kafka.client.cluster import Cluster
from tagstream.transforms.io.kafka.client.factory import make_producer
from tagstream.transforms.io.kafka.ledger import Ledger
from tests.pipelines.kafka.kafka_jobs import Topics, running
from tests.services.java import wait_until
from tests.services.kafka import KafkaBroker

pytestmark = pytest.mark.xdist_group("kafka")
LIBRARIES = pytest.mark.parametrize("library", ["kafka-python", "confluent-kafka"])


@pytest.fixture
def topics(kafka):
    return Topics(kafka)


class Rows:
    """A job from Parquet to a topic."""

    def __init__(self, topics, folder, library="kafka-python"):
        self.topics, self.folder, self.sent = topics, folder, 0
        self.spec = JobSpec.model_validate(
            {
                "name": topics.name,
                "source": {"type": "parquet", "path": str(folder), "id": "text", "split_rows": 10},
                "infer": [{"as": "tag", "backend": {"type": "constant"}}],
                "sink": {"type": "kafka", "servers": topics.servers, "topic": topics.target, "producer": library},
            }
        )

    def send(self, count):
        texts = [f"text {i}" for i in range(self.sent, self.sent + count)]
        pq.write_table(pa.table({"text": texts}), self.folder / f"{self.sent}.parquet")
        self.sent += count

    def run(self, **kwargs):
        run_job(self.spec, Console(file=io.StringIO()), **kwargs)

    def counts(self):
        """How often each text of the input is in the output: text -> times, for those that are not there once."""
        values = Counter(json.loads(record.value)["text"] for record in self.topics.all(self.topics.target))
        wanted = {f"text {i}" for i in range(self.sent)}
        return {text: values[text] for text in wanted | values.keys() if values[text] != 1}


class Messages(Rows):
    """A job from topic to topic that ends."""

    def __init__(self, topics, _, library="kafka-python"):
        self.topics, self.sent = topics, 0
        self.spec = topics.spec(
            {"until": "latest", "payload": "json", "text": "text", "keep": ["text"]}, {"producer": library}
        )

    def send(self, count):
        self.topics.send([json.dumps({"text": f"text {i}"}).encode() for i in range(self.sent, self.sent + count)])
        self.sent += count


class Live(Messages):
    """A job from topic to topic that does not end by itself."""

    def __init__(self, topics, folder, library="kafka-python"):
        super().__init__(topics, folder, library)
        source = self.spec.source.model_copy(update={"until": None, "consumer": library})
        self.spec = self.spec.model_copy(update={"source": source})

    def run(self, **kwargs):
        with running(self.spec, **kwargs):
            wait_until(lambda: self.topics.labelled() >= self.sent, 60, "labels")


def groups_of(topics):
    with topics.broker.admin() as admin:
        names = [group["group_id"] for group in admin.list_groups()]
    return [name for name in names if name.startswith(topics.name)]


def forget_groups(topics):
    """As the broker does after `offsets.retention.minutes`. A member that has just ended may still be in its group."""

    def gone():
        with topics.broker.admin() as admin, contextlib.suppress(errors.KafkaError):
            admin.delete_groups(groups_of(topics))
        return not groups_of(topics)

    wait_until(gone, 30, "the groups are gone", 0.2)


def ledger_of(topics):
    return Ledger(Cluster(topics.servers), topics.target, topics.name)


@pytest.mark.parametrize(
    ("kind", "library"),
    [(Rows, "kafka-python"), (Rows, "confluent-kafka"), (Messages, "kafka-python"), (Live, "confluent-kafka")],
)
def test_goes_on_without_the_groups_offsets(topics, tmp_path, kind, library, caplog):
    job = kind(topics, tmp_path, library)
    job.send(25)
    job.run()
    forget_groups(topics)
    job.send(15)
    job.run()
    assert job.counts() == {}
    assert ("has no offset" in caplog.text) == (kind is not Rows)
    assert sum(entry.stop for entry in ledger_of(topics).entries().values()) >= 40


@pytest.mark.parametrize("kind", [Rows, Messages])
def test_output_of_before_the_ledger_is_continued(topics, tmp_path, kind):
    """What only the groups hold is copied when the job starts, so that it may expire afterwards."""
    job = kind(topics, tmp_path)
    job.send(25)
    job.run()
    entries = ledger_of(topics).entries()
    forget_ledger(topics)
    if kind is Rows:  # as the job wrote positions before: a group for each split
        for split, entry in entries.items():
            commit(topics, f"{topics.name}.{split}", OffsetAndMetadata(entry.stop, entry.note, -1))
    job.run()
    if kind is Rows:
        changed = {"infer": [{"as": "other", "backend": {"type": "constant"}}]}
        other = JobSpec.model_validate(job.spec.model_dump(by_alias=True) | changed)
        with pytest.raises(LedgerError, match="belongs to another job"):
            run_job(other, Console(file=io.StringIO()))
    forget_groups(topics)
    job.send(15)
    job.run()
    assert job.counts() == {}


def commit(topics, group, offset):
    """Commit the group's offset of partition 0 of the output. The first coordinator takes a while to come."""

    def done():
        with topics.broker.admin() as admin, contextlib.suppress(errors.CoordinatorNotAvailableError):
            return admin.alter_group_offsets(group, {TopicPartition(topics.target, 0): offset})

    wait_until(done, 60, "the offset is committed", 0.2)


def forget_ledger(topics):
    name = f"{topics.target}-ledger"
    with topics.broker.admin() as admin:
        admin.delete_topics([name])
        wait_until(lambda: not admin.describe_topics([name])[0]["partitions"], 30, "the ledger is gone")


def test_an_offset_that_the_broker_has_set_back(topics, tmp_path, caplog):
    """A lone broker that was killed can serve an old offset. A process that starts afresh learns the end anyway."""
    job = Live(topics, tmp_path)
    job.send(20)
    job.run()
    with topics.broker.admin() as admin:
        old = admin.list_group_offsets([topics.name])[topics.name]
    job.send(20)
    job.run()
    forget_ends(Cluster(topics.servers), f"{topics.name}/")

    def set_back():
        with topics.broker.admin() as admin, contextlib.suppress(errors.KafkaError):
            admin.alter_group_offsets(topics.name, old)
            return admin.list_group_offsets([topics.name])[topics.name] == old

    wait_until(set_back, 30, "the member has left", 0.2)
    job.send(5)
    job.run()
    assert job.counts() == {}
    assert "has the old offset" in caplog.text


def test_overwrite_begins_again(topics, tmp_path):
    """Though the ledger knows what the group has forgotten."""
    job = Live(topics, tmp_path)
    job.send(12)
    job.run()
    forget_groups(topics)
    job.sent = 24  # labels that the run waits for
    job.run(overwrite=True)
    assert sorted(job.counts().values()) == [0] * 12 + [2] * 12


def test_the_ledger_topic_is_compacted(topics, tmp_path):
    """The job creates it. One that forgets, or has two partitions, is refused with what to do."""
    job = Rows(topics, tmp_path)
    job.send(5)
    plan = plan_job(job.spec)  # changes nothing
    assert (plan.rows, plan.rows_done) == (5, 0)
    name = f"{topics.target}-ledger"
    topic = ConfigResource("topic", name)
    with topics.broker.admin() as admin:
        assert not admin.describe_topics([name])[0]["partitions"]
        job.run()
        assert admin.describe_configs([topic])["topic"][name]["cleanup.policy"]["value"] == "compact"
        for policy in ("delete", "compact,delete"):
            admin.alter_configs([ConfigResource("topic", name, {"cleanup.policy": policy})])
            with pytest.raises(SinkError, match=rf"has cleanup\.policy=({policy}|delete,compact): Kafka would delete"):
                job.run()
    forget_ledger(topics)
    topics.broker.create_topic(name, 2, **{"cleanup.policy": "compact"})
    with pytest.raises(SinkError, match="has 2 partitions and must have one"):
        job.run()


@LIBRARIES
def test_an_open_transaction_of_another_split_hides_nothing(topics, tmp_path, library):
    """A split waits for an open transaction only if a record of its own stands behind."""
    job = Rows(topics, tmp_path)
    job.send(5)
    Job.open(job.spec).sink.prepare(Job.open(job.spec).fingerprint(), overwrite=False)
    ledger = ledger_of(topics)
    mine, theirs = (make_producer(library, ledger.cluster, f"{topics.name}/{n}", None) for n in range(2))
    mine.start()
    mine.transact([ledger.record("a", 1, "f w"), ledger.record("b", 1, "f w")])
    other = KafkaProducer(bootstrap_servers=topics.servers, transactional_id=f"{topics.name}/other")
    with contextlib.closing(other):
        other.init_transactions()
        other.begin_transaction()
        record = ledger.record("c", 7, "f w")
        other.send(record.topic, record.value, record.key, partition=0).get(timeout=30)
        mine.transact([ledger.record("a", 2, "f w")])
        assert {split: entry.stop for split, entry in ledger.entries().items()} == {"a": 1, "b": 1}
        assert ledger.end("b").stop == 1
        timer = threading.Timer(1.0, other.abort_transaction)
        timer.start()
        assert ledger.end("a").stop == 2
        timer.join()
    assert ledger.end("c") is None
    mine.shut()
    theirs.shut()


def test_expired_offsets(tmp_path, long):
    """The broker itself forgets the offsets after a minute; see `test_goes_on_without_the_groups_offsets`."""
    if not long:
        pytest.skip("takes two minutes: --crash-long")
    (tmp_path / "kafka").mkdir()
    broker = KafkaBroker(tmp_path / "kafka", offsets_retention_minutes=1, offsets_retention_check_interval_ms=1000)
    try:
        broker.start()
        jobs = []
        for kind in (Rows, Messages, Live):
            (tmp_path / kind.__name__).mkdir()
            jobs.append(kind(Topics(broker), tmp_path / kind.__name__))
        for job in jobs:
            job.send(25)
            job.run()
        wait_until(lambda: not any(groups_of(job.topics) for job in jobs), 300, "the offsets have expired", 1)
        for job in jobs:
            job.send(15)
            job.run()
            assert job.counts() == {}
    finally:
        broker.close()


def test_a_user_who_may_not_create_topics_is_told_the_command(secure_kafka, tmp_path):
    """With the topic and its ACLs the same user's job runs."""
    topics = Topics(secure_kafka)
    client = secure_kafka.secure_client("stranger")
    job = Rows(topics, tmp_path)
    job.send(5)
    sink = {"servers": secure_kafka.secure_servers, "client": client}
    job.spec = job.spec.model_copy(update={"sink": job.spec.sink.model_copy(update=sink)})
    use = (ACLOperation.READ, ACLOperation.WRITE, ACLOperation.DESCRIBE)
    for kind in (ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID):
        allow(secure_kafka, ResourcePattern(kind, topics.name, ACLResourcePatternType.PREFIXED), *use)
    for topic in (topics.target, topics.dead):
        allow(secure_kafka, ResourcePattern(ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL), *use)
    with pytest.raises(SinkError, match=r"can't create the ledger topic .*kafka-topics\.sh .*cleanup\.policy=compact"):
        job.run()
    ledger = secure_kafka.create_topic(f"{topics.target}-ledger", **{"cleanup.policy": "compact"})
    pattern = ResourcePattern(ResourceType.TOPIC, ledger, ACLResourcePatternType.LITERAL)
    allow(secure_kafka, pattern, *use)
    with pytest.raises(SinkError, match=f"settings of the ledger topic '{ledger}': ask for an ACL, DescribeConfigs"):
        job.run()
    allow(secure_kafka, pattern, ACLOperation.DESCRIBE_CONFIGS)
    job.run()
    assert job.counts() == {}


def allow(broker, pattern, *operations):
    with broker.admin() as admin:
        admin.create_acls([ACL("User:stranger", "*", op, ACLPermissionType.ALLOW, pattern) for op in operations])
