"""Columns to Avro and back: every type that Avro can hold, exactly; a schema of the user's that fits or is refused."""

from __future__ import annotations

import io
import json

import fastavro
import pyarrow as pa
import pytest

from tagstream.schemas.errors import SpecError
from tagstream.transforms.io.kafka.avro_rows import AvroRows, avro_schema
from tests.transforms.io.source_contract import columns_of_all_types

UTC = "datetime.timezone.utc"
LABELS = pa.schema([("id", pa.string()), ("n", pa.int32()), ("tag", pa.string()), ("tag_score", pa.float32())])
ROWS = pa.RecordBatch.from_pylist([{"id": "a", "n": 1, "tag": "ham", "tag_score": 0.5}, {"id": "b"}], LABELS)


def read(value, schema):
    body = io.BytesIO(value)
    record = fastavro.schemaless_reader(body, fastavro.parse_schema(schema), None)
    assert not body.read(), "nothing is left over"
    return record


def plain(value):
    """Arrow's values as Avro holds them: durations are integers, map entries records, names have no dots."""
    if isinstance(value, dict):
        return {key.replace(".", "_"): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [{"key": i[0], "value": plain(i[1])} if isinstance(i, tuple) else plain(i) for i in value]
    return value


def test_every_type_comes_back():
    """Nulls, nested columns and slices included; an outside reader sees times as times, decimals as decimals."""
    table = columns_of_all_types(60)
    batch = pa.RecordBatch.from_arrays(list(table.values()), names=list(table)).slice(2)
    rows = AvroRows(batch.schema, "a job")
    values = rows(batch)
    assert len(values) == 58
    table |= {"duration": table["duration"].cast(pa.int64()), "uint64": table["uint64"].cast(pa.decimal128(20, 0))}
    wanted = pa.RecordBatch.from_arrays(list(table.values()), names=list(table)).slice(2)
    for value, row in zip(values, wanted.to_pylist(), strict=True):
        assert str(read(value, rows.schema)) == str(plain(row)).replace("zoneinfo.ZoneInfo(key='UTC')", UTC)


def test_the_finest_times_are_not_rounded():
    """Nanoseconds survive, although Python's own types can't hold them."""
    times = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC"))
    rows = AvroRows(pa.schema([("t", times.type)]), "x")
    (value,) = rows(pa.RecordBatch.from_arrays([times], ["t"]))
    assert rows.schema["fields"][0]["type"][1] == {"type": "long", "logicalType": "timestamp-nanos"}
    assert read(value, AvroRows(pa.schema([("t", pa.int64())]), "x").schema) == {"t": times.cast(pa.int64())[0].as_py()}


def test_names_that_avro_does_not_allow():
    """Forbidden characters become underscores, and the schema keeps the column's own name. Clashes are refused."""
    schema = avro_schema(pa.schema([("user.name", pa.string()), ("1st", pa.int8())]), "sms-spam.v2")
    assert (schema["name"], schema["namespace"]) == ("sms_spam_v2", "tagstream")
    assert [(f["name"], f["column"]) for f in schema["fields"]] == [("user_name", "user.name"), ("_1st", "1st")]
    with pytest.raises(SpecError, match="two columns would have the Avro name 'a_b'"):
        avro_schema(pa.schema([("a.b", pa.string()), ("a_b", pa.string())]), "x")
    with pytest.raises(SpecError, match="Avro has no type for column 'u'"):
        avro_schema(pa.schema([("u", pa.dense_union([pa.field("a", pa.int8())]))]), "x")


def given(tmp_path, *fields):
    path = tmp_path / "labels.avsc"
    path.write_text(json.dumps({"type": "record", "name": "com.example.Label", "doc": "mine", "fields": list(fields)}))
    return str(path)


ID = {"name": "id", "type": "string"}
N = {"name": "n", "type": ["null", "long"]}
TAG = {"name": "tag", "type": ["null", {"type": "enum", "name": "Tag", "symbols": ["ham", "spam"]}]}
SCORE = {"name": "tag_score", "type": ["double", "null"]}


def test_a_schema_of_the_users(tmp_path):
    """A given schema may reorder, rename, widen, use an enumeration, leave out null, and add a constant field."""
    rows = AvroRows(LABELS, "x", given(tmp_path, SCORE, TAG, N, ID, {"name": "v", "type": "int", "default": 7}))
    assert (rows.schema["name"], rows.schema["doc"]) == ("com.example.Label", "mine")
    first, second = rows(ROWS)
    assert read(first, rows.schema) == {"tag_score": 0.5, "tag": "ham", "n": 1, "id": "a", "v": 7}
    assert read(second, rows.schema) == {"tag_score": None, "tag": None, "n": None, "id": "b", "v": 7}


def test_a_row_that_the_schema_can_not_hold(tmp_path):
    """Only the row that does not fit has no value."""
    rows = AvroRows(LABELS, "x", given(tmp_path, ID, {"name": "n", "type": "int"}, TAG, SCORE))
    assert [value is None for value in rows(ROWS)] == [False, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((ID, N, TAG), "there is no field for column 'tag_score'"),
        ((ID, N, TAG, SCORE, {"name": "v", "type": "int"}), "field 'v' has no default, and the job has no such column"),
        (({"name": "id", "type": "int"}, N, TAG, SCORE), 'field \'id\' is "int", but the column is "string"'),
        ((ID, {"name": "n", "type": {"type": "int", "logicalType": "date"}}, TAG, SCORE), "field 'n' is"),
        (({"name": "id", "type": "nonsense"}, N, TAG, SCORE), "not an Avro schema"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(tmp_path, fields, message):
    with pytest.raises(SpecError, match=message):
        AvroRows(LABELS, "x", given(tmp_path, *fields))
    with pytest.raises(SpecError, match="not an Avro schema"):
        AvroRows(LABELS, "x", str(tmp_path / "nowhere.avsc"))
