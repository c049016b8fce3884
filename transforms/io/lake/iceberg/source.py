"""An Iceberg table as a source: see `lake.source`. A version is a snapshot of the branch main."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.block import Split
from tagstream.schemas.errors import SourceError
from tagstream.schemas.lake_spec import IcebergSource, secrets_of
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.parquet_rows import read_rows
from tagstream.transforms.io.lake.iceberg.null_lists import may_become_empty
from tagstream.transforms.io.lake.iceberg.table import IcebergAccess
from tagstream.transforms.io.lake.source import TO_GO_ON, LakeFile, LakeSource, small_types
from tagstream.transforms.runtime.job_context import JobContext

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask, Table

_FIELD_ID = b"PARQUET:field_id"


class IcebergTableSource(LakeSource):
    """See `lake.source.LakeSource`."""

    def __init__(self, spec: JobSpec) -> None:
        source = cast("IcebergSource", spec.source)
        catalog = {name: value.get_secret_value() for name, value in source.catalog.items()}
        self.access = IcebergAccess(catalog, source.table, secrets_of(source.catalog), SourceError)
        super().__init__(spec, self.access.where)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_table", "_tasks"}}

    @cached_property
    def _table(self) -> Table:
        table = self.access.table()
        if table is None:
            raise SourceError(f"{self.where}: the catalog has no such table")
        return table

    def _pin(self) -> tuple[int | None, pa.Schema]:
        snapshot = self._table.current_snapshot()
        schema = small_types(self._table.schema().as_arrow())
        return (None if snapshot is None else snapshot.snapshot_id), schema

    def _translated(self) -> AbstractContextManager[None]:
        return self.access.translated()

    def _files(self) -> list[LakeFile]:
        return [_file(task) for task in self._scan(cast("int", self.version))]

    def _added(self, since: int) -> list[LakeFile]:
        snapshots = {snapshot.snapshot_id: snapshot for snapshot in self._table.metadata.snapshots}
        at = self.version
        while at != since:
            if at not in snapshots:
                raise SourceError(
                    f"{self.where}: only_new can't find the new rows: rows were labelled up to snapshot {since}, which "
                    "has expired or was rolled back. --overwrite starts again with all rows"
                )
            summary = snapshots[at].summary
            if summary and summary.operation.value == "overwrite" and summary.get("added-data-files", "0") != "0":
                raise SourceError(
                    f"{self.where}: only_new can't find the new rows: snapshot {at} rewrote rows. {TO_GO_ON}"
                )
            at = snapshots[at].parent_snapshot_id
        scan = self._table.incremental_append_scan(
            from_snapshot_id_exclusive=since, to_snapshot_id_inclusive=self.version
        )
        return [_file(task) for task in _in_order(scan.plan_files())]

    def _scan(self, version: int) -> list[FileScanTask]:
        return _in_order(self._table.scan(snapshot_id=version).plan_files())

    def _open(self, path: str) -> AbstractContextManager[Any]:
        return self._table.io.new_input(path).open()

    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        if not split.whole:
            with self._open(split.payload["path"]) as opened:
                names = self._names_in(pq.ParquetFile(opened).schema_arrow)
                if names is not None:
                    opened.seek(0)
                    for batch in read_rows(opened, list(names.values()), start, stop, self.cutter.blocks):
                        arrays = [batch.column(names[name]).cast(self.schema.field(name).type) for name in self.columns]
                        yield pa.RecordBatch.from_arrays(arrays, self.columns)
                    return
        at = 0
        for batch in self._projected(split):
            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
            if low < high:
                yield batch.slice(low, high - low)
            at += batch.num_rows

    def _names_in(self, file: pa.Schema) -> dict[str, str] | None:
        """Names in the file of the columns that we read. None if PyIceberg must find and convert the columns."""
        ids = {int(f.metadata[_FIELD_ID]): f for f in file if f.metadata and _FIELD_ID in f.metadata}
        names = {}
        for name in self.columns:
            found, wanted = ids.get(self._table.schema().find_field(name).field_id), self.schema.field(name).type
            if found is None or (pa.types.is_nested(wanted) and small_types(pa.schema([found]))[0].type != wanted):
                return None
            names[name] = found.name
        return names

    def _projected(self, split: Split) -> Iterator[pa.RecordBatch]:
        """The file as PyIceberg reads it: deletes are applied and renamed columns are found.

        PyIceberg holds the whole file in memory.
        """
        if unsafe := [name for name in self.columns if may_become_empty(self.schema.field(name).type)]:
            raise SourceError(
                f"{self.where}: {unsafe[0]!r} holds lists or maps of structs, and PyIceberg reads null ones as empty "
                "ones from files with deleted rows or renamed columns. Leave the column out of source.keep"
            )
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        task = self._tasks(split.payload["version"]).get(split.payload["path"])
        if task is None:
            raise SourceError(f"{self.where}: snapshot {split.payload['version']} has no {split.payload['path']}")
        schema = self._table.schema().select(*self.columns)
        scan = ArrowScan(self._table.metadata, self._table.io, schema, AlwaysTrue())
        for batch in scan.to_record_batches([task]):
            arrays = [batch.column(name).cast(self.schema.field(name).type) for name in self.columns]
            yield pa.RecordBatch.from_arrays(arrays, self.columns)

    def _tasks(self, version: int) -> dict[str, FileScanTask]:
        with self._translated():
            return {task.file.file_path: task for task in self._scan(version)}


def _in_order(tasks: Any) -> list[FileScanTask]:
    return sorted(tasks, key=lambda task: str(task.file.file_path))


def _file(task: FileScanTask) -> LakeFile:
    if task.file.file_format.value.upper() != "PARQUET":
        raise SourceError(f"{task.file.file_path} is {task.file.file_format.value}; only Parquet data files are read")
    deleted = sum(file.record_count for file in task.delete_files)
    return LakeFile(task.file.file_path, task.file.record_count, deleted)


def open_source(spec: JobSpec, _: JobContext) -> LakeSource:
    """See `io.registry.open_source`."""
    return IcebergTableSource(spec)
