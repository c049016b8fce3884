"""Iceberg and Delta tables keep what sources and sinks promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from tagstream.schemas.block import TEXT
from tagstream.transforms.io.contracts import Sink, Source
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.transforms.io.database.databases import as_letters
from tests.transforms.io.lake.lakes import DeltaLake, IcebergLake, Lake
from tests.transforms.io.sink_contract import KEPT, SinkContract
from tests.transforms.io.source_contract import SourceContract, job


class LakeSourceContract(SourceContract):
    lake: type[Lake]
    kept_types = (
        "bool", "double", "decimal", "date", "instant", "string", "binary", "list", "lists", "struct", "map", "a.b",
    )  # fmt: skip

    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        lake = self.lake(folder)
        if not lake.table("rows").num_columns:
            lake.append("rows", table)
        return open_source(job({**lake.settings("rows"), **settings}, **blocks), JobContext())


class LakeSinkContract(SinkContract):
    lake: type[Lake]

    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        return open_sink(self.job({**self.lake(folder).settings("labels"), **settings}), JobContext())

    def labels(self, folder: Path) -> pa.Table:
        return as_written(self.lake(folder).table("labels"))

    def dead(self, folder: Path) -> pa.Table:
        name = "labels-dead" if self.lake is DeltaLake else "labels_dead"
        return as_letters(self.lake(folder).table(name), KEPT)


def as_written(table: pa.Table) -> pa.Table:
    """The table with the small types that blocks have."""
    small = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    fields = [pa.field(f.name, small.get(f.type, f.type), f.nullable) for f in table.schema]
    return table.cast(pa.schema(fields))


class TestIcebergSource(LakeSourceContract):
    lake = IcebergLake

    def test_null_and_invalid_texts_are_kept(self, tmp_path: Path) -> None:
        """PyIceberg writes no text that is not UTF-8."""
        texts = ["ok", None, "", "nul\x00"]
        assert self.rows(self.source(tmp_path, pa.table({"id": range(4), "text": texts})), TEXT) == texts


class TestDeltaSource(LakeSourceContract):
    lake = DeltaLake


class TestIcebergSink(LakeSinkContract):
    lake = IcebergLake


class TestDeltaSink(LakeSinkContract):
    lake = DeltaLake
