"""What each Arrow type becomes in each sink: the same value for every row, a dead letter, or a refusal at start.

The values are read back by the system's own client. docs/reference/types.md shows the table to users.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import tagstream
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import SinkError
from tagstream.schemas.spec_file import load_spec
from tests.transforms.io.arrow_values import VALUES
from tests.transforms.io.lake.lakes import DeltaLake, IcebergLake


@dataclass(frozen=True)
class Refused:
    """`message`: a part of the message at start."""

    message: str


@dataclass(frozen=True)
class Dead:
    """`rows`: numbers of the dead letters; the other rows have their values."""

    rows: tuple[int, ...]


Expected = pa.Array | Refused | Dead
LAKES: dict[str, Expected] = {
    "null": pa.nulls(3, pa.string()),
    "uint64": pa.array([Decimal(0), Decimal(2**64 - 1), None], pa.decimal128(20, 0)),
    "decimal256": Refused("'x': a lake table can't hold the type decimal256(60, 2)"),
    **{kind: pc.cast(VALUES[kind], pa.string()) for kind in ("time32-ms", "time64-us", "time64-ns")},
    "time32-s": pa.array(["23:59:59.000", "00:00:00.000", None]),  # Parquet has no seconds
    **{kind: VALUES[kind].cast(pa.int64()) for kind in VALUES if kind.startswith("duration")},
    "timestamp-ns": Dead((0, 1)),
    "timestamp-ns-utc": Dead((0, 1)),
}
EXPECTED: dict[str, dict[str, Expected]] = {
    "parquet": {},
    "memory": {},
    "iceberg": LAKES | {"null-list-of-structs": Dead((1,))},
    "delta": LAKES | {"map-of-times": Refused("'x' has timestamps without a time zone inside a map")},
}
"""Exceptions by sink and kind. Everything else has the value that it had."""
STORAGE = {"uuid", "json", "bool8"}
"""Extension types are read as their storage."""


def source_file(folder: Path, **columns: pa.Array) -> Path:
    """A file with these columns, ids from 0 on, and a text in each row."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(columns.values())))
    table = pa.table({"id": pa.array(range(rows), pa.int64()), **columns, "text": ["a"] * rows})
    pq.write_table(table, folder / "in.parquet")
    return folder / "in.parquet"


def sink_of(name: str, folder: Path) -> tuple[Any, Callable[[], pa.Table]]:
    """The sink's part of a specification, and its rows as its own client reads them."""
    if name == "parquet":
        return {"type": "parquet", "path": f"{folder}/out"}, lambda: pq.read_table(folder / "out")
    lake = (IcebergLake if name == "iceberg" else DeltaLake)(folder)
    return lake.settings("labels"), lambda: lake.table("labels")


def stored(name: str, folder: Path, **columns: pa.Array) -> tuple[pa.Table, dict[str, int]]:
    """The rows in the sink, by id, and the dead letters."""
    path = str(source_file(folder, **columns))
    fields = {
        "name": "types",
        "source": {"type": "parquet", "path": path, "text": "text", "id": "id", "keep": list(columns)},
        "infer": [{"as": "tag", "backend": {"type": "constant"}}],
        "max_dead": 1,
    }
    if name == "memory":
        rows = tagstream.Memory()
        report = tagstream.run(fields, sink=rows, progress=False)
        return in_order(rows.labels()), dict(report.counts.dead)
    sink, read = sink_of(name, folder)
    report = run_job(load_spec(None, {**fields, "sink": sink}), Console(file=io.StringIO()))
    return in_order(read()), dict(report.counts.dead)


def in_order(found: pa.Table) -> pa.Table:
    return pa.concat_tables([found.slice(row, 1) for row in np.argsort(found["id"].to_numpy())])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pa.Table]:
    """What a sink holds after one job with a column of each type whose rows it takes, by the sink's name."""
    held: dict[str, pa.Table] = {}

    def rows(name: str) -> pa.Table:
        if name not in held:
            taken = {k: v for k, v in VALUES.items() if not isinstance(EXPECTED[name].get(k), Refused | Dead)}
            held[name], dead = stored(name, tmp_path_factory.mktemp(name), **taken)
            assert not dead
        return held[name]

    return rows


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", EXPECTED)
def test_cell(name: str, kind: str, tmp_path: Path, together: Callable[[str], pa.Table]) -> None:
    """One sink and one type."""
    expected = EXPECTED[name].get(kind, VALUES[kind].storage if kind in STORAGE else VALUES[kind])
    if isinstance(expected, Refused):
        with pytest.raises(SinkError) as refusal:
            stored(name, tmp_path, x=VALUES[kind])
        assert expected.message in str(refusal.value)
    elif isinstance(expected, Dead):
        found, dead = stored(name, tmp_path, x=VALUES[kind])
        assert found["id"].to_pylist() == [row for row in range(3) if row not in expected.rows]
        assert dead == {"refused": len(expected.rows)}
    else:
        found = together(name)
        assert found["id"].to_pylist() == [0, 1, 2]
        same_values(found[kind].combine_chunks(), expected)


def same_values(found: pa.Array, expected: pa.Array) -> None:
    """Python compares values, Arrow what Python can't hold."""
    if pa.types.is_temporal(expected.type) and expected.type.bit_width == 64 and found.type == expected.type:
        assert found.view(pa.int64()).equals(expected.view(pa.int64()))
    elif pa.types.is_string_view(expected.type) or pa.types.is_binary_view(expected.type):
        assert found.to_pylist() == expected.to_pylist()
    else:
        np.testing.assert_equal(found.to_pylist(), expected.to_pylist())
