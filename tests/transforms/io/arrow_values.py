"""A column of every Arrow type with the values at its edges: three rows, the last one null where it can be."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa

NAN, INF = float("nan"), float("inf")
FAR, FIRST = dt.datetime(9999, 12, 31, 23, 59, 59), dt.datetime(1, 1, 1)  # noqa: DTZ001  these types have no zone


def _integers() -> dict[str, pa.Array]:
    found = {}
    for bits in (8, 16, 32, 64):
        found[f"int{bits}"] = pa.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, None], f"int{bits}")
        found[f"uint{bits}"] = pa.array([0, 2**bits - 1, None], f"uint{bits}")
    return found


def _times() -> dict[str, pa.Array]:
    found = {
        "date32": pa.array([FIRST.date(), FAR.date(), None], pa.date32()),
        "date64": pa.array([FIRST.date(), FAR.date(), None], pa.date64()),
        "time32-s": pa.array([dt.time(23, 59, 59), dt.time(0), None], pa.time32("s")),
        "time32-ms": pa.array([86_399_999, 1, None], pa.int32()).view(pa.time32("ms")),
        "time64-us": pa.array([86_399_999_999, 1, None], pa.int64()).view(pa.time64("us")),
        "time64-ns": pa.array([86_399_999_999_999, 1, None], pa.int64()).view(pa.time64("ns")),
        "timestamp-ns": pa.array([2**63 - 1, -(2**63) + 1, None], pa.timestamp("ns")),
        "timestamp-ns-utc": pa.array([2**63 - 1, 1, None], pa.timestamp("ns", "UTC")),
        "timestamp-us-utc": pa.array([10**15 + 1, -1, None], pa.timestamp("us", "UTC")),
        "timestamp-us-zone": pa.array([10**15 + 1, 0, None], pa.timestamp("us", "Europe/Berlin")),
    }
    for unit in ("s", "ms", "us"):
        found[f"timestamp-{unit}"] = pa.array([FIRST, FAR, None], pa.timestamp(unit))
    for unit in ("s", "ms", "us", "ns"):
        found[f"duration-{unit}"] = pa.array([-5, 10**9 + 1, None], pa.duration(unit))
    return found


def _nested() -> dict[str, pa.Array]:
    pairs = pa.array([[("k", 1), ("k", 2)], [], None], pa.map_(pa.string(), pa.int32()))
    return {
        "list": pa.array([[1, None], [], None], pa.list_(pa.int32())),
        "large-list": pa.array([[1], [], None], pa.large_list(pa.int32())),
        "fixed-size-list": pa.array([[0.5, 1], [2, 3], [4, 5]], pa.list_(pa.float32(), 2)),
        "list-view": pa.array([[1], [], None], pa.list_view(pa.int32())),
        "list-of-text": pa.array([['a"\\', ""], ["ü", None], None]),
        "list-of-lists": pa.array([[[1], None], [], None], pa.list_(pa.list_(pa.int64()))),
        "list-of-bytes": pa.array([[b"\xff"], [], None], pa.list_(pa.binary())),
        "list-of-decimals": pa.array([[Decimal("1.10")], [], None], pa.list_(pa.decimal128(10, 2))),
        "struct": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": None}, None]),
        "struct-of-structs": pa.array([{"a": {"b": [1.5, None]}}, {"a": None}, None]),
        "struct-of-times": pa.array([{"t": FAR}, {"t": None}, None]),
        "struct-of-nan": pa.array([{"x": NAN}, {"x": -INF}, None]),
        "map": pairs,
        "map-of-times": pa.array([[("k", FAR)], [], None], pa.map_(pa.string(), pa.timestamp("us"))),
        "list-of-structs": pa.array([[{"a": 1}, None], [], [{"a": None}]]),
        "null-list-of-structs": pa.array([[{"a": 1}], None, []]),
        "map-of-numbers": pa.array([[(1, "x")], [], None], pa.map_(pa.int32(), pa.string())),
    }


VALUES: dict[str, pa.Array] = {
    "null": pa.nulls(3),
    "bool": pa.array([True, False, None]),
    **_integers(),
    "float16": pa.array(np.array([1.5, 65504, NAN], np.float16)),
    "float32": pa.array([0.1, INF, NAN], pa.float32()),
    "float64": pa.array([0.1, -INF, NAN]),
    "float64-edges": pa.array([5e-324, 1.7976931348623157e308, None]),
    "string": pa.array(["", "ü😀\r\n\t\"'\\", None]),
    "string-with-nul": pa.array(["a\0b", "x", None]),
    "large-string": pa.array(["a", "", None], pa.large_string()),
    "string-view": pa.array(["a", "", None], pa.string_view()),
    "binary": pa.array([b"\x00\xff", b"", None]),
    "large-binary": pa.array([b"\x00\xff", b"", None], pa.large_binary()),
    "binary-view": pa.array([b"\x00\xff", b"", None], pa.binary_view()),
    "fixed-size-binary": pa.array([b"\x00" * 16, b"0123456789abcde\xff", None], pa.binary(16)),
    **_times(),
    "decimal32": pa.array([Decimal("1.23"), Decimal("-9999999.99"), None], pa.decimal32(9, 2)),
    "decimal64": pa.array([Decimal("0.01"), Decimal("-9999999999999999.99"), None], pa.decimal64(18, 2)),
    "decimal128": pa.array([Decimal("1234567890123456789012345678901234.5678"), Decimal("-0.0001"), None]),
    "decimal256": pa.array([Decimal("1" * 58 + ".12"), Decimal("-0.01"), None], pa.decimal256(60, 2)),
    **_nested(),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "dictionary-int8": pa.array(["a", "b", None]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
    "dictionary-of-numbers": pa.array([10, 20, None], pa.int64()).dictionary_encode(),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([uuid.UUID(int=1).bytes, b"\xff" * 16, None], pa.binary(16))
    ),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "[]", None])),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())),
}
