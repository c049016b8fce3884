"""Random tables as Parquet files, through every local sink: each row comes out once, with the values that it had.

Schemas, values, nulls, row groups, encodings, codecs and the sizes of splits and blocks are random. 200 cases in the
suite, 5,000 with --crash-long.
"""

from __future__ import annotations

import datetime as dt
import io
import re
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

import tagstream
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.spec_file import load_spec
from tests.transforms.io.test_types import sink_of

CODECS = ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]
CASES = {"parquet": 80, "memory": 80, "delta": 20, "iceberg": 20}
"""How many cases the suite runs, by sink. A commit of a lake takes a hundred times as long as one of a file."""
DAYS = st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
FIRST = dt.datetime(1, 1, 1)  # noqa: DTZ001  the types have no zone
MICROSECONDS = (dt.datetime(9999, 12, 31) - FIRST) // dt.timedelta(microseconds=1)  # noqa: DTZ001


def _integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **{getattr(pa, f"int{bits}")(): _integers(bits, signed=True) for bits in (8, 16, 32, 64)},
    **{getattr(pa, f"uint{bits}")(): _integers(bits, signed=False) for bits in (8, 16, 32, 64)},
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): st.text(max_size=8),
    pa.large_string(): st.text(max_size=8),
    pa.binary(): st.binary(max_size=8),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): DAYS,
    pa.time64("us"): st.times(),
    pa.timestamp("us"): st.integers(0, MICROSECONDS).map(lambda n: FIRST + dt.timedelta(microseconds=n)),
    pa.timestamp("ms", "UTC"): st.integers(-(10**12), 10**13),
    pa.duration("us"): st.integers(-(10**15), 10**15),
    pa.decimal128(20, 3): st.integers(-(10**20) + 1, 10**20 - 1).map(lambda n: Decimal(n).scaleb(-3)),
    pa.decimal128(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
}


@st.composite
def kinds(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """A type, and its values."""
    shape = draw(
        st.sampled_from(["leaf", "leaf", "leaf", "list", "struct", "map", "dictionary"] if depth else ["leaf"])
    )
    if shape == "leaf":
        kind = draw(st.sampled_from(list(LEAVES)))
        return kind, LEAVES[kind]
    if shape == "dictionary" and depth == 2:
        return pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", "ü"])
    if shape == "struct":
        fields = draw(st.lists(kinds(depth=depth - 1), min_size=1, max_size=3))
        struct = pa.struct([(f"f{number}", kind) for number, (kind, _) in enumerate(fields)])
        return struct, st.fixed_dictionaries(
            {f"f{number}": st.none() | values for number, (_, values) in enumerate(fields)}
        )
    kind, values = draw(kinds(depth=depth - 1))
    if shape == "map":
        return pa.map_(pa.string(), kind), st.lists(st.tuples(st.text(max_size=3), st.none() | values), max_size=3)
    return pa.list_(kind), st.lists(st.none() | values, max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 40))
    columns: dict[str, pa.Array] = {"id": pa.array(range(rows), pa.int64())}
    for number, (kind, values) in enumerate(draw(st.lists(kinds(), min_size=1, max_size=4))):
        held = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        dictionary = pa.types.is_dictionary(kind)
        columns[f"c{number}"] = pa.array(held, kind.value_type if dictionary else kind)
        if dictionary:
            columns[f"c{number}"] = columns[f"c{number}"].dictionary_encode()
    texts = draw(st.lists(st.none() | st.text(max_size=20), min_size=rows, max_size=rows))
    columns["text"] = pa.array(texts, draw(st.sampled_from([pa.string(), pa.large_string()])))
    return pa.table(columns)


FILES = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 50),
        "compression": st.sampled_from(CODECS),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([64, 1 << 20]),
        "store_schema": st.booleans(),
    }
)


