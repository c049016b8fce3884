"""Small jobs for tests: input, specification, and output as an outside reader sees it. Also jobs that are killed."""

from __future__ import annotations

import copy
import io
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.report.report import Report
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.spec_file import load_spec
from tests.services.java import wait_until

CONSTANT = {"as": "tag", "backend": {"type": "constant", "label": "ham"}}


class BulkJob:
    """Files in `in`, labels in `out`, dead letters in `dead`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(file=io.StringIO(), width=200)

    def put(self, name: str, texts: list[str | None], first: int = 0, **columns: pa.Array) -> None:
        """A Parquet file with ids from `first` on."""
        (self.folder / "in").mkdir(exist_ok=True)
        ids = pa.array(range(first, first + len(texts)), pa.int64())
        table = pa.table({"id": ids, "text": pa.array(texts, pa.string()), **columns})
        pq.write_table(table, self.folder / "in" / name, row_group_size=100)

    def spec(self, **overrides: Any) -> JobSpec:
        """Constant backend unless told otherwise; overrides by dotted path, `__` for a dot."""
        fields = {
            "source": {"type": "parquet", "path": str(self.folder / "in"), "id": "id", "split_rows": 100},
            "infer": [CONSTANT],
            "sink": {"type": "parquet", "path": str(self.folder / "out")},
            "dead_letters": {"type": "parquet", "path": str(self.folder / "dead")},
            "blocks": {"rows": 32},
        }
        fields |= {key.replace("__", "."): value for key, value in overrides.items()}
        return load_spec(None, copy.deepcopy(fields))

    def run(self, *, overwrite: bool = False, limit: int | None = None, **overrides: Any) -> Report:
        report = run_job(self.spec(**overrides), self.console, overwrite=overwrite, limit=limit)
        assert report.counts.rows_in == report.counts.rows_out + report.counts.dead_rows
        return report

    @property
    def said(self) -> str:
        """What the console showed."""
        return self.console.file.getvalue()  # type: ignore[attr-defined]

    def files(self) -> dict[str, int]:
        """Names of committed files of labels and the time of each."""
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "out").glob("*-0*.parquet")}

    def _query(self, folder: str, what: str) -> list[tuple]:
        if not list((self.folder / folder).glob("*-0*.parquet")):
            return []
        with duckdb.connect() as connection:
            return connection.execute(f"select {what} from read_parquet('{self.folder}/{folder}/*.parquet')").fetchall()

    def labels(self, what: str = "id") -> list:
        """Rows of the output, sorted; values instead of tuples if there is one column."""
        rows = sorted(self._query("out", what))
        return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows

    def dead(self, what: str = '"row".id') -> list:
        """Rows of the dead letters, likewise."""
        rows = sorted(self._query("dead", what))
        return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows


class KilledJob:
    """A job that runs in separate processes. `file`: its specification. It has `rows` rows in splits of 1,000."""

    file: Path
    rows: int

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tagstream", "run", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def commits(self) -> int:
        """How many commits there are."""
        raise NotImplementedError

    def check_consistent(self) -> None:
        """Assert what must hold at every moment."""
        raise NotImplementedError

    def check_complete(self) -> None:
        """Assert what must hold in the end."""
        raise NotImplementedError

    def kill_at_random(
        self,
        kills: int,
        longest: float,
        sign: Callable[[], int] | None = None,
        blows: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Start the job and kill it (kill -9) some time after its next commit, many times. Then let it run to the end.

        `sign`: a number that grows with every commit. If it also grows at other times, more kills are needed until one
        hits a commit. `blows`: other faults in between, which the job must survive.
        """
        sign = sign or self.commits
        events: list[Callable[[], object] | None] = [*[None] * kills, *blows]
        random.shuffle(events)
        process = None
        for _ in range(len(events) + 20):
            if not events and self.commits():
                break
            event = events.pop() if events else None
            before, process = sign(), process or self.start()
            wait_until(lambda b=before, p=process: sign() > b or p.poll() is not None, 60, "a commit")
            time.sleep(random.uniform(0, longest))
            assert process.poll() is None, process.stdout.read().decode()
            if event is not None:
                event()
                continue
            process.kill()
            process.communicate()
            process = None
            self.check_consistent()
        assert 0 < self.commits() < self.rows // 1_000
        finished(process or self.start())
        self.check_complete()


def finished(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process to end. It must succeed."""
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output


class Watcher:
    """A thread that keeps looking at the output. `look` asserts what it must find there."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.look, self.looks = look, 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure
        assert self.looks > 0

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.1):
                self.look()
                self.looks += 1
        except BaseException as error:
            self.failure = error
