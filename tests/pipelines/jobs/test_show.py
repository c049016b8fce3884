"""`--show` prints a few committed rows with each text beside its labels, whatever the columns are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.show import sample_rows
from tagstream.pipelines.report.progress import print_rows
from tagstream.transforms.io.memory import Memory
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.source_contract import columns_of_all_types


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", [None if i % 3 == 0 else f"text {i}" for i in range(60)], **columns_of_all_types(60))
    return bulk


def shown(job: BulkJob, count: int = 5, **overrides: Any) -> pa.Table:
    job.run(max_dead=1, **overrides)
    rows = sample_rows(job.spec(**overrides), count)
    print_rows(job.console, rows, "rows")
    return rows


def test_text_is_found_by_id(job: BulkJob) -> None:
    """Each text stands beside the labels of its own row. Dead rows are left out."""
    rows = shown(job)
    assert rows.column_names == ["id", "text", "tag", "tag_score", "tag_truncated"]
    assert rows["text"].to_pylist() == [f"text {i}" for i in rows["id"].to_pylist()]
    assert rows.num_rows == 5
    assert "text 1" in job.said


def test_nested_columns(job: BulkJob) -> None:
    """Columns of other types are shown too: all scores are a struct, and kept columns have any type."""
    keep = [name for name in columns_of_all_types(1) if name != "null"]
    rows = shown(job, source__keep=keep, infer__0__scores="all")
    assert rows["text"].to_pylist() == [f"text {i}" for i in rows["id"].to_pylist()]
    assert rows["tag_scores"].to_pylist() == [{"ham": 1.0}] * 5
    assert set(keep) <= set(rows.column_names)


@pytest.mark.parametrize("column", ["category", "string", "uint64", "instant", "view"])
def test_ids_of_other_types(job: BulkJob, column: str) -> None:
    """Ids may be dictionary-encoded, strings, numbers or times."""
    rows = shown(job, source__id=column)
    assert rows.num_rows == 5
    assert rows["text"].null_count < 5


def test_kept_text_and_no_id(job: BulkJob) -> None:
    """A text that the output has is shown from there. Without an id only labels are shown."""
    assert shown(job, source__keep=["text"])["text"].to_pylist() == ["text 1", "text 2", "text 4", "text 5", "text 7"]


def test_without_id(job: BulkJob) -> None:
    """Without an id nothing tells which text a row belongs to."""
    assert shown(job, source__id=None).column_names == ["tag", "tag_score", "tag_truncated"]


def test_texts_that_are_no_utf8(tmp_path: Path) -> None:
    """Dead rows are left out, and the others are shown."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [])
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"id": pa.array(range(3), pa.int64()), "text": text}), tmp_path / "in/a.parquet")
    assert shown(job)["text"].to_pylist() == ["a", "c"]


@pytest.mark.parametrize("texts", [[], [None]])
def test_nothing_to_show(tmp_path: Path, texts: list) -> None:
    """An output without rows is shown without an error."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", texts)
    assert shown(job).num_rows == 0


@pytest.mark.parametrize("rows", [0, 3])
def test_memory(tmp_path: Path, rows: int) -> None:
    """Labels in memory can be shown too."""
    table = pa.table({"id": pa.array(range(rows)), "text": pa.array(["x"] * rows, pa.string())})
    job = BulkJob(tmp_path)
    memory = {"source": {"type": "memory", "rows": Memory(table), "id": "id"}, "dead_letters": None}
    assert shown(job, sink={"type": "memory", "rows": Memory()}, **memory).num_rows == rows
