"""Exactly once, whatever dies: real processes, kill -9 at random moments, an independent reader of the output."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.plan import plan_job
from tagstream.schemas.spec_file import load_spec
from tests.pipelines.bulk_jobs import KilledJob, Watcher, finished
from tests.services.java import wait_until

pytestmark = pytest.mark.crash


class Job(KilledJob):
    """A bulk job in a folder of its own: `rows` short texts, some null, some poison."""

    def __init__(self, folder: Path, rows: int, ms_per_row: float) -> None:
        self.folder, self.rows = folder, rows
        texts = [
            None if i % 97 == 0 else f"poison {i}" if i % 101 == 0 else f"message number {i} of many"
            for i in range(rows)
        ]
        self.dead_ids = {i for i in range(rows) if texts[i] is None or texts[i].startswith("poison")}
        (folder / "in").mkdir()
        table = pa.table({"id": range(rows), "body": texts})
        half = rows // 2
        pq.write_table(table.slice(0, half), folder / "in/a.parquet", row_group_size=7_000)
        pq.write_table(table.slice(half), folder / "in/b.parquet", row_group_size=50_000)
        self.file = folder / "job.yaml"
        self.file.write_text(
            f"source: {{type: parquet, path: {folder}/in, text: body, id: id, split_rows: 6000}}\n"
            "infer:\n"
            f"  - {{as: tag, backend: {{type: constant, ms_per_row: {ms_per_row}, fail_on: poison}}}}\n"
            f"sink: {{type: parquet, path: {folder}/out, commit_every: 0.2}}\n"
            f"dead_letters: {{type: parquet, path: {folder}/dead}}\n"
            "blocks: {rows: 500}\n"
        )

    def files(self) -> int:
        return len(list((self.folder / "out").glob("*-0*.parquet")))

    def count(self) -> int:
        """Committed rows, as DuckDB sees them; asserts that no id is there twice."""
        if not self.files():
            return 0
        ((total, distinct),) = query(
            f"select count(*), count(distinct id) from read_parquet('{self.folder}/out/*.parquet')"
        )
        assert total == distinct
        return total

    def check_complete(self) -> None:
        """Every row labelled or dead, none twice; the ledger agrees."""
        ids = [id_ for (id_,) in query(f"select id from read_parquet('{self.folder}/out/*.parquet')")]
        letters = query(f"select \"row\".id, code from read_parquet('{self.folder}/dead/*.parquet')")
        assert sorted(ids) == sorted(set(range(self.rows)) - self.dead_ids)
        assert sorted(id_ for id_, _ in letters) == sorted(self.dead_ids)
        assert {code for id_, code in letters if id_ % 97 == 0} == {"null_text"}
        assert {code for id_, code in letters if id_ % 97} == {"inference_failed"}
        plan = plan_job(load_spec(str(self.file)))
        assert (plan.rows, plan.rows_done, plan.rows_left) == (self.rows, self.rows, 0)


def query(sql: str) -> list[tuple]:
    """Rows of a DuckDB query, on a connection of its own."""
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def wait_for_more_files(job: Job, process: subprocess.Popen[bytes], before: int) -> bool:
    """Until the process has committed something new, or ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None or job.files() > before:
            return process.poll() is None
        time.sleep(0.01)
    raise AssertionError("nothing was committed within 60 s")


def test_killed_at_random_moments(tmp_path: Path, long: bool) -> None:
    """kill -9 again and again, each time at another moment: in the end every row is there exactly once."""
    kills = 20 if long else 3
    job = Job(tmp_path, rows=300_000 if long else 36_000, ms_per_row=0.25)
    chooser = random.Random(time.time_ns())
    progress = []
    with Watcher(job.count):
        for number in range(kills):
            before = job.files()
            process = job.start()
            if number % 3:
                wait_for_more_files(job, process, before)
                time.sleep(chooser.uniform(0, 2 if long else 1))
            else:
                time.sleep(chooser.uniform(0.2, 6))
            assert process.poll() is None, process.stdout.read().decode()
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            plan = plan_job(load_spec(str(job.file)))
            assert job.count() <= plan.rows_done <= job.count() + len(job.dead_ids)
            assert plan.rows_done + plan.rows_left == job.rows
            progress.append(plan.rows_done)
        finished(job.start())
    assert progress == sorted(progress)
    assert 0 < progress[-1] < job.rows
    job.check_complete()


def test_two_processes_on_one_output(tmp_path: Path, long: bool) -> None:
    """Started together, both end well, and each row is there exactly once; one of them is killed in the long form."""
    job = Job(tmp_path, rows=120_000 if long else 24_000, ms_per_row=0.25)
    with Watcher(job.count):
        first, second = job.start(), job.start()
        if long:
            wait_for_more_files(job, second, 0)
            second.kill()
            second.communicate()
            second = job.start()
        for process in (first, second):
            finished(process)
    job.check_complete()


def test_replacing_a_rewritten_file_is_killed(tmp_path: Path) -> None:
    """Killed while the new file is labelled: all old rows are visible. The rerun goes on and leaves only new ones."""
    job = Job(tmp_path, rows=12_000, ms_per_row=0)
    finished(job.start())
    old = job.count()
    table = pq.read_table(tmp_path / "in/a.parquet")
    pq.write_table(table, tmp_path / "in/a.parquet", compression="gzip")
    job.file.write_text(job.file.read_text().replace("ms_per_row: 0,", "ms_per_row: 0.4,"))
    command = [sys.executable, "-m", "tagstream", "run", str(job.file)]
    refused = subprocess.run(command, capture_output=True, check=False)
    assert refused.returncode == 5, refused.stderr.decode()
    aside = 0
    for _ in range(3):
        process = subprocess.Popen([*command, "--replace-changed"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_until(lambda seen=aside: len(changed(tmp_path)) > seen, 60, "a commit aside")
        process.kill()
        process.communicate()
        aside = len(changed(tmp_path))
        assert job.count() == old
    finished(subprocess.Popen([*command, "--replace-changed"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    job.check_complete()


def changed(folder: Path) -> list[Path]:
    """Label files that wait for the switch."""
    return list((folder / ".out.changed-by-tagstream").glob("*-0*.parquet"))
