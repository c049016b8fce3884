"""Avro in and Avro out, with and without a schema registry: a real broker, a real registry."""

from __future__ import annotations

import io
import json

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from rich.console import Console

from tagstream.pipelines.jobs.job import values_schema
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import SinkError, SourceError
from tests.pipelines.kafka.kafka_jobs import Topics, headers_of, running
from tests.services.java import wait_until
from tests.services.kafka_faults import count

pytestmark = pytest.mark.xdist_group("kafka-jobs")
MESSAGE = {
    "type": "record",
    "name": "M",
    "fields": [{"name": "body", "type": "string"}, {"name": "n", "type": "int"}],
}
QUIET = {"timeout": 2, "max.retries": 0}


@pytest.fixture
def topics(kafka):
    return Topics(kafka)


def packed(schema, record):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), record)
    return body.getvalue()


def unpacked(schema, value):
    body = io.BytesIO(value)
    record = fastavro.schemaless_reader(body, fastavro.parse_schema(schema), None)
    assert not body.read()
    return record


def test_avro_by_a_given_schema(topics, tmp_path):
    """Records of a given schema are read. Other messages are dead letters."""
    (tmp_path / "m.avsc").write_text(json.dumps(MESSAGE))
    value = b"\x00\x00\x00\x00\x07" + packed(MESSAGE, {"body": "hello", "n": 5})
    topics.send([value, b"\x00", b"junk that is long enough"], partition=0)
    avro = {"payload": "avro", "avro_schema": str(tmp_path / "m.avsc"), "avro_framing": "confluent"}
    with running(topics.spec(avro | {"text": "body", "keep": ["n"]})):
        wait_until(lambda: count(topics.servers, topics.dead) == 2, 60, "two dead letters")
    assert json.loads(topics.all(topics.target)[0].value)["n"] == "5"
    assert {headers_of(r)["tagstream.code"] for r in topics.all(topics.dead)} == {b"bad_payload"}


def test_avro_out(topics):
    """Bare records without a registry; key and timestamp stay."""
    topics.send([b"hello"], key=b"k", timestamp_ms=1234, partition=1)
    spec = topics.spec({"id": "key", "keep": ["offset", "timestamp"], "until": "latest"}, {"mode": "avro"})
    run_job(spec, Console(file=io.StringIO()))
    (record,) = topics.all(topics.target)
    assert (record.key, record.partition, record.timestamp) == (b"k", 1, 1234)
    schema = values_schema(spec)
    assert [field["name"] for field in schema["fields"]][:3] == ["key", "offset", "timestamp"]
    row = unpacked(schema, record.value)
    assert (row["key"], row["offset"], row["tag"], row["tag_score"]) == (b"k", 0, "constant", 1.0)


def test_a_row_that_the_schema_can_not_hold_is_a_dead_letter(topics, tmp_path):
    """A row that the schema can't hold is a dead letter with its bytes, and is counted as one."""
    fields = [{"name": n, "type": t} for n, t in (("key", "bytes"), ("tag", "string"), ("tag_score", "float"))]
    fields.append({"name": "tag_truncated", "type": "boolean"})
    (tmp_path / "out.avsc").write_text(json.dumps({"type": "record", "name": "Mine", "fields": fields}))
    topics.send([b"a", b"b"], key=b"k", partition=0)
    topics.send([b"no key"], partition=0)
    sink = {"mode": "avro", "avro_schema": str(tmp_path / "out.avsc")}
    report = run_job(topics.spec({"id": "key", "until": "latest"}, sink, max_dead=1), Console(file=io.StringIO()))
    assert (report.counts.rows_in, report.counts.rows_out, report.counts.dead) == (3, 2, {"refused": 1})
    (letter,) = topics.all(topics.dead)
    assert (letter.value, headers_of(letter)["tagstream.code"]) == (b"no key", b"refused")
    assert len(topics.all(topics.target)) == 2


