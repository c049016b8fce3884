"""A replay adds the rows that succeed now to the output. The other rows stay dead and keep their origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.replay import replay_job
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import LedgerError, SourceError, SpecError
from tagstream.transforms.io.memory import Memory
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.source_contract import columns_of_all_types

FAILING = {"infer__0__backend__fail_on": "9", "max_dead": 1}


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    """250 rows. 45 texts contain a nine and one text is null; the job has run, and has failed on all of these."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", [None if i == 7 else f"text {i}" for i in range(250)])
    bulk.run(**FAILING)
    return bulk


NINES = [i for i in range(250) if "9" in str(i)]
OTHERS = [i for i in range(250) if i != 7 and i not in NINES]


def replay(job: BulkJob, **overrides: Any) -> Report:
    report = replay_job(job.spec(**overrides), job.console)
    assert report.counts.rows_in == report.counts.rows_out + report.counts.dead_rows
    return report


def test_what_succeeds_now_joins_the_output(job: BulkJob) -> None:
    """In the end each row is there once. The row that can never get a label stays dead, for its old reason."""
    assert job.labels() == OTHERS
    assert job.dead() == sorted([7, *NINES])
    report = replay(job)
    assert (report.counts.rows_in, report.counts.rows_out, dict(report.counts.dead)) == (len(NINES) + 1, len(NINES), {"null_text": 1})  # fmt: skip  # noqa: E501
    assert job.labels() == sorted([*OTHERS, *NINES])
    assert job.dead('"row".id, code') == [(7, "null_text")]


def test_what_still_fails_keeps_its_origin(job: BulkJob) -> None:
    """After many replays a dead letter still has its first split and position, its id and its text."""
    what = '"row".id, code, origin_split, origin_position, payload'
    before = job.dead(what)
    for _ in range(3):
        report = replay(job, **FAILING)
        assert report.counts.rows_out == 0
        assert job.dead(what) == before
    half = replay(job, infer__0__backend__fail_on="19", max_dead=1)
    assert half.counts.rows_out == len([i for i in NINES if "19" not in str(i)])
    assert job.dead(what) == [row for row in before if row[0] == 7 or "19" in str(row[0])]
    replay(job)
    assert job.labels() == sorted([*OTHERS, *NINES])


def test_replayed_files_are_kept_aside(job: BulkJob) -> None:
    """Replayed dead letters move to _replayed, so that none is lost and none is replayed twice."""
    before = sorted(path.name for path in (job.folder / "dead").glob("*-0*.parquet"))
    replay(job)
    assert sorted(path.name for path in (job.folder / "dead/_replayed").iterdir()) == before
    assert len(list((job.folder / "dead").glob("*-0*.parquet"))) == 1


def test_run_and_plan_after_a_replay(job: BulkJob) -> None:
    """After a replay the job is still done, and its output holds no foreign input."""
    replay(job)
    plan = plan_job(job.spec())
    assert (plan.rows, plan.rows_left, plan.foreign_splits) == (250, 0, 0)
    assert job.run().counts.rows_in == 0
    assert "gone or has changed" not in job.said


def test_replay_with_other_settings_is_refused(job: BulkJob) -> None:
    """Labels of two jobs never mix. The dead letters stay for the right job."""
    with pytest.raises(LedgerError, match="another job"):
        replay(job, infer__0__backend__label="other")
    assert job.dead() == sorted([7, *NINES])
    replay(job)
    assert job.dead() == [7]


def test_positions_are_those_of_the_origin(tmp_path: Path) -> None:
    """With sink.position every row says where it came from, whether it was replayed or not."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [f"text {i}" for i in range(150)])
    job.run(sink__position=True, **FAILING)
    replay(job, sink__position=True)
    assert job.labels("id, position") == [(i, i) for i in range(150)]
    splits = dict(job.labels("id, split"))
    assert splits[0] == splits[99] != splits[100] == splits[149]


def test_interrupted_replay_goes_on(job: BulkJob) -> None:
    """If a replay is killed between its commit and the move of the files, the next one does no row twice."""
    dead = {path: path.read_bytes() for path in (job.folder / "dead").glob("*-0*.parquet")}
    replay(job)
    for path, content in dead.items():
        path.write_bytes(content)
    (job.folder / "dead/_replayed").rename(job.folder / "gone")
    report = replay(job)
    assert report.counts.rows_out == 0
    assert job.labels() == sorted([*OTHERS, *NINES])
    assert job.dead() == [7]


def test_nothing_to_replay(tmp_path: Path) -> None:
    """A replay without dead letters is an error that says so."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"])
    job.run()
    with pytest.raises(SourceError, match="dead: no dead letters to replay"):
        replay(job)


def test_dead_letters_without_text(tmp_path: Path) -> None:
    """With `payload: false` a dead letter has no text to run again, so it stays where it is."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x9", "y"])
    job.run(payload=False, **FAILING)
    with pytest.raises(SourceError, match=r"without their text \(payload: false\) and can't be replayed"):
        replay(job, payload=False)
    assert job.dead() == [0]


def test_without_id_and_kept_columns(tmp_path: Path) -> None:
    """Without id and kept columns a dead letter has no row. Its text and position are enough."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x9", "y", None])
    job.run(source__id=None, **FAILING)
    assert replay(job, source__id=None).counts.rows_out == 1
    assert len(job.labels("tag")) == 2
    assert job.dead("position, origin_position, code") == [(1, 2, "null_text")]


def test_kept_columns_of_every_type_come_back(tmp_path: Path) -> None:
    """After a replay, a row that was dead equals a row that never was."""
    columns = columns_of_all_types(40)
    job = BulkJob(tmp_path)
    job.put("a.parquet", [f"text {i}" for i in range(40)], **columns)
    keep = {"source__keep": list(columns)}
    job.run(**keep, infer__0__backend__fail_on="3", max_dead=1)
    replay(job, **keep)
    import pyarrow.dataset as ds

    got = ds.dataset(job.folder / "out", format="parquet").to_table()
    rows = {row["id"]: row for row in got.to_pylist()}
    assert sorted(rows) == list(range(40)) == sorted(got["id"].to_pylist())
    for name, column in columns.items():
        assert str([rows[i][name] for i in range(40)]) == str(column.to_pylist()), name
        assert got.schema.field(name).type == column.type, name


def test_rows_of_an_unreadable_file_stay(tmp_path: Path) -> None:
    """Rows of an unreadable file have no text to run again, and stay dead."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x", "y9"])
    (tmp_path / "in/b.parquet").write_text("no")
    job.run(source__on_bad_file="dead_letter", **FAILING)
    replay(job)
    assert job.labels() == [0, 1]
    assert job.dead("code") == ["bad_file"]


def test_needs_a_folder(tmp_path: Path) -> None:
    """A sink whose dead letters can't be read says so."""
    job = BulkJob(tmp_path)
    with pytest.raises(SpecError, match="replay can't read the dead letters of a memory sink"):
        replay(job, sink={"type": "memory", "rows": Memory()}, dead_letters=None)


def test_foreign_file_among_dead_letters(job: BulkJob) -> None:
    """The message names a damaged dead-letter file."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), job.folder / "dead/0.parquet")
    with pytest.raises(SourceError, match=r"0\.parquet: this version of tagstream can't read this dead-letter file"):
        replay(job)
    (job.folder / "dead/0.parquet").write_text("no")
    with pytest.raises(SourceError, match=r"0\.parquet: can't be read"):
        replay(job)
