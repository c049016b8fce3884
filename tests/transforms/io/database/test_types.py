"""What each Arrow type becomes in each database: the same value for every row, or a dead letter.

DuckDB and SQLite are read by their own clients. PostgreSQL compares the values itself, with literals that it casts.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import sqlite3
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.spec_file import load_spec
from tests.services.postgres import Postgres
from tests.transforms.io.arrow_values import VALUES
from tests.transforms.io.database.databases import PostgresDatabase
from tests.transforms.io.test_types import STORAGE, source_file

NANOSECONDS = {"time64-ns": (0, 1), "timestamp-ns-utc": (0, 1), "duration-ns": (0, 1)}
NO_NAN = {"struct-of-nan": (0, 1)}
REFUSED: dict[str, dict[str, tuple[int, ...]]] = {
    "duckdb": NANOSECONDS | NO_NAN | {"timestamp-ns": (0, 1)},  # the edges are DuckDB's infinities
    "sqlite": NO_NAN | {"float16": (2,), "float32": (2,), "float64": (2,)},
    "postgres": NANOSECONDS | NO_NAN | {"timestamp-ns": (0, 1), "string-with-nul": (0,)},
}
"""Rows that are dead letters."""
UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def run(source: Path, sink: dict[str, Any], keep: Collection[str] = ("x",), **settings: Any) -> dict[str, int]:
    """Runs the job and returns the dead letters."""
    fields = {
        "name": sink["table"],
        "source": {"type": "parquet", "path": str(source), "text": "text", "id": "id", "keep": list(keep)},
        "infer": [{"as": "tag", "backend": {"type": "constant"}}],
        "sink": sink | settings,
        "max_dead": 1,
    }
    return dict(run_job(load_spec(None, fields), Console(file=io.StringIO())).counts.dead)


def in_json(value: Any) -> Any:
    """A part of a nested value, as `json.loads` gives it."""
    if isinstance(value, dict):
        return {name: in_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if isinstance(value, tuple):
        return {"key": in_json(value[0]), "value": in_json(value[1])}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}".rjust(26, "0")
    return str(value) if isinstance(value, Decimal) else value


def count_of(row: pa.Scalar) -> int:
    """The number of a temporal value's units, which Python can't hold where they are nanoseconds."""
    return int(row.cast(pa.int64()).as_py())


def in_sqlite(row: pa.Scalar) -> Any:
    """A value as SQLite's client gives it."""
    kind, value = row.type, row.as_py() if row.type != pa.duration("ns") else None
    if pa.types.is_duration(kind):
        return count_of(row)
    if kind == pa.time64("ns"):
        return {86_399_999_999_999: "23:59:59.999999999", 1: "00:00:00.000000001"}[count_of(row)]
    if kind == pa.timestamp("ns"):
        return {2**63 - 1: "2262-04-11T23:47:16.854775807"}.get(count_of(row), "1677-09-21T00:12:43.145224193")
    if kind == pa.timestamp("ns", "UTC"):
        return {2**63 - 1: "2262-04-11 23:47:16.854775807Z"}.get(count_of(row), "1970-01-01 00:00:00.000000001Z")
    if pa.types.is_timestamp(kind) and kind.tz:
        return f"{value.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}Z"
    if pa.types.is_timestamp(kind):
        return value.isoformat(timespec="microseconds")[: 20 + UNITS[kind.unit]]
    if pa.types.is_time(kind):
        return value.isoformat(timespec="microseconds")[: 9 + UNITS[kind.unit]]
    if pa.types.is_date(kind):
        return value.isoformat()
    return str(value) if kind == pa.uint64() or pa.types.is_decimal(kind) else value


def in_duckdb(row: pa.Scalar) -> Any:
    """A value as DuckDB's client gives it."""
    return str(row.as_py()) if pa.types.is_decimal256(row.type) else row.as_py()


def check(kind: str, name: str, found: list[tuple[int, Any]], value_of: Callable[[pa.Scalar], Any]) -> None:
    refused = REFUSED[name].get(kind, ())
    alive = [row for row in range(3) if row not in refused]
    assert [row for row, _ in found] == alive
    column = VALUES[kind].storage if kind in STORAGE else as_read(kind)
    for row, value in found:
        expected: Any = column[row]
        if pa.types.is_dictionary(column.type):
            expected = column.dictionary_decode()[row]
        if not expected.is_valid:
            assert value is None
        elif pa.types.is_nested(expected.type):
            assert json.loads(value) == in_json(expected.as_py())
        else:
            np.testing.assert_equal(value, value_of(expected))


def as_read(kind: str) -> pa.Array:
    """The values as Parquet gives them: it has no seconds."""
    column = VALUES[kind]
    if column.type in (pa.timestamp("s"), pa.time32("s")):
        return column.cast(pa.timestamp("ms") if pa.types.is_timestamp(column.type) else pa.time32("ms"))
    return column


Read = Callable[[str], list[tuple[int, Any]]]
"""The ids and values of a column, by id."""


def run_all(name: str, folder: Path, database: dict[str, Any]) -> None:
    """One job for all types whose rows the database takes, and one for each other type, each into its own table."""
    taken = {kind: column for kind, column in VALUES.items() if kind not in REFUSED[name]}
    assert not run(source_file(folder / "all", **taken), database | {"table": "t_all"}, keep=taken)
    for kind, rows in REFUSED[name].items():
        sink = database | {"table": table_of(name, kind)}
        dead = run(source_file(folder / kind, **{kind: VALUES[kind]}), sink, keep=[kind])
        assert dead == {"refused": len(rows)}, kind


