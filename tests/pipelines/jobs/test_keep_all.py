"""`keep: '*'` passes every column of the input on, and refuses two columns with one name."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.replay import replay_job
from tagstream.schemas.errors import SpecError
from tests.pipelines.bulk_jobs import CONSTANT, BulkJob


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    """Three rows with columns around the text. One row has no text."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", ["x", None, "z"], Z=pa.array([1, 2, 3]), a=pa.array(["p", "q", None]))
    return bulk


def test_columns_in_the_order_of_the_input(job: BulkJob) -> None:
    """All columns but the text come before the labels. Dead letters have them too, and rows after a replay."""
    job.run(source__keep="*", source__id="a", max_dead=1)
    table = pq.read_table(job.folder / "out")
    assert table.column_names == ["id", "Z", "a", "tag", "tag_score", "tag_truncated"]
    assert table.select(["id", "Z", "a"]).to_pylist() == [{"id": 0, "Z": 1, "a": "p"}, {"id": 2, "Z": 3, "a": None}]
    dead = pq.read_table(job.folder / "dead")
    assert dead["row"].to_pylist() == [{"id": 1, "Z": 2, "a": "q"}]
    report = replay_job(job.spec(source__keep="*", source__id="a"), job.console)
    assert report.counts.dead_rows == 1


def test_one_column_without_a_list(job: BulkJob) -> None:
    """`keep: label` means `keep: [label]`."""
    assert job.spec(source__keep="Z").source == job.spec(source__keep=["Z"]).source


def test_table_sink(job: BulkJob) -> None:
    """A sink that creates its columns before the first row knows all of them."""
    path = str(job.folder / "out.duckdb")
    job.run(source__keep="*", sink={"type": "duckdb", "path": path, "table": "labels"}, dead_letters=None, max_dead=1)
    with duckdb.connect(path) as database:
        found = database.execute("SELECT id, Z, a, tag FROM labels ORDER BY id").fetchall()
    assert found == [(0, 1, "p", "ham"), (2, 3, None, "ham")]


def test_replay_into_a_table(job: BulkJob) -> None:
    """The sink learns the columns from the source before it opens."""
    table = {"table": "labels", "key": "Z", "mode": "upsert"}
    where = {
        "source__keep": "*",
        "sink": {"type": "duckdb", "path": str(job.folder / "out.duckdb"), **table},
        "dead_letters": None,
        "max_dead": 1,
    }  # fmt: skip
    failing = [{**CONSTANT, "backend": {**CONSTANT["backend"], "fail_on": "z"}}]
    job.run(**where, infer=failing)
    assert replay_job(job.spec(**where), job.console).counts.rows_out == 1


@pytest.mark.parametrize("column", ["tag", "tag_score", "split"])
def test_a_column_with_the_name_of_a_label(job: BulkJob, column: str) -> None:
    """The message names the column, its other user and two ways out. Nothing is written before."""
    job.put("a.parquet", ["x"], **{column: pa.array([1])})
    with pytest.raises(
        SpecError, match=rf"source\.keep: '\*' .*column '{column}' of .* already taken by .*Rename one, or"
    ):
        plan_job(job.spec(source__keep="*", sink__position=True))


def test_names_of_ours(job: BulkJob) -> None:
    """pandas writes an index as __index_level_0__: left out, and said; asked for by name it is refused."""
    job.put("a.parquet", ["x"], __index_level_0__=pa.array([1]), Z=pa.array([2]))
    job.run(source__keep="*")
    assert pq.read_table(job.folder / "out").column_names == ["id", "Z", "tag", "tag_score", "tag_truncated"]
    assert "keep: '*' leaves out '__index_level_0__'" in job.said
    with pytest.raises(SpecError, match="'__index_level_0__': names that begin with __ can't be kept"):
        job.spec(source__keep="__index_level_0__")


def test_files_with_other_columns(job: BulkJob) -> None:
    """All means the columns of all files; a file that lacks one has nulls, and the job says so."""
    job.put("b.parquet", ["x"], first=10, a=pa.array(["p"]), b=pa.array([7]))
    job.run(source__keep="*", max_dead=1)
    found = pq.read_table(job.folder / "out").sort_by("id").select(["id", "Z", "a", "b"]).to_pylist()
    assert found == [
        {"id": 0, "Z": 1, "a": "p", "b": None},
        {"id": 2, "Z": 3, "a": None, "b": None},
        {"id": 10, "Z": None, "a": "p", "b": 7},
    ]
    assert "column 'Z' is null for 1 of 2 files, which do not have it: 'b.parquet'" in job.said
    assert "column 'b' is null for 1 of 2 files, which do not have it: 'a.parquet'" in job.said
