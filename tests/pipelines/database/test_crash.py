"""Tables, exactly once, whatever dies: kill -9 of the job, crashes of the server, another session that reads on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tagstream.transforms.io.database.session import DatabaseError, Kind
from tests.pipelines.bulk_jobs import KilledJob, Watcher
from tests.services.postgres import Postgres
from tests.transforms.io.database.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]


class TableJob(KilledJob):
    """A job that adds labels to a table `messages` of `rows` rows; some texts are null, some poison."""

    def __init__(self, folder: Path, db: Database, rows: int, ms_per_row: float, **more: Any) -> None:
        self.db, self.rows = db, rows
        texts = [None if i % 97 == 0 else f"poison {i}" if i % 101 == 0 else f"message {i}" for i in range(rows)]
        self.dead_ids = [i for i in range(rows) if texts[i] is None or texts[i].startswith("poison")]
        db.fill("messages", pa.table({"id": range(rows), "body": texts}), key="id")
        self.file = folder / "job.yaml"
        source: dict[str, Any] = {"table": "messages", "text": "body", "id": "id", "split_rows": 1_000, **more}
        self.file.write_text(
            f"source: {json.dumps({**db.settings(), **source})}\n"
            f"infer: [{{as: tag, backend: {{type: constant, ms_per_row: {ms_per_row}, fail_on: poison}}}}]\n"
            f"sink: {json.dumps({**db.settings(), 'table': 'messages', 'mode': 'update'})}\n"
            "blocks: {rows: 250}\n"
        )

    def commits(self) -> int:
        found = self.db.query("SELECT count(*) AS n FROM tagstream_ledger")
        return found[0]["n"] if found else 0

    def check_consistent(self) -> None:
        """Labels, dead letters and ledger tell of the same rows, at every moment."""
        found = self.db.query(
            'SELECT (SELECT count("tag") FROM messages) AS labels, (SELECT count(*) FROM messages_dead) AS dead, '
            "(SELECT count(*) FROM tagstream_ledger) AS commits, "
            '(SELECT CAST(COALESCE(sum("rows_out"), 0) AS BIGINT) FROM tagstream_ledger) AS rows_out, '
            '(SELECT CAST(COALESCE(sum("rows_in"), 0) AS BIGINT) FROM tagstream_ledger) AS rows_in'
        )
        for row in found:
            assert (row["labels"], row["labels"] + row["dead"]) == (row["rows_out"], row["rows_in"])

    def look(self) -> None:
        """The same from a session that the server may end."""
        try:
            self.check_consistent()
        except DatabaseError as failure:
            if failure.kind is not Kind.LOST:
                raise

    def check_rows(self) -> None:
        """Every key exactly once, with a label or as a dead letter."""
        self.check_consistent()
        labelled = self.db.query('SELECT "id" FROM messages WHERE "tag" IS NOT NULL ORDER BY "id"')
        assert [row["id"] for row in labelled] == sorted(set(range(self.rows)) - set(self.dead_ids))
        dead = self.db.query('SELECT "row", "code" FROM messages_dead')
        assert sorted(json.loads(row["row"])["id"] for row in dead) == self.dead_ids
        assert {row["code"] for row in dead} == {"null_text", "inference_failed"}

    def check_complete(self) -> None:
        """Every key exactly once; the ledger has every range once, and the ranges follow each other."""
        self.check_rows()
        (plan,) = self.db.query('SELECT "splits" FROM tagstream_plans')
        splits = json.loads(plan["splits"])
        assert all(before["payload"]["hi"] == after["payload"]["lo"] for before, after in pairwise(splits))
        ledger = self.db.query('SELECT "split" FROM tagstream_ledger')
        assert sorted(row["split"] for row in ledger) == sorted(split["id"] for split in splits)


def test_postgres_and_its_job_are_killed(mortal_postgres: Postgres, tmp_path: Path, long: bool) -> None:
    """While another session reads the table; the job that runs when the server crashes just goes on."""
    db = PostgresDatabase(mortal_postgres, "kill")
    job = TableJob(tmp_path, db, 200_000 if long else 12_000, 0.2 if long else 0.4)
    with Watcher(job.look):
        job.kill_at_random(20 if long else 1, 1.0, blows=[mortal_postgres.restart] * (5 if long else 1))


def test_sqlite_job_is_killed(tmp_path: Path, long: bool) -> None:
    """A file that one process at a time may write."""
    job = TableJob(tmp_path, SqliteDatabase(tmp_path), 100_000 if long else 8_000, 0.4)
    job.kill_at_random(20 if long else 1, 0.5)


def test_duckdb_job_is_killed(tmp_path: Path, long: bool) -> None:
    """A file that nobody else can open meanwhile; its log shows that it is written to."""
    job = TableJob(tmp_path, DuckDatabase(tmp_path), 100_000 if long else 12_000, 0.4)
    job.kill_at_random(20 if long else 1, 1.0, lambda: max(file.stat().st_mtime_ns for file in tmp_path.glob("data*")))


class ByState(TableJob):
    """The same, whose rows are found by state: see `only_new: missing`."""

    def check_complete(self) -> None:
        """Every key exactly once, in the state table too."""
        self.check_rows()
        state = self.db.query("SELECT id, tagstream_outcome AS outcome FROM messages_texts ORDER BY id")
        assert [row["id"] for row in state] == list(range(self.rows))
        assert [row["id"] for row in state if row["outcome"] == "dead"] == self.dead_ids


def test_job_that_finds_rows_by_state_is_killed(tmp_path: Path, long: bool) -> None:
    """Labels, dead letters, state and ledger are one transaction."""
    db = SqliteDatabase(tmp_path)
    ByState(tmp_path, db, 100_000 if long else 8_000, 0.4, only_new="missing").kill_at_random(20 if long else 1, 0.5)