def table_of(name: str, kind: str) -> str:
    return f"t_{kind if kind in REFUSED[name] else 'all'}".replace("-", "_")


@pytest.fixture(scope="module")
def in_duckdb_file(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("duckdb")
    path = f"{folder}/x.duckdb"
    run_all("duckdb", folder, {"type": "duckdb", "path": path})

    def read(kind: str) -> list[tuple[int, Any]]:
        with duckdb.connect(path, read_only=True) as client:  # the job has closed the file
            return client.sql(f'SELECT id, "{kind}" FROM {table_of("duckdb", kind)} ORDER BY id').fetchall()

    return read


@pytest.mark.parametrize("kind", VALUES)
def test_duckdb(kind: str, in_duckdb_file: Read) -> None:
    check(kind, "duckdb", in_duckdb_file(kind), in_duckdb)


@pytest.fixture(scope="module")
def in_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("sqlite")
    run_all("sqlite", folder, {"type": "sql", "uri": f"sqlite:///{folder}/x.db"})

    def read(kind: str) -> list[tuple[int, Any]]:
        with sqlite3.connect(folder / "x.db") as client:
            return client.execute(f'SELECT id, "{kind}" FROM {table_of("sqlite", kind)} ORDER BY id').fetchall()

    return read


@pytest.mark.parametrize("kind", VALUES)
def test_sqlite(kind: str, in_sqlite_file: Read) -> None:
    check(kind, "sqlite", in_sqlite_file(kind), in_sqlite)


def literal(row: pa.Scalar) -> str:
    """A value as text that PostgreSQL casts to the column's type."""
    value = row.as_py()
    if pa.types.is_nested(row.type):
        return json.dumps(in_json(value), ensure_ascii=False)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, dt.timedelta):
        return f"{value // dt.timedelta(microseconds=1)} microseconds"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@pytest.fixture(scope="module")
def in_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> PostgresDatabase:
    folder = tmp_path_factory.mktemp("postgres")
    db = PostgresDatabase(postgres, "types")
    run_all("postgres", folder, db.settings())
    return db


@pytest.mark.parametrize("kind", VALUES)
def test_postgres(kind: str, in_postgres: PostgresDatabase) -> None:
    db, table, refused = in_postgres, table_of("postgres", kind), REFUSED["postgres"].get(kind, ())
    column = VALUES[kind].storage if kind in STORAGE else VALUES[kind]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found = db.query(f'SELECT id, pg_typeof("{kind}")::text AS kind FROM "{table}" ORDER BY id')
    assert [row["id"] for row in found] == [row for row in range(3) if row not in refused]
    for row in found:
        value = column[row["id"]]
        wanted = f"CAST($tagstream${literal(value)}$tagstream$ AS {row['kind']})" if value.is_valid else "NULL"
        where = f'FROM "{table}" WHERE id = {row["id"]}'
        (same,) = db.query(f'SELECT "{kind}" IS NOT DISTINCT FROM {wanted} AS same, "{kind}"::text AS x {where}')
        assert same["same"], (same["x"], wanted)


@pytest.mark.parametrize(
    ("declared", "values", "refused"),
    [
        ("DECIMAL(18, 3)", pa.array([Decimal("1.0000"), Decimal("1.2345")], pa.decimal128(20, 4)), [1]),
        ("BIGINT", pa.array([1, 2**64 - 1], pa.uint64()), [1]),
        ("REAL", pa.array([0.5, 0.1, float("nan")], pa.float64()), [1]),
        ("SMALLINT", pa.array([1, 40_000], pa.int64()), [1]),
        ("DATE", pa.array([0, 3_600], pa.timestamp("s")), [1]),
        ("INTEGER", pa.array([2.0, 2.5]), [1]),
    ],
)
def test_columns_that_are_there_already(declared: str, values: pa.Array, refused: list[int], tmp_path: Path) -> None:
    """A value that the database would round or wrap is a dead letter; its neighbours are stored."""
    with duckdb.connect(f"{tmp_path}/x.duckdb") as client:
        client.execute(f"CREATE TABLE t (id BIGINT, x {declared})")
    sink = {"type": "duckdb", "path": f"{tmp_path}/x.duckdb", "table": "t"}
    assert run(source_file(tmp_path, x=values), sink, adopt=True) == {"refused": len(refused)}
    with duckdb.connect(f"{tmp_path}/x.duckdb", read_only=True) as client:
        assert client.sql("SELECT id FROM t ORDER BY id").fetchall() == [
            (row,) for row in range(len(values)) if row not in refused
        ]
        message = client.sql("SELECT message FROM t_dead").fetchall()
    assert "column 'x' can't be stored exactly" in message[0][0]


def test_dictionaries_that_differ_from_block_to_block(tmp_path: Path) -> None:
    """Rows wait for their commit in one stream."""
    words = pa.array([f"word {i // 3}" for i in range(60)]).dictionary_encode()
    lists = pa.array([[{"w": f"word {i}"}] for i in range(60)])
    for name, column in (("plain", words), ("nested", lists)):
        source = tmp_path / name / "in.parquet"
        source.parent.mkdir()
        table = pa.table({"id": range(60), "x": column, "text": ["a"] * 60})
        pq.write_table(table, source, row_group_size=7)
        run(source, {"type": "duckdb", "path": f"{tmp_path}/{name}.duckdb", "table": "t"})
        with duckdb.connect(f"{tmp_path}/{name}.duckdb", read_only=True) as client:
            found = [row[0] for row in client.sql("SELECT x FROM t ORDER BY id").fetchall()]
        assert found == (words.to_pylist() if name == "plain" else [json.dumps(v) for v in lists.to_pylist()])
