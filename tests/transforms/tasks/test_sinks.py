"""The answers of every task in every sink: what the system's own client reads is what the model said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream import run
from tests.services.postgres import Postgres
from tests.task_models import TASKS, assert_same, entry_of, loaded
from tests.transforms.io.database.databases import PostgresDatabase

TEXTS = ["free prize now", "!", "a movie", "call me later today"]
SINKS = {
    "parquet": {"path": "{folder}/out"},
    "duckdb": {"path": "{folder}/out.duckdb", "table": "labels"},
    "sqlite": {"type": "sql", "uri": "sqlite:///{folder}/out.sqlite", "table": "labels"},
    "iceberg": {
        "catalog": {"type": "sql", "uri": "sqlite:///{folder}/catalog.db", "warehouse": "{folder}/w"},
        "table": "d.t",
    },
    "delta": {"path": "{folder}/delta"},
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("models")
    return {task: {**entry_of(task, folder / task), "as": "x"} for task in TASKS}


@pytest.mark.parametrize("sink", sorted(SINKS))
@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_sink_holds_the_answers(entries: dict[str, dict[str, Any]], tmp_path: Path, task: str, sink: str) -> None:
    """Vectors and spans come back equal; where a database has no such type, as JSON."""
    pq.write_table(pa.table({"id": [0, 1, 2, 3], "text": TEXTS}), tmp_path / "in.parquet")
    filled = json.loads(json.dumps({"type": sink, **SINKS[sink]}).replace("{folder}", str(tmp_path)))
    report = run(
        {
            "name": "job",
            "source": {"type": "parquet", "path": str(tmp_path / "in.parquet"), "text": "text", "id": "id"},
            "infer": [entries[task]],
            "sink": filled,
        }
    )
    assert report.counts.rows_out == len(TEXTS)
    with loaded(entries[task]) as model:
        expected = model.predict(TEXTS)["x"].to_pylist()
    found = _rows(sink, tmp_path)
    assert [identity for identity, _ in found] == [0, 1, 2, 3]
    for (_, value), wanted in zip(found, expected, strict=True):
        assert_same(json.loads(value) if isinstance(value, str) and not isinstance(wanted, str) else value, wanted)


def _rows(sink: str, folder: Path) -> list[tuple[int, Any]]:
    """Id and answer of every row, as the system's own client gives them."""
    if sink == "parquet":
        table = pq.read_table(folder / "out")
    elif sink == "delta":
        from deltalake import DeltaTable

        table = DeltaTable(str(folder / "delta")).to_pyarrow_table()
    elif sink == "iceberg":
        from pyiceberg.catalog import load_catalog

        catalog = load_catalog(
            "default", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/w"
        )
        table = catalog.load_table("d.t").scan().to_arrow()
    elif sink == "duckdb":
        import duckdb

        with duckdb.connect(folder / "out.duckdb") as connection:
            return [(row[0], row[1]) for row in connection.execute("SELECT id, x FROM labels ORDER BY id").fetchall()]
    else:
        import sqlite3

        return list(sqlite3.connect(folder / "out.sqlite").execute("SELECT id, x FROM labels ORDER BY id"))
    table = table.sort_by("id")
    return list(zip(table["id"].to_pylist(), table["x"].to_pylist(), strict=True))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_postgres_holds_the_answers(
    entries: dict[str, dict[str, Any]], postgres: Postgres, tmp_path: Path, task: str
) -> None:
    """As the local databases do: lists and structs as JSON."""
    db = PostgresDatabase(postgres, tmp_path.name)
    db.fill("messages", pa.table({"id": range(len(TEXTS)), "text": TEXTS}), key="id")
    run(
        {
            "name": "job",
            "source": {"type": "sql", **db.settings(), "table": "messages", "id": "id"},
            "infer": [entries[task]],
            "sink": {"type": "sql", **db.settings(), "table": "labels"},
        }
    )
    with loaded(entries[task]) as model:
        expected = model.predict(TEXTS)["x"].to_pylist()
    found = [row["x"] for row in db.query("SELECT x FROM labels ORDER BY id")]
    for value, wanted in zip(found, expected, strict=True):
        assert_same(json.loads(value) if isinstance(value, str) and not isinstance(wanted, str) else value, wanted)
