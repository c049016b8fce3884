"""Keys of every type that databases have: all rows are read, or the key is refused at start. Nothing is left out."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.errors import SinkError, SourceError
from tests.pipelines.bulk_jobs import BulkJob
from tests.services.postgres import Postgres
from tests.transforms.io.database.databases import PostgresDatabase

ROWS = 300
CANT = "can't be used|no order|holds infinity|can't hold the type"
"""What a refusal says."""


def read(tmp_path: Path, source: dict[str, Any]) -> int:
    """Runs a job on the table `m`, and returns the number of distinct rows that have a label."""
    shape = {"table": "m", "text": "body", "id": "id", "keep": ["n"], "split_rows": 40}
    report = BulkJob(tmp_path).run(source=source | shape)
    numbers = pq.read_table(tmp_path / "out")["n"].to_pylist()
    assert len(numbers) == report.counts.rows_out
    return len(set(numbers))


DUCKDB = {
    "enum": "('v' || i)::e",
    "timestamp_ns": "make_timestamp_ns(i)",
    "timestamp_s": "TIMESTAMP_S '2020-01-01 00:00:00' + to_seconds(i)",
    "double": "CASE i WHEN 5 THEN 'nan'::DOUBLE WHEN 6 THEN 'inf'::DOUBLE WHEN 7 THEN '-inf'::DOUBLE ELSE i * 1.1 END",
    "uuid": "uuid()",
    "hugeint": "(i * 10)::HUGEINT * 100000000000000000000::HUGEINT",
    "decimal": "(i / 7.0)::DECIMAL(38, 10)",
    "blob": "encode('k' || i)",
    "time": "TIME '00:00:00' + to_seconds(i)",
    "timetz": "(TIME '00:00:00' + to_seconds(i))::TIMETZ",
    "ubigint": "18446744073709551615::UBIGINT - i::UBIGINT",
    "nocase": "CASE i % 2 WHEN 0 THEN 'a' ELSE 'B' END || lpad(i::VARCHAR, 4, '0') COLLATE NOCASE",
    "date": "DATE '0001-01-01' + i::INT",
    "boolean_pair": "i % 2 = 0",
    "infinity": "CASE i WHEN 5 THEN 'infinity'::TIMESTAMP ELSE TIMESTAMP '2020-01-01' + to_seconds(i) END",
    "date_infinity": "CASE i WHEN 5 THEN '-infinity'::DATE ELSE DATE '2020-01-01' + i::INT END",
}
REFUSED = {"infinity", "date_infinity", "boolean_pair", "money", "timestamp_infinity"}


@pytest.mark.parametrize("kind", DUCKDB)
def test_duckdb(kind: str, tmp_path: Path) -> None:
    with duckdb.connect(f"{tmp_path}/x.duckdb") as client:
        client.execute(f"CREATE TYPE e AS ENUM (SELECT 'v' || ((i * 7919) % {ROWS}) FROM range({ROWS}) t(i))")
        client.execute(f"CREATE TABLE m AS SELECT {DUCKDB[kind]} AS id, i AS n, 'x' AS body FROM range({ROWS}) t(i)")
    source = {"type": "duckdb", "path": f"{tmp_path}/x.duckdb"}
    if kind in REFUSED:
        with pytest.raises(SourceError, match=f"{CANT}|not unique"):
            read(tmp_path, source)
    else:
        assert read(tmp_path, source) == ROWS


SQLITE: dict[str, tuple[str, Callable[[int], Any], bool]] = {
    "integer": ("INTEGER", lambda i: i * 3 - 50, True),
    "real": ("REAL", lambda i: i / 7, True),
    "text": ("TEXT", str, True),
    "blob": ("BLOB", lambda i: b"%d" % i, True),
    "nocase": ("TEXT COLLATE NOCASE", lambda i: f"{'aB'[i % 2]}{i:04}", True),
    "without a type": ("", lambda i: f"k{i}", True),
    "integer and text": ("", lambda i: [i, f"s{i}"][i % 2], False),
    "integer, real and text": ("", lambda i: [i, f"s{i}", i + 0.5][i % 3], False),
    "integer and real": ("", lambda i: [2**53 + i, float(i)][i % 2], False),
    "blob and text": ("", lambda i: [b"b%d" % i, f"t{i}"][i % 2], False),
}


@pytest.mark.parametrize("kind", SQLITE)
def test_sqlite(kind: str, tmp_path: Path) -> None:
    """A column may hold values of several types, which SQLite orders by type first."""
    declared, key, taken = SQLITE[kind]
    with sqlite3.connect(tmp_path / "x.db") as client:
        client.execute(f"CREATE TABLE m (id {declared}, n INTEGER, body TEXT)")
        client.executemany("INSERT INTO m VALUES (?, ?, 'x')", [(key(i), i) for i in range(ROWS)])
    source = {"type": "sql", "uri": f"sqlite:///{tmp_path}/x.db"}
    if taken:
        assert read(tmp_path, source) == ROWS
    else:
        with pytest.raises(SourceError, match="the key 'id' holds values of the types"):
            read(tmp_path, source)


POSTGRES = {
    "char": ("char(10)", "'k' || i"),
    "double": (
        "float8",
        "CASE i WHEN 5 THEN 'NaN' WHEN 6 THEN 'Infinity' WHEN 7 THEN '-Infinity' ELSE i * 1.1 END::float8",
    ),
    "numeric": ("numeric", "CASE i WHEN 5 THEN 'NaN'::numeric ELSE i / 7.0 END"),
    "icu": ('text COLLATE "und-x-icu"', "CASE WHEN i % 2 = 0 THEN 'a' ELSE 'B' END || i"),
    "enum": ("mood", "('v' || i)::mood"),
    "inet": ("inet", "'10.0.0.0'::inet + i"),
    "bytea": ("bytea", "('k' || i)::bytea"),
    "time": ("time", "time '00:00' + i * interval '1 s'"),
    "timetz": ("timetz", "timetz '00:00+01' + i * interval '1 s'"),
    "timestamp": ("timestamp", "timestamp '0001-01-01' + i * interval '1 us'"),
    "money": ("money", "i::int::money"),
    "timestamp_infinity": (
        "timestamp",
        "CASE i WHEN 5 THEN 'infinity'::timestamp ELSE timestamp '2020-01-01' + i * interval '1 s' END",
    ),
    "date_infinity": ("date", "CASE i WHEN 5 THEN 'infinity'::date ELSE date '2020-01-01' + i END"),
}


@pytest.mark.parametrize("kind", POSTGRES)
def test_postgres(kind: str, tmp_path: Path, postgres: Postgres) -> None:
    db = PostgresDatabase(postgres, f"keytypes_{kind}")
    declared, value = POSTGRES[kind]
    moods = ", ".join(f"'v{(i * 7919) % ROWS}'" for i in range(ROWS))
    db.run(
        "DROP TABLE IF EXISTS m", "DROP TYPE IF EXISTS mood", f"CREATE TYPE mood AS ENUM ({moods})",
        f"CREATE TABLE m (id {declared} PRIMARY KEY, n int, body text)",
        f"INSERT INTO m SELECT {value}, i, 'x' FROM generate_series(0, {ROWS - 1}) i",
    )  # fmt: skip
    if kind in REFUSED:
        with pytest.raises(SourceError, match=CANT):
            read(tmp_path, db.settings())
    else:
        assert read(tmp_path, db.settings()) == ROWS


def test_values_that_no_output_can_hold(tmp_path: Path) -> None:
    """A kept infinity is not another day, and a type that Parquet does not have is refused by name."""
    with duckdb.connect(f"{tmp_path}/x.duckdb") as client:
        client.execute("CREATE TABLE m AS SELECT i AS id, 'infinity'::DATE AS n, 'x' AS body FROM range(9) t(i)")
    source = {"type": "duckdb", "path": f"{tmp_path}/x.duckdb"}
    with pytest.raises(SourceError, match=r"column 'n' holds infinity.*casts the column to text"):
        read(tmp_path, source)
    with duckdb.connect(f"{tmp_path}/x.duckdb") as client:
        client.execute(
            "CREATE OR REPLACE TABLE m AS SELECT i AS id, to_days(i::INT) AS n, 'x' AS body FROM range(9) t(i)"
        )
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SinkError, match="column 'n': Parquet can't hold the type month_day_nano_interval"):
        read(tmp_path, source)
