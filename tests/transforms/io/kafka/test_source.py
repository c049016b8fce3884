"""A Kafka topic with an end keeps every promise of a source, against a real broker."""

from __future__ import annotations

import contextlib
import hashlib

import pyarrow as pa
import pytest
from kafka import KafkaProducer
from pydantic import ValidationError

from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import Blocks
from tagstream.transforms.io.kafka import source as kafka_source
from tagstream.transforms.io.kafka.client.cluster import HEADERS, Cluster, Partition
from tagstream.transforms.io.registry import open_source
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.stop import Stop
from tests.transforms.io.source_contract import SourceContract, job

pytestmark = pytest.mark.xdist_group("kafka-jobs")


def test_a_standstill_is_an_error(kafka, monkeypatch):
    """If messages do not come, the read fails after a while, or ends when the job is asked to stop."""
    monkeypatch.setattr(kafka_source, "STANDSTILL_SECONDS", 1.5)
    topic = kafka.create_topic("standstill", 1)
    with contextlib.closing(KafkaProducer(bootstrap_servers=kafka.servers)) as producer:
        for _ in range(5):
            producer.send(topic, b"x")
    stop = Stop()
    where = Cluster(kafka.servers), Partition(topic, 0)
    read = lambda: kafka_source.read_partition(*where, 0, 100, Blocks(), stop.is_set)  # noqa: E731
    with pytest.raises(SourceError, match=r"sent nothing for 1.5 s, and 95 positions are left to read") as error:
        list(read())
    assert error.value.transient
    stop.request()
    assert [(start, stop) for start, stop, _ in read()] == [(0, 5)]


class TestKafkaSource(SourceContract):
    """A table is a topic: `split_rows` rows a partition, the id as the key, the text as the value."""

    id = "key"

    @pytest.fixture(autouse=True)
    def _broker(self, kafka):
        self.kafka = kafka
        self.topics = {}

    def open_source(self, folder, table, blocks, **settings):
        rows = settings.pop("split_rows")
        topic = "source-" + hashlib.md5(str(folder).encode()).hexdigest()
        if topic not in self.topics:
            self.topics[topic] = self.kafka.create_topic(topic, -(-table.num_rows // rows) or 1)
            self.fill(topic, table, rows)
        source = {"type": "kafka", "servers": self.kafka.servers, "topics": topic, "until": "latest"}
        return open_source(job({**source, **settings}, **blocks), JobContext())

    def fill(self, topic, table, rows):
        texts = table["text"].cast(pa.large_binary()).to_pylist()
        ids = table["id"].to_pylist() if "id" in table.column_names else range(len(texts))
        producer = KafkaProducer(bootstrap_servers=self.kafka.servers)
        for number, (id_, text) in enumerate(zip(ids, texts, strict=True)):
            key, headers = b"%d" % id_, [("n", b"%d" % number)]
            producer.send(topic, text, key, headers, partition=number // rows, timestamp_ms=1000 + number)
        producer.close(30)

    def ids(self, block):
        return [int(key) for key in block.batch.column("key").to_pylist()]

    def test_all_columns(self, tmp_path):
        """Refused: what fields messages have is not known before they are read."""
        with pytest.raises(ValidationError, match=r"list the fields to keep, for example keep: \[topic, offset\]"):
            self.source(tmp_path, id=None, keep="*")

    def test_kept_columns_pass_unchanged(self, tmp_path):
        """A message has these columns and no other, in the order asked for."""
        names = ["timestamp", "headers", "topic", "offset", "partition", "key"]
        table = pa.table({"id": range(60), "text": [f"t{i}" for i in range(60)]})
        source = self.source(tmp_path, table, {"rows": 7}, split_rows=20, id=None, keep=names)
        types = [pa.timestamp("ms"), HEADERS, pa.string(), pa.int64(), pa.int32(), pa.binary()]
        assert source.kept == pa.schema(list(zip(names, types, strict=True)))
        blocks = [b for split in source.splits() for b in self.read(source, split, split.start)]
        rows = pa.Table.from_batches([b.batch for b in blocks])
        assert rows["timestamp"].cast(pa.int64()).to_pylist() == [1000 + i for i in range(60)]
        assert [h[0]["value"] for h in rows["headers"].to_pylist()] == [b"%d" % i for i in range(60)]
        assert rows["partition"].to_pylist() == [i // 20 for i in range(60)]
        assert rows["offset"].to_pylist() == [i % 20 for i in range(60)]
        assert set(rows["topic"].to_pylist()) == set(self.topics)
        assert rows[TEXT].to_pylist() == table["text"].to_pylist()

    def test_no_rows_no_splits(self, tmp_path):
        """A partition is there before its first message: a split of no rows."""
        (split,) = self.source(tmp_path, pa.table({"id": [], "text": pa.array([], pa.string())})).splits()
        assert (split.rows, split.start) == (0, split.stop)

    test_wrong_columns_before_work_starts = None
    """Which columns there are is known without a look at the topic: tests/transforms/io/kafka/test_payloads.py."""

    def test_markers_and_aborted_messages_are_covered(self, tmp_path):
        """Offsets without a message are in some span, and in no block's rows."""
        source = self.source(tmp_path, pa.table({"id": range(2), "text": ["a", "b"]}))
        producer = KafkaProducer(bootstrap_servers=self.kafka.servers, transactional_id=str(tmp_path))
        producer.init_transactions()
        for end in ("abort", "commit", "abort"):
            producer.begin_transaction()
            for number in range(3):
                producer.send(next(iter(self.topics)), f"{end} {number}".encode(), b"%d" % number)
            producer.flush()
            getattr(producer, f"{end}_transaction")()
        producer.close()
        assert self.rows(source, TEXT) == ["a", "b", "commit 0", "commit 1", "commit 2"]
        (split,) = source.splits()
        assert split.stop == 2 + 3 * 4
