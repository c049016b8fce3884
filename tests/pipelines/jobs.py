"""Small bulk jobs for tests: input on disk, a specification, and what an outside reader finds in the output."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from pipelines.report import Report
from pipelines.run import run_job
from schemas.spec import JobSpec
from schemas.spec_file import load_spec

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
            "classify": [CONSTANT],
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
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "out").glob("*.parquet")}

    def _query(self, folder: str, what: str) -> list[tuple]:
        if not list((self.folder / folder).glob("*.parquet")):
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
