"""Rows whose kept columns hold bytes that are not UTF-8 are dead letters, in columns of every kind."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.block import POSITION, TEXT, take_rows
from tagstream.transforms.stages.kept_values import split_off_bad_values
from tests.pipelines.bulk_jobs import BulkJob

BYTES = [b"fine", b"caf\xe9", None, b"\xff\xfe", "näher".encode()]
BAD = [1, 3]


def claimed_text(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """An array whose type says text, whatever the bytes are."""
    if kind == pa.string_view():
        return pa.array(values, pa.binary_view()).view(pa.string_view())
    return pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary()).view(kind)


def columns() -> dict[str, pa.Array]:
    """One row for each of BYTES."""
    text = claimed_text(BYTES, pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4, 5], pa.int32()), text)
    return {
        "string": text,
        "large_string": claimed_text(BYTES, pa.large_string()),
        "string_view": claimed_text(BYTES, pa.string_view()),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 3, 4], pa.int8()), text),
        "list": lists,
        "struct": pa.StructArray.from_arrays([text, pa.array(range(5))], ["name", "n"]),
        "map": pa.MapArray.from_arrays(lists.offsets, pa.array(list("abcde")), text),
    }


def block(column: pa.Array) -> pa.RecordBatch:
    n = len(column)
    texts, positions = pa.array(["text"] * n, pa.large_string()), pa.array(range(7, 7 + n), pa.int64())
    return pa.RecordBatch.from_arrays([pa.array(range(n)), column, texts, positions], ["id", "kept", TEXT, POSITION])


@pytest.mark.parametrize("kind", columns())
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slice"])
def test_bad_rows_go_and_good_ones_stay(kind: str, sliced: bool) -> None:
    """What stays and what goes can be validated. The message shows the bytes."""
    column = columns()[kind]
    if sliced:
        column = pa.concat_arrays([column.slice(3, 2), column]).slice(2)
    batch = block(column)
    rest, dead = split_off_bad_values("s", batch)
    rest.validate(full=True)
    dead.validate(full=True)
    assert rest.column("id").to_pylist() == [0, 2, 4]
    assert rest.column("kept").to_pylist() == take_rows(batch, [0, 2, 4]).column("kept").to_pylist()
    assert rest.schema == batch.schema
    assert dead.column("position").to_pylist() == [7 + row for row in BAD]
    assert set(dead.column("code").to_pylist()) == {"bad_value"}
    assert dead.column("payload").null_count == 2
    assert dead.column("row").to_pylist() == [{"id": row, "kept": None} for row in BAD]
    assert "'kept' is not valid UTF-8" in dead.column("message")[0].as_py()
    if kind in ("string", "large_string", "dictionary"):
        assert r"caf\xe9" in dead.column("message")[0].as_py()


def test_valid_columns_are_handed_on_as_they_are() -> None:
    """An entry of a dictionary that no row has does no harm, and is not handed on."""
    batch = block(pa.array(["a", None]))
    assert split_off_bad_values("s", batch)[0] is batch
    words = claimed_text([b"a", b"\xff", b"c"], pa.string())
    unused = pa.DictionaryArray.from_arrays(pa.array([0, 2, 0], pa.int32()), words)
    rest, dead = split_off_bad_values("s", block(unused))
    assert dead.num_rows == 0
    assert rest.column("kept").to_pylist() == ["a", "c", "a"]


def test_a_job_of_such_rows(tmp_path: Path) -> None:
    """Other programs read labels and dead letters, and what came in is what went out."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["one", "two", "three", None, "five"], note=claimed_text(BYTES, pa.string()))
    report = job.run(source__keep=["note"])
    assert (report.counts.rows_in, report.counts.rows_out) == (5, 3)
    assert dict(report.counts.dead) == {"bad_value": 2}
    assert pl.read_parquet(f"{tmp_path}/out/*.parquet").sort("id")["note"].to_list() == ["fine", None, "näher"]
    letters = duckdb.sql(f"SELECT position, row.note FROM '{tmp_path}/dead/*.parquet' ORDER BY 1").fetchall()
    assert letters == [(1, None), (3, None)]
    assert pq.read_table(tmp_path / "dead").num_rows == 2