def test_through_a_registry(topics, registry):
    """Confluent's own serializers at both ends; several schemas in one topic; unknown ids are dead letters."""
    client = SchemaRegistryClient({"url": registry.url})
    newer = {**MESSAGE, "fields": [*MESSAGE["fields"], {"name": "lang", "type": "string", "default": "?"}]}
    context = SerializationContext(topics.source, MessageField.VALUE)
    values = [
        AvroSerializer(client, json.dumps(schema))(record, context)
        for schema, record in (
            (MESSAGE, {"body": "hello", "n": 5}),
            (newer, {"body": "hallo", "n": 6, "lang": "de"}),
            (MESSAGE, {"body": "hi", "n": 7}),
        )
    ]
    other = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}
    foreign = client.register_schema("other-json", Schema(json.dumps(other), "JSON"))
    bad = [b"\x00\x00\x0f\xff\xff\x02a", b"\x00" + foreign.to_bytes(4, "big") + b"{}", b"plain"]
    topics.send([*values, *bad], partition=0)
    known = {"registry": {"url": registry.url}}
    spec = topics.spec(
        {"payload": "avro", "text": "body", "keep": ["n", "lang"]} | known | {"until": "latest"},
        {"mode": "avro"} | known,
        max_dead=1,
    )
    run_job(spec, Console(file=io.StringIO()))
    read = AvroDeserializer(client)
    context = SerializationContext(topics.target, MessageField.VALUE)
    rows = [read(record.value, context) for record in topics.all(topics.target)]
    assert [(row["n"], row["lang"], row["tag"]) for row in rows] == [
        ("5", None, "constant"),
        ("6", "de", "constant"),
        ("7", None, "constant"),
    ]
    assert json.loads(client.get_latest_version(f"{topics.target}-value").schema.schema_str)["name"]
    reasons = [headers_of(r)["tagstream.message"].decode() for r in topics.all(topics.dead)]
    assert [r.value for r in topics.all(topics.dead)] == bad
    assert "no schema with id 1048575" in reasons[0]
    assert "is JSON, not Avro" in reasons[1]
    assert "no schema id precedes" in reasons[2]


def test_schemas_that_refer_to_others(topics, registry):
    """A schema may refer to named types of another subject."""
    client = SchemaRegistryClient({"url": registry.url})
    user = {"type": "record", "name": "com.example.User", "fields": [{"name": "name", "type": "string"}]}
    client.register_schema(f"{topics.name}-user", Schema(json.dumps(user), "AVRO"))
    fields = [{"name": "body", "type": "string"}, {"name": "user", "type": "com.example.User"}]
    whole = {"type": "record", "name": "M", "fields": fields}
    reference = SchemaReference("com.example.User", f"{topics.name}-user", 1)
    schema_id = client.register_schema(f"{topics.source}-value", Schema(json.dumps(whole), "AVRO", [reference]))
    inline = {**whole, "fields": [fields[0], {"name": "user", "type": user}]}
    value = packed(inline, {"body": "hello", "user": {"name": "ann"}})
    topics.send([b"\x00" + schema_id.to_bytes(4, "big") + value])
    source = {"payload": "avro", "text": "body", "keep": ["user.name"], "registry": {"url": registry.url}}
    run_job(topics.spec(source | {"until": "latest"}), Console(file=io.StringIO()))
    assert json.loads(topics.all(topics.target)[0].value)["user.name"] == "ann"


def test_a_schema_that_the_registry_does_not_take_stops_the_job(topics, registry):
    """The job stops before anything is written, with the registry's reason."""
    client = SchemaRegistryClient({"url": registry.url})
    subject = f"{topics.target}-value"
    client.register_schema(subject, Schema(json.dumps(MESSAGE), "AVRO"))
    client.set_compatibility(subject, "FULL")
    topics.send([b"hello"])
    spec = topics.spec({"until": "latest"}, {"mode": "avro", "registry": {"url": registry.url}})
    with pytest.raises(SinkError, match=f"does not accept this job's schema as a version of subject '{subject}'"):
        run_job(spec, Console(file=io.StringIO()))
    assert not topics.labelled()


def test_a_registry_that_does_not_answer(topics):
    """The error comes at once, and no message becomes a dead letter."""
    topics.send([b"\x00\x00\x00\x00\x01" + packed(MESSAGE, {"body": "hello", "n": 5})])
    away = {"registry": {"url": "http://user:secret@127.0.0.1:1", "client": QUIET}}
    quiet = Console(file=io.StringIO())
    with pytest.raises(SinkError, match=r"registry at 127\.0\.0\.1:1 does not answer"):
        run_job(topics.spec({"until": "latest"}, {"mode": "avro"} | away), quiet)
    with pytest.raises(SourceError, match=r"registry at 127\.0\.0\.1:1 does not answer"):
        run_job(topics.spec({"payload": "avro", "text": "body", "until": "latest"} | away), quiet)
    assert not topics.all(topics.dead)


def test_a_live_job_waits_for_its_registry(topics, mortal_registry):
    """Messages that arrive while the registry is away are labelled later, and none becomes a dead letter."""
    client = SchemaRegistryClient({"url": mortal_registry.url})
    schema_id = client.register_schema("m-value", Schema(json.dumps(MESSAGE), "AVRO"))
    value = b"\x00" + schema_id.to_bytes(4, "big") + packed(MESSAGE, {"body": "hello", "n": 5})
    mortal_registry.freeze()
    topics.send([value] * 3)
    console = Console(file=io.StringIO(), width=300)
    source = {"payload": "avro", "text": "body", "registry": {"url": mortal_registry.url, "client": QUIET}}
    with running(topics.spec(source), console):
        wait_until(lambda: "trying again" in console.file.getvalue(), 60, "the job says so", 0.1)
        mortal_registry.thaw()
        wait_until(lambda: topics.labelled() == 3, 60, "labels", 0.3)
    assert not topics.all(topics.dead)
