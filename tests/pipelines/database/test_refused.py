"""Rows that a database does not take: each is a dead letter with a reason, and its neighbours are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tagstream.schemas.errors import SinkError
from tests.pipelines.database.test_sql import run, spec
from tests.services.postgres import Postgres
from tests.transforms.io.database.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase

ROWS = 60
INFER = [{"as": "tag", "scores": "none", "provenance": [], "backend": {"type": "constant", "label": "ham"}}]


@pytest.fixture(params=["postgres", "sqlite", "duckdb"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "postgres":
        return PostgresDatabase(request.getfixturevalue("postgres"), f"refused_{tmp_path.name}")
    return (SqliteDatabase if request.param == "sqlite" else DuckDatabase)(tmp_path)


def letters(db: Database, table: str) -> dict[int, str]:
    """Codes of the dead letters by the row's position in the job."""
    return {row["position"]: row["code"] for row in db.query(f'SELECT "position", "code" FROM {table}_dead')}


def source(rows: int = ROWS) -> pa.Table:
    return pa.table({"id": range(rows), "body": [f"text {i}" for i in range(rows)]})


def check_counts(report: Any, out: int, dead: dict[str, int]) -> None:
    assert (report.counts.rows_in, report.counts.rows_out, dict(report.counts.dead)) == (ROWS, out, dead)


def test_update_of_keys_that_are_not_there(db: Database) -> None:
    """Rows out are what the database has changed."""
    db.fill("incoming", source(), key="id")
    db.fill("messages", source().take(list(range(0, ROWS, 3))), key="id")
    report = run(spec(db, source={"table": "incoming"}, sink={"table": "messages", "mode": "update"}))
    check_counts(report, 20, {"no_such_key": 40})
    assert db.query('SELECT count("tag") AS n FROM messages') == [{"n": 20}]
    assert letters(db, "messages") == {i: "no_such_key" for i in range(ROWS) if i % 3}
    assert db.query('SELECT "rows_in" AS i, "rows_out" AS o FROM tagstream_ledger') == [{"i": ROWS, "o": 20}]


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_constraint_costs_the_rows_that_break_it(db: Database, mode: str) -> None:
    """They do not end the job, and the reason is the database's own."""
    db.fill("messages", source(), key="id")
    db.run('CREATE TABLE labels ("id" BIGINT PRIMARY KEY CHECK ("id" % 7 <> 3), "tag" TEXT)')
    report = run(spec(db, sink={"mode": mode, "adopt": True}, infer=INFER))
    bad = [i for i in range(ROWS) if i % 7 == 3]
    check_counts(report, ROWS - len(bad), {"refused": len(bad)})
    found = [row["id"] for row in db.query('SELECT "id" FROM labels ORDER BY 1')]
    assert found == [i for i in range(ROWS) if i % 7 != 3]
    assert sorted(letters(db, "labels")) == bad
    (message, *_) = db.query('SELECT "message" FROM labels_dead')
    assert "CHECK" in message["message"].upper()


def test_what_is_not_the_rows_ends_the_job(db: Database) -> None:
    """If no row at all is taken, the rows are not to blame."""
    db.fill("messages", source(), key="id")
    db.run('CREATE TABLE labels ("id" BIGINT PRIMARY KEY CHECK ("id" < 0), "tag" TEXT)')
    with pytest.raises(SinkError, match=r"(?i)check"):
        run(spec(db, sink={"adopt": True}, infer=INFER))
    assert db.query("SELECT count(*) AS n FROM labels") == [{"n": 0}]


def test_triggers_and_policies(postgres: Postgres, tmp_path: Path) -> None:
    """A trigger that swallows an update, one that raises, and rows that row-level security hides."""
    db = PostgresDatabase(postgres, f"policies_{tmp_path.name}")
    role = f"analyst_{tmp_path.name}"
    db.fill("messages", source(), key="id")
    db.run(
        "ALTER TABLE messages ADD COLUMN tag text, ADD COLUMN tag_truncated boolean",
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id = 11 THEN RETURN NULL; END IF; "
        "IF NEW.id = 23 THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER watch BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION watch()",
        f"CREATE ROLE {role} LOGIN PASSWORD 'policy-secret'",
        f"GRANT ALL ON messages TO {role}", f"GRANT ALL ON SCHEMA public TO {role}",
        "CREATE TABLE incoming AS SELECT id, body FROM messages", f"GRANT ALL ON incoming TO {role}",
        "ALTER TABLE messages ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY low ON messages USING (id < 40)",
    )  # fmt: skip
    uri = {"uri": postgres.uri(db.uri.rpartition("/")[2], role, "policy-secret")}
    sink = {"table": "messages", "mode": "update", "adopt": True, **uri}
    job = spec(db, source={"table": "incoming", **uri}, sink=sink, infer=INFER)
    check_counts(run(job), 38, {"no_such_key": 20, "refused": 2})
    found = letters(db, "messages")
    assert {row: code for row, code in found.items() if code == "refused"} == {11: "refused", 23: "refused"}
    assert [row for row, code in sorted(found.items()) if code == "no_such_key"] == list(range(40, 60))
    assert db.query("SELECT count(tag) AS n FROM messages") == [{"n": 38}]
    assert "not this one" in db.query("SELECT message FROM messages_dead WHERE position = 23")[0]["message"]
