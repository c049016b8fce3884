"""Tables, exactly once, whatever dies: kill -9 of the job, crashes of the server, another session that reads on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pytest

from tests.services.java import wait_until
from tests.services.postgres import Postgres
from tests.transforms.io.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase

pytestmark = pytest.mark.crash


class TableJob:
    """A job that adds labels to a table `messages` of `rows` rows; some texts are null, some poison."""

    def __init__(self, folder: Path, db: Database, rows: int, ms_per_row: float) -> None:
        self.db, self.rows = db, rows
        texts = [None if i % 97 == 0 else f"poison {i}" if i % 101 == 0 else f"message {i}" for i in range(rows)]
        self.dead_ids = [i for i in range(rows) if texts[i] is None or texts[i].startswith("poison")]
        db.fill("messages", pa.table({"id": range(rows), "body": texts}), key="id")
        self.file = folder / "job.yaml"
        source: dict[str, Any] = {"table": "messages", "text": "body", "id": "id", "split_rows": 1_000}
        self.file.write_text(
            f"source: {json.dumps({**db.settings(), **source})}\n"
            f"classify: [{{as: tag, backend: {{type: constant, ms_per_row: {ms_per_row}, fail_on: poison}}}}]\n"
            f"sink: {json.dumps({**db.settings(), 'table': 'messages', 'mode': 'update'})}\n"
            "blocks: {rows: 250}\n"
        )

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "run", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
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

    def check_complete(self) -> None:
        """Every key exactly once; the ledger has every range once, and the ranges follow each other."""
        self.check_consistent()
        labelled = self.db.query('SELECT "id" FROM messages WHERE "tag" IS NOT NULL ORDER BY "id"')
        assert [row["id"] for row in labelled] == sorted(set(range(self.rows)) - set(self.dead_ids))
        dead = self.db.query('SELECT "row", "code" FROM messages_dead')
        assert sorted(json.loads(row["row"])["id"] for row in dead) == self.dead_ids
        assert {row["code"] for row in dead} == {"null_text", "inference_failed"}
        (plan,) = self.db.query('SELECT "splits" FROM tagstream_plans')
        splits = json.loads(plan["splits"])
        assert all(before["payload"]["hi"] == after["payload"]["lo"] for before, after in pairwise(splits))
        ledger = self.db.query('SELECT "split" FROM tagstream_ledger')
        assert sorted(row["split"] for row in ledger) == sorted(split["id"] for split in splits)


class Reader:
    """Another session that looks at the table all the time."""

    def __init__(self, job: TableJob) -> None:
        self.job, self.reads, self.failure = job, 0, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure
        assert self.reads > 0

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.2):
                self.job.check_consistent()
                self.reads += 1
        except BaseException as error:
            self.failure = error


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--crash-long"))


def kill_at_random(job: TableJob, kills: int, longest: float, sign: Callable[[], int] | None = None) -> None:
    """kill -9 after the next commit and some time; then once to the end. `sign`: grows with every commit."""
    sign = sign or job.commits
    for _ in range(kills):
        before, process = sign(), job.start()
        wait_until(lambda b=before, p=process: sign() > b or p.poll() is not None, 60, "a commit")
        time.sleep(random.uniform(0, longest))
        assert process.poll() is None, process.stdout.read().decode()
        process.kill()
        process.communicate()
        job.check_consistent()
    assert 0 < job.commits() < job.rows // 1_000
    process = job.start()
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output
    job.check_complete()


def test_postgres_job_is_killed(postgres: Postgres, tmp_path: Path, long: bool) -> None:
    """While another session reads the table."""
    db = PostgresDatabase(postgres, f"kill_{random.randrange(10**9)}")
    job = TableJob(tmp_path, db, 200_000 if long else 14_000, 0.2 if long else 0.4)
    with Reader(job):
        kill_at_random(job, 20 if long else 2, 1.5)


def test_sqlite_job_is_killed(tmp_path: Path, long: bool) -> None:
    """A file that one process at a time may write."""
    job = TableJob(tmp_path, SqliteDatabase(tmp_path), 100_000 if long else 10_000, 0.4)
    kill_at_random(job, 20 if long else 2, 0.5)


def test_duckdb_job_is_killed(tmp_path: Path, long: bool) -> None:
    """A file that nobody else can open meanwhile; its log shows that it is written to."""
    job = TableJob(tmp_path, DuckDatabase(tmp_path), 100_000 if long else 10_000, 0.4)
    kill_at_random(job, 20 if long else 2, 2.0, lambda: max(file.stat().st_mtime_ns for file in tmp_path.glob("data*")))


def test_postgres_crashes_under_the_job(mortal_postgres: Postgres, tmp_path: Path, long: bool) -> None:
    """The running job sees its connections die, tries again, and ends as if nothing had happened."""
    db = PostgresDatabase(mortal_postgres, "crash")
    job = TableJob(tmp_path, db, 60_000 if long else 12_000, 0.4)
    process = job.start()
    for _ in range(5 if long else 2):
        before = job.commits()
        wait_until(lambda b=before: job.commits() > b or process.poll() is not None, 60, "a commit")
        time.sleep(random.uniform(0, 1))
        assert process.poll() is None, process.stdout.read().decode()
        mortal_postgres.restart("immediate")
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output
    job.check_complete()
