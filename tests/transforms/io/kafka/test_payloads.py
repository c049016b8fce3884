"""Each message is decoded, or has a code and a reason. Other messages are not affected."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.errors import DeadCode, SpecError
from tagstream.schemas.kafka_spec import KafkaSource
from tagstream.transforms.io.kafka.payloads import Decoder


def source(**fields):
    return KafkaSource.model_validate({"servers": "unused:1", "topics": "t", **fields})


JSON = Decoder(source(payload="json", text="a.b", id="key", keep=["n", "offset"]))


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (None, DeadCode.NULL_TEXT, "no value"),
        (b'{"a": {"b": null}}', DeadCode.NULL_TEXT, "'a.b' is null"),
        (b'{"a": {}}', DeadCode.BAD_SCHEMA, "'a.b' is missing"),
        (b'{"a": "b"}', DeadCode.BAD_SCHEMA, "'a.b' is missing"),
        (b'{"a": {"b": 5}}', DeadCode.BAD_SCHEMA, "int, not text"),
        (b'"text"', DeadCode.BAD_SCHEMA, "missing"),
        (b"", DeadCode.BAD_PAYLOAD, "not JSON"),
        (b"{", DeadCode.BAD_PAYLOAD, "not JSON"),
        (b"[" * 100_000, DeadCode.BAD_PAYLOAD, "nested too deeply"),
        (b'{"a": {"b": "\xff"}}', DeadCode.BAD_ENCODING, "UTF-8"),
        (b'{"a": {"b": "\\ud800"}}', DeadCode.BAD_ENCODING, "surrogate"),
    ],
)
def test_what_can_not_be_decoded_has_a_reason(value, code, message):
    good = b'{"a": {"b": "hi"}, "n": [1, "x"]}'
    decoded = JSON(pa.array([good, value, good], pa.binary()))
    assert decoded.texts.to_pylist() == ["hi", None, "hi"]
    assert decoded.fields["n"].to_pylist() == ['[1, "x"]', None, '[1, "x"]']
    assert decoded.errors[1][0] == code
    assert message in decoded.errors[1][1]
    assert list(decoded.errors) == [1]


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.none(), st.text().map(lambda t: json.dumps({"a": {"b": t}}).encode()))
    )
)
def test_each_row_has_a_text_or_an_error(values):
    decoded = JSON(pa.array(values, pa.binary()))
    assert len(decoded.texts) == len(values)
    assert {row for row, text in enumerate(decoded.texts.to_pylist()) if text is None} == set(decoded.errors)


def test_plain_text_is_not_copied_or_judged():
    decoded = Decoder(source())(pa.array([b"hi", None, b"\xff"], pa.binary()))
    assert decoded.texts.cast(pa.large_binary()).to_pylist() == [b"hi", None, b"\xff"]
    assert not decoded.errors


def test_a_schema_that_is_none_is_a_spec_error(tmp_path):
    (tmp_path / "bad.avsc").write_text("{}")
    with pytest.raises(SpecError, match="not an Avro schema"):
        Decoder(source(payload="avro", avro_schema=str(tmp_path / "bad.avsc")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": ["user.name"]}, "with payload: text a message has no field 'user.name'"),
        ({"payload": "avro"}, "payload: avro needs avro_schema or registry"),
        ({"registry": {"url": "http://r"}}, "these need payload: avro"),
        ({"start": "yesterday"}, "none of earliest, latest, committed"),
        ({"topics": []}, "at least 1"),
    ],
)
def test_a_source_that_can_not_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        source(**fields)
