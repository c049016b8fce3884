"""One type for all files: exact for every value of each, or none."""

from __future__ import annotations

from itertools import permutations

import pyarrow as pa
import pytest

from tagstream.transforms.io.parquet.unify import needs_proof, plain_type, unified

T = pa.timestamp
UNIFIED: list[tuple[list[pa.DataType], pa.DataType | None]] = [
    ([pa.string()], pa.string()),
    ([pa.large_string(), pa.large_string()], pa.large_string()),
    ([pa.string(), pa.large_string(), pa.string_view()], pa.string()),
    ([pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string())], pa.string()),
    ([pa.dictionary(pa.int8(), pa.large_string()), pa.string()], pa.string()),
    ([pa.dictionary(pa.int8(), pa.string()), pa.null()], pa.dictionary(pa.int8(), pa.string())),
    ([pa.null(), pa.null()], pa.null()),
    ([pa.binary(), pa.binary(4), pa.large_binary(), pa.binary_view()], pa.binary()),
    ([pa.string(), pa.binary()], None),
    ([pa.string(), pa.int64()], None),
    ([pa.int8(), pa.int32(), pa.int16()], pa.int32()),
    ([pa.uint8(), pa.uint32()], pa.uint32()),
    ([pa.uint8(), pa.int8()], pa.int16()),
    ([pa.uint32(), pa.int8()], pa.int64()),
    ([pa.uint16(), pa.int64()], pa.int64()),
    ([pa.uint64(), pa.int64()], None),
    ([pa.uint64(), pa.int8()], None),
    ([pa.uint64(), pa.uint8()], pa.uint64()),
    ([pa.float32(), pa.float64()], pa.float64()),
    ([pa.float16(), pa.float32()], pa.float32()),
    ([pa.int16(), pa.float32()], pa.float32()),
    ([pa.int32(), pa.float32()], pa.float64()),
    ([pa.uint16(), pa.int16(), pa.float32()], pa.float32()),
    ([pa.int64(), pa.float64()], pa.float64()),  # if all values prove exact
    ([pa.bool_(), pa.int8()], None),
    ([pa.decimal128(10, 2), pa.decimal128(12, 4)], pa.decimal128(12, 4)),
    ([pa.decimal128(10, 0), pa.decimal128(12, 6)], pa.decimal128(16, 6)),
    ([pa.decimal128(38, 0), pa.decimal128(10, 9)], pa.decimal256(47, 9)),
    ([pa.decimal256(76, 0), pa.decimal128(10, 9)], None),
    ([pa.decimal128(10, 2), pa.int32()], pa.decimal128(12, 2)),
    ([pa.decimal128(10, 2), pa.float64()], None),
    ([T("us"), T("ns"), T("ms")], T("ns")),
    ([T("us", "UTC"), T("ms", "UTC")], T("us", "UTC")),
    ([T("us"), T("us", "UTC")], None),
    ([T("us", "UTC"), T("us", "Europe/Berlin")], None),
    ([pa.time32("ms"), pa.time64("us")], pa.time64("us")),
    ([pa.duration("s"), pa.duration("ns")], pa.duration("ns")),
    ([pa.date32(), pa.date64()], pa.date32()),
    ([pa.date32(), T("us")], None),
    ([pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int64())])], pa.struct([("a", pa.int64())])),
    ([pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())])], None),
    ([pa.list_(pa.int8()), pa.list_(pa.int32())], pa.list_(pa.int32())),
    ([pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2)], pa.list_(pa.int8())),
    ([pa.list_(pa.int8(), 2), pa.list_(pa.int16(), 2)], pa.list_(pa.int16(), 2)),
    ([pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string())),
    ([pa.list_(pa.int8()), pa.list_(pa.string())], None),
    ([pa.map_(pa.string(), pa.int8()), pa.map_(pa.large_string(), pa.int64())], pa.map_(pa.string(), pa.int64())),
    ([pa.list_(pa.int8()), pa.int8()], None),
    ([pa.list_view(pa.int8()), pa.list_(pa.int8())], None),
]  # fmt: skip


@pytest.mark.parametrize(("types", "expected"), UNIFIED, ids=str)
def test_unified(types: list[pa.DataType], expected: pa.DataType | None) -> None:
    """Whatever the order of the files, how often a type comes, and whether some files have only nulls."""
    for order in permutations(types):
        assert unified(order) == expected
        assert unified([*order, pa.null(), order[0]]) == expected


def test_fields_of_structs_add_up() -> None:
    """A field that a file lacks is null there."""
    one, other = pa.struct([("a", pa.int8()), ("b", pa.string())]), pa.struct([("c", pa.bool_()), ("a", pa.int64())])
    assert unified([one, other]) == pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.bool_())])


@pytest.mark.parametrize(
    ("kind", "into", "expected"),
    [
        (pa.int64(), pa.float64(), True),
        (pa.uint64(), pa.float64(), True),
        (pa.int32(), pa.float64(), False),
        (pa.float32(), pa.float64(), False),
        (T("us"), T("ns"), True),
        (T("ns"), T("ns"), False),
        (pa.duration("s"), pa.duration("ms"), True),
        (pa.time32("s"), pa.time64("ns"), False),
        (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.float64())]), True),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), True),
        (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64()), True),
        (pa.list_(pa.int8()), pa.list_(pa.int64()), False),
    ],
    ids=str,
)
def test_needs_proof(kind: pa.DataType, into: pa.DataType, expected: bool) -> None:
    """Where not every value of the type fits."""
    assert needs_proof(kind, into) is expected


def test_plain_type() -> None:
    """Extension types are their storage, at any depth; other types are returned as they are."""
    uuid = pa.uuid()
    assert plain_type(uuid) == pa.binary(16)
    assert plain_type(pa.list_(pa.struct([("u", uuid)]))) == pa.list_(pa.struct([("u", pa.binary(16))]))
    assert plain_type(pa.map_(pa.string(), pa.json_())) == pa.map_(pa.string(), pa.string())
    for kind in (pa.list_(pa.int8()), pa.map_(pa.string(), pa.int8()), pa.list_view(pa.int8())):
        assert plain_type(kind) is kind
