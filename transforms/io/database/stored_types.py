"""What each Arrow type becomes in a database: the type of a new column, and the type in which its values are staged.

A dialect has a list of rules, and the first one that fits a type counts. docs/reference/types.md shows the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.types as at

from tagstream.transforms.io.common.arrow_types import is_bytes

Test = Callable[[pa.DataType], bool]


class Rule(NamedTuple):
    """`test`: which types. `sql`: the column's type, or how it follows from the type. `staged`: the same in Arrow.

    Without `staged` a value is staged in its own type.
    """

    test: Test
    sql: str | Callable[[pa.DataType], str]
    staged: pa.DataType | Callable[[pa.DataType], pa.DataType] | None = None

    def sql_of(self, kind: pa.DataType) -> str:
        return self.sql if isinstance(self.sql, str) else self.sql(kind)

    def staged_of(self, kind: pa.DataType) -> pa.DataType:
        if self.staged is None:
            return kind
        return self.staged if isinstance(self.staged, pa.DataType) else self.staged(kind)


def is_small_integer(kind: pa.DataType) -> bool:
    """Integers of 16 bits."""
    return bool(at.is_int16(kind) or at.is_int8(kind) or at.is_uint8(kind))


def is_medium_integer(kind: pa.DataType) -> bool:
    """Integers of 32 bits."""
    return bool(at.is_int32(kind) or at.is_uint16(kind))


def has_zone(kind: pa.DataType) -> bool:
    """Timestamps that name a moment."""
    return bool(at.is_timestamp(kind) and kind.tz is not None)


def is_nanoseconds(kind: pa.DataType) -> bool:
    """Timestamps without a zone, in nanoseconds."""
    return bool(at.is_timestamp(kind) and kind.tz is None and kind.unit == "ns")


def has_at_most_38_digits(kind: pa.DataType) -> bool:
    """Decimals that 128 bits hold."""
    return bool(at.is_decimal(kind) and kind.precision <= 38)


def decimal128(kind: pa.DataType) -> pa.DataType:
    """The decimal with 128 bits."""
    return pa.decimal128(kind.precision, kind.scale)


UINT64_DECIMAL = pa.decimal128(20, 0)
TIMESTAMP, MOMENT = pa.timestamp("us"), pa.timestamp("us", "UTC")

POSTGRESQL = (
    Rule(at.is_boolean, "BOOLEAN"),
    Rule(is_small_integer, "SMALLINT", pa.int16()),
    Rule(is_medium_integer, "INTEGER", pa.int32()),
    Rule(at.is_uint64, "NUMERIC", UINT64_DECIMAL),
    Rule(at.is_integer, "BIGINT", pa.int64()),
    Rule(at.is_float64, "DOUBLE PRECISION"),
    Rule(at.is_floating, "REAL", pa.float32()),
    Rule(at.is_date, "DATE", pa.date32()),
    Rule(at.is_time, "TIME", pa.time64("us")),
    Rule(has_zone, "TIMESTAMPTZ", MOMENT),
    Rule(at.is_timestamp, "TIMESTAMP", TIMESTAMP),
    Rule(at.is_duration, "INTERVAL", pa.duration("us")),
    Rule(has_at_most_38_digits, "NUMERIC", decimal128),
    Rule(at.is_decimal, "NUMERIC", pa.string()),
    Rule(is_bytes, "BYTEA", pa.binary()),
)
SQLITE = (
    Rule(at.is_boolean, "INTEGER"),
    Rule(at.is_uint64, "TEXT", pa.string()),
    Rule(at.is_integer, "INTEGER", pa.int64()),
    Rule(at.is_floating, "REAL", pa.float64()),
    Rule(at.is_date, "TEXT", pa.date32()),
    Rule(has_zone, "TEXT", pa.string()),
    Rule(at.is_timestamp, "TEXT"),
    Rule(at.is_duration, "INTEGER", pa.int64()),
    Rule(is_bytes, "BLOB", pa.binary()),
)
DUCKDB = (
    Rule(at.is_boolean, "BOOLEAN"),
    Rule(at.is_uint64, "UBIGINT"),
    Rule(at.is_integer, "BIGINT", pa.int64()),
    Rule(at.is_float64, "DOUBLE"),
    Rule(at.is_floating, "REAL", pa.float32()),
    Rule(at.is_date, "DATE", pa.date32()),
    Rule(at.is_time, "TIME", pa.time64("us")),
    Rule(has_zone, "TIMESTAMPTZ", MOMENT),
    Rule(is_nanoseconds, "TIMESTAMP_NS"),
    Rule(at.is_timestamp, "TIMESTAMP", TIMESTAMP),
    Rule(at.is_duration, "INTERVAL", pa.duration("us")),
    Rule(has_at_most_38_digits, lambda kind: f"DECIMAL({kind.precision}, {kind.scale})", decimal128),
    Rule(is_bytes, "BLOB", pa.binary()),
)
STANDARD = (
    Rule(at.is_boolean, "BOOLEAN"),
    Rule(at.is_uint64, "NUMERIC(20)", UINT64_DECIMAL),
    Rule(at.is_integer, "BIGINT", pa.int64()),
    Rule(at.is_float64, "DOUBLE PRECISION"),
    Rule(at.is_floating, "REAL", pa.float32()),
    Rule(at.is_date, "DATE", pa.date32()),
    Rule(at.is_timestamp, "TIMESTAMP", lambda kind: MOMENT if kind.tz else TIMESTAMP),
    Rule(has_at_most_38_digits, lambda kind: f"NUMERIC({kind.precision}, {kind.scale})", decimal128),
    Rule(is_bytes, "VARBINARY", pa.binary()),
)
