"""Any source to any sink: every row is there once, labelled or dead, whatever the two systems are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.spec import JobSpec
from tests.transforms.io.database.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase
from tests.transforms.io.lake.lakes import DeltaLake, IcebergLake, Lake
from tests.transforms.io.parquet.test_sink import read_all

ROWS = 150
SYSTEMS = ["parquet", "postgres", "sqlite", "duckdb", "iceberg", "delta"]
TEXTS = [None if i % 10 == 4 else f"poison {i}" if i % 10 == 7 else f"message {i} ü" for i in range(ROWS)]
DEAD = [i for i in range(ROWS) if i % 10 in {4, 7}]


class _Files:
    """Parquet files, with the methods of a `Lake`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, table: str) -> dict[str, Any]:
        return {"type": "parquet", "path": f"{self.folder}/{table}"}

    def append(self, table: str, rows: pa.Table) -> None:
        (self.folder / table).mkdir()
        pq.write_table(rows, self.folder / table / "rows.parquet", row_group_size=40)

    def table(self, table: str) -> pa.Table:
        return read_all(f"{self.folder}/{table}")


class _Tables:
    """A database, with the methods of a `Lake`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def settings(self, table: str) -> dict[str, Any]:
        return {**self.database.settings(), "table": table}

    def append(self, table: str, rows: pa.Table) -> None:
        self.database.fill(table, rows, key="id")

    def table(self, table: str) -> pa.Table:
        return self.database.table(f"SELECT * FROM {table}")


def system(name: str, folder: Path, request: pytest.FixtureRequest) -> Lake | _Files | _Tables:
    folder.mkdir()
    if name == "postgres":
        database = re.sub(r"\W+", "_", f"{folder.parent.name}_{folder.name}").lower()
        return _Tables(PostgresDatabase(request.getfixturevalue("postgres"), database))
    makers: dict[str, Any] = {
        "parquet": _Files,
        "sqlite": lambda path: _Tables(SqliteDatabase(path)),
        "duckdb": lambda path: _Tables(DuckDatabase(path)),
        "iceberg": IcebergLake,
        "delta": DeltaLake,
    }
    return makers[name](folder)


@pytest.mark.parametrize("sink", SYSTEMS)
@pytest.mark.parametrize("source", SYSTEMS)
def test_any_source_to_any_sink(tmp_path: Path, request: pytest.FixtureRequest, source: str, sink: str) -> None:
    """Ids, kept columns, labels and dead letters arrive; a rerun finds nothing to do."""
    came, goes = system(source, tmp_path / "from", request), system(sink, tmp_path / "to", request)
    came.append("messages", pa.table({"id": range(ROWS), "body": TEXTS, "lang": ["en"] * ROWS}))
    dead = {"parquet": "labels-dead", "delta": "labels-dead"}.get(sink, "labels_dead")
    job = JobSpec.model_validate(
        {
            "source": {**came.settings("messages"), "text": "body", "id": "id", "keep": ["lang"], "split_rows": 60},
            "infer": [{"as": "tag", "backend": {"type": "constant", "fail_on": "poison"}}],
            "sink": goes.settings("labels"),
            "blocks": {"rows": 25},
            "max_dead": 1,
        }
    )
    report = run_job(job, Console(quiet=True))
    assert (report.state, report.rows_total, report.counts.rows_in) == ("done", ROWS, ROWS)
    assert (report.counts.rows_out, report.counts.dead_rows) == (ROWS - len(DEAD), len(DEAD))
    assert run_job(job, Console(quiet=True)).counts.rows_in == 0
    labels, letters = goes.table("labels"), goes.table(dead)
    assert sorted(labels["id"].to_pylist()) == [i for i in range(ROWS) if i not in DEAD]
    assert set(labels["tag"].to_pylist()) == {"constant"}
    assert set(labels["lang"].to_pylist()) == {"en"}
    rows = [json.loads(row) if isinstance(row, str) else row for row in letters["row"].to_pylist()]
    assert sorted(row["id"] for row in rows) == DEAD
    payloads = {row["id"]: payload for row, payload in zip(rows, letters["payload"].to_pylist(), strict=True)}
    assert payloads == {i: TEXTS[i] and TEXTS[i].encode() for i in DEAD}
