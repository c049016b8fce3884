"""Iceberg and Delta tables, exactly once, whatever dies: kill -9 of the job, jobs at once, a reader all the time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipelines.bulk_jobs import KilledJob, Watcher, finished
from tests.transforms.io.lake.lakes import DeltaLake, IcebergLake, Lake

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]


class LakeJob(KilledJob):
    """A job from a table `messages` of `rows` rows to a table `labels`; some texts are null, some poison."""

    def __init__(self, folder: Path, lake: Lake, rows: int, ms_per_row: float) -> None:
        self.lake, self.rows = lake, rows
        texts = [None if i % 97 == 0 else f"poison {i}" if i % 101 == 0 else f"message {i}" for i in range(rows)]
        self.dead_ids = [i for i in range(rows) if texts[i] is None or texts[i].startswith("poison")]
        table = pa.table({"id": range(rows), "body": texts})
        for first in range(0, rows, rows // 4):
            lake.append("messages", table.slice(first, rows // 4))
        self.file = folder / "job.yaml"
        source: dict[str, Any] = {"text": "body", "id": "id", "split_rows": 1_000}
        self.file.write_text(
            f"source: {json.dumps({**lake.settings('messages'), **source})}\n"
            f"infer: [{{as: tag, backend: {{type: constant, ms_per_row: {ms_per_row}, fail_on: poison}}}}]\n"
            f"sink: {json.dumps(lake.settings('labels'))}\n"
            "blocks: {rows: 250}\n"
        )

    def spans(self) -> list[dict[str, Any]]:
        """What the table's history says of each commit of rows."""
        if not self.lake.exists("labels"):
            return []
        return [note for note in self.lake.notes("labels") if "tagstream.split" in note]

    def commits(self) -> int:
        return len(self.spans())

    def check_consistent(self) -> None:
        """No row is there twice, and rows are there as the history says."""
        if not self.lake.exists("labels"):
            return
        ids, notes = self.lake.rows_and_notes("labels", "id")
        assert len(ids) == len(set(ids))
        assert len(ids) == sum(int(note["tagstream.rows-out"]) for note in notes if "tagstream.split" in note)

    def check_complete(self) -> None:
        """Every row labelled or dead, none twice; the spans of each split follow each other."""
        self.check_consistent()
        assert sorted(self.lake.table("labels")["id"].to_pylist()) == sorted({*range(self.rows)} - {*self.dead_ids})
        dead = self.lake.table("labels-dead" if self.lake.type == "delta" else "labels_dead")
        assert sorted(json.loads(row)["id"] for row in dead["row"].to_pylist()) == self.dead_ids
        spans: dict[str, list[tuple[int, int]]] = {}
        for note in self.spans():
            spans.setdefault(note["tagstream.split"], []).append(
                (int(note["tagstream.start"]), int(note["tagstream.stop"]))
            )
        assert sum(stop - start for split in spans.values() for start, stop in split) == self.rows
        assert all(a[1] == b[0] for split in spans.values() for a, b in pairwise(sorted(split)))


@pytest.fixture(params=[IcebergLake, DeltaLake])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return request.param(tmp_path)


def test_job_is_killed(lake: Lake, tmp_path: Path, long: bool) -> None:
    """While another process reads the table."""
    job = LakeJob(tmp_path, lake, 100_000 if long else 6_000, 0.4)
    with Watcher(job.check_consistent):
        job.kill_at_random(20 if long else 1, 0.8)


def test_two_jobs_at_once(lake: Lake, tmp_path: Path, long: bool) -> None:
    """Started together, both end well, and each row is there once."""
    job = LakeJob(tmp_path, lake, 60_000 if long else 4_000, 0.4)
    with Watcher(job.check_consistent):
        for process in [job.start() for _ in range(4 if long else 2)]:
            finished(process)
    job.check_complete()
