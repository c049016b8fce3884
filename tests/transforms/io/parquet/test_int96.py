"""Timestamps that are stored as INT96, as Spark and Hive write them: the right value, or a refusal by name."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.errors import SourceError
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.parquet.test_agreement import rows
from tests.transforms.io.parquet.test_source import source

NEVER = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001  the type has no zone
"""What warehouses write for a row that is valid for ever. Nanoseconds in 64 bits can't hold it."""
FIRST = dt.datetime(1, 1, 1)  # noqa: DTZ001
THEN = dt.datetime(2024, 2, 29, 12, 0, 0, 123456)  # noqa: DTZ001


def put(path: Path, column: pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(len(column)), "x": column, "text": ["t"] * len(column)})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    assert "int96" in str(pq.ParquetFile(path).schema)


def stamps(*values: dt.datetime | None) -> pa.Array:
    return pa.array(values, pa.timestamp("us"))


@pytest.mark.parametrize(
    "column",
    [
        stamps(NEVER, None, THEN, FIRST),
        pa.array([[THEN, NEVER], None, [None]], pa.list_(pa.timestamp("us"))),
        pa.array([{"until": NEVER, "n": 1}, None, {"until": None, "n": 2}]),
        pa.array([[("a", NEVER)], None, []], pa.map_(pa.string(), pa.timestamp("us"))),
    ],
    ids=["plain", "list", "struct", "map"],
)
def test_days_far_away_stay(tmp_path: Path, column: pa.Array) -> None:
    put(tmp_path / "in/a.parquet", column)
    assert rows(source(tmp_path / "in", keep=["x"]), "x") == column.to_pylist()


def test_through_a_job(tmp_path: Path) -> None:
    """What pyarrow reads in the output is what was written."""
    put(tmp_path / "in/a.parquet", stamps(NEVER, None, THEN))
    BulkJob(tmp_path).run(source__keep=["x"])
    assert pq.read_table(tmp_path / "out").sort_by("id")["x"].to_pylist() == [NEVER, None, THEN]


def test_nanoseconds_stay(tmp_path: Path) -> None:
    """Hive and Impala write nanoseconds."""
    column = pa.array([1_700_000_000_123_456_789, None, -1], pa.timestamp("ns"))
    put(tmp_path / "in/a.parquet", column)
    opened = source(tmp_path / "in", keep=["x"])
    assert opened.kept.field("x").type == pa.timestamp("ns")
    (block,) = opened.read(opened.splits()[0], 0)
    assert block.batch.column("x").equals(column)


def test_what_the_unit_cannot_hold_is_refused(tmp_path: Path) -> None:
    """The message names the file and the column. It is never another value."""
    put(tmp_path / "in/a.parquet", pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")))
    put(tmp_path / "in/b.parquet", stamps(NEVER))
    with pytest.raises(SourceError, match=r"b\.parquet: 'x' is INT96 and holds a day outside of 1677 to 2262"):
        rows(source(tmp_path / "in", keep=["x"]), "x")
    put(tmp_path / "in/a.parquet", stamps(THEN))
    put(tmp_path / "in/b.parquet", pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")))
    with pytest.raises(SourceError, match=r"b\.parquet: 'x' is INT96 and holds nanoseconds"):
        rows(source(tmp_path / "in", keep=["x"]), "x")


def test_beside_another_unit(tmp_path: Path) -> None:
    """Far days can't join nanoseconds, and the refusal says so. Near ones can."""
    put(tmp_path / "in/a.parquet", stamps(THEN))
    late = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": [1], "x": late, "text": ["t"]}), tmp_path / "in/b.parquet")
    found = rows(source(tmp_path / "in", keep=["x"]), "x")
    assert [value.value if hasattr(value, "value") else value for value in found][1] == 1_700_000_000_123_456_789
    put(tmp_path / "in/a.parquet", stamps(NEVER))
    with pytest.raises(SourceError, match=r"not exact in timestamp\[ns\]"):
        source(tmp_path / "in", keep=["x"])


def test_columns_that_are_not_kept_do_not_matter(tmp_path: Path) -> None:
    put(tmp_path / "in/a.parquet", stamps(NEVER))
    put(tmp_path / "in/b.parquet", pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")))
    assert rows(source(tmp_path / "in", id="id"), "id") == [0, 0]
