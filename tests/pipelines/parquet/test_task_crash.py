"""A job of every task that is killed: each row has its answers once, those of a job that nobody killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tagstream import run
from tests.models import random_texts
from tests.pipelines.bulk_jobs import KilledJob
from tests.task_models import TASKS, entry_of


class EveryTask(KilledJob):
    """All tasks, from files to files."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows, self.file = folder, rows, folder / "job.yaml"
        texts = [text or "!" for text in random_texts(rows, seed=4, longest=8)]
        pq.write_table(pa.table({"id": range(rows), "text": texts}), folder / "in.parquet")
        self.job = {
            "name": "tasks",
            "source": {"type": "parquet", "path": str(folder / "in.parquet"), "id": "id", "split_rows": 1000},
            "infer": [entry_of(task, folder / task) for task in TASKS],
            "sink": {"type": "parquet", "path": str(folder / "out"), "commit_every": 30},
            "blocks": {"rows": 100},
        }
        self.file.write_text(json.dumps(self.job))

    def commits(self) -> int:
        return len(list((self.folder / "out").glob("*-0*.parquet")))

    def check_consistent(self) -> None:
        files = list((self.folder / "out").glob("*-0*.parquet"))
        ids = [one for file in files for one in pq.read_table(file)["id"].to_pylist()]
        assert len(ids) == len(set(ids))

    def check_complete(self) -> None:
        run({**self.job, "sink": {"type": "parquet", "path": str(self.folder / "whole")}})
        found, expected = (pq.read_table(self.folder / name).sort_by("id") for name in ("out", "whole"))
        assert found["id"].to_pylist() == list(range(self.rows))
        assert found.column_names == expected.column_names
        for name in expected.column_names:
            kind = expected.schema.field(name).type
            if pa.types.is_floating(kind) or pa.types.is_fixed_size_list(kind):
                pairs = (np.array(table[name].to_pylist()) for table in (found, expected))
                np.testing.assert_allclose(*pairs, atol=1e-5)
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
                assert found[name].to_pylist() == expected[name].to_pylist()


def test_killed_at_random(tmp_path: Path, *, long: bool) -> None:
    """Rows once each, whatever the task."""
    EveryTask(tmp_path, 40_000 if long else 4_000).kill_at_random(10 if long else 1, 0.5)