def check(table: pa.Table, file: dict[str, Any], sink: str, split_rows: int, block_rows: int) -> None:
    """One case."""
    assume(sink != "delta" or not any(re.search(r"map<.*timestamp\[us\]", str(kind)) for kind in table.schema.types))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(table, folder / "in.parquet", **file)
        source = pq.read_table(folder / "in.parquet")
        kept = [name for name in source.column_names if name.startswith("c")]
        fields: dict[str, Any] = {
            "name": "fuzz",
            "source": {
                "type": "parquet", "path": f"{folder}/in.parquet", "id": "id", "keep": kept, "split_rows": split_rows,
            },
            "infer": [{"as": "tag", "backend": {"type": "constant"}}],
            "blocks": {"rows": block_rows},
            "max_dead": 1,
        }  # fmt: skip
        found, dead = _run(fields, sink, folder)
    alive = [row for row, text in enumerate(table["text"].to_pylist()) if text is not None]
    if sink == "iceberg":
        refused = {row for name in kept for row in range(table.num_rows) if _lost(source[name][row])}
        alive = [row for row in alive if row not in refused]
    assert sorted(found["id"].to_pylist() if "id" in found.column_names else []) == alive
    assert dead == table.num_rows - len(alive)
    if alive:
        order = np.argsort(found["id"].to_numpy())
        for name in kept:
            values = [found[name][int(row)].as_py() for row in order]
            wanted = [source[name][row].as_py() for row in alive]
            change = _as_in_a_lake(source.schema.field(name).type) if sink in ("delta", "iceberg") else _same
            np.testing.assert_equal(values, [change(value) for value in wanted])
            if change is _same:
                assert found.schema.field(name).type == source.schema.field(name).type


def _run(fields: dict[str, Any], sink: str, folder: Path) -> tuple[pa.Table, int]:
    if sink == "memory":
        rows = tagstream.Memory()
        report = tagstream.run(fields, sink=rows, progress=False)
        return rows.labels(), report.counts.dead_rows
    part, read = sink_of(sink, folder)
    report = run_job(load_spec(None, {**fields, "sink": part}), Console(file=io.StringIO()))
    return read(), report.counts.dead_rows


def _lost(value: pa.Scalar) -> bool:
    """Whether PyIceberg would store another value: a null list or map of structs becomes an empty one."""
    kind = value.type
    if pa.types.is_struct(kind):
        return value.is_valid and any(_lost(value[field.name]) for field in kind)
    if pa.types.is_list(kind):
        if not value.is_valid:
            return pa.types.is_struct(kind.value_type)
        return any(_lost(item) for item in value.values)
    if pa.types.is_map(kind):
        if not value.is_valid:
            return pa.types.is_struct(kind.item_type)
        return any(_lost(item["value"]) for item in value.values)
    return False


def _same(value: Any) -> Any:
    return value


def _as_in_a_lake(kind: pa.DataType) -> Callable[[Any], Any]:
    """What docs/reference/types.md says of Iceberg and Delta."""

    def change(value: Any) -> Any:
        if value is None:
            return None
        if pa.types.is_duration(kind):
            return value // dt.timedelta(microseconds=1)
        if pa.types.is_time(kind):
            return f"{value:%H:%M:%S.%f}"
        if pa.types.is_map(kind):
            return [(key, _as_in_a_lake(kind.item_type)(item)) for key, item in value]
        if pa.types.is_struct(kind):
            return {field.name: _as_in_a_lake(field.type)(value[field.name]) for field in kind}
        if pa.types.is_list(kind):
            return [_as_in_a_lake(kind.value_type)(item) for item in value]
        return Decimal(value) if kind == pa.uint64() else value

    return change


@pytest.mark.crash
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sink", CASES)
def test_random_tables(sink: str, long: bool) -> None:
    """See the module."""
    cases = CASES[sink] * (25 if long else 1)
    least = 10 if sink in ("delta", "iceberg") else 1  # each split is a commit at least

    @settings(
        max_examples=cases,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(tables(), FILES, st.integers(least, 60), st.integers(least, 60))
    def run(table: pa.Table, file: dict[str, Any], split_rows: int, block_rows: int) -> None:
        check(table, file, sink, split_rows, block_rows)

    run()
