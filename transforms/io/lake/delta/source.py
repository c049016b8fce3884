"""A Delta Lake table as a source: see `lake.source`. The log names the files, which are read as plain Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.block import Split
from tagstream.schemas.errors import SourceError
from tagstream.schemas.lake_spec import DeltaSource, secrets_of
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.parquet_rows import read_rows
from tagstream.transforms.io.lake.delta.log import DeltaLog
from tagstream.transforms.io.lake.delta.table import DeltaAccess
from tagstream.transforms.io.lake.source import TO_GO_ON, LakeFile, LakeSource, small_types
from tagstream.transforms.runtime.job_context import JobContext

if TYPE_CHECKING:
    from deltalake import DeltaTable

_NOT_READ = ("columnMapping", "typeWidening", "variantType")
"""Reader features that are refused: with them, a file's column may differ from the table's in name or type."""


class DeltaTableSource(LakeSource):
    """See `lake.source.LakeSource`."""

    def __init__(self, spec: JobSpec) -> None:
        source = cast("DeltaSource", spec.source)
        storage = {name: value.get_secret_value() for name, value in source.storage.items()}
        self.access = DeltaAccess(source.path, storage, secrets_of(source.storage), SourceError)
        self._versions: dict[int, DeltaTable] = {}
        super().__init__(spec, self.access.where)

    def __getstate__(self) -> dict[str, Any]:
        return {**{n: v for n, v in self.__dict__.items() if n != "_store"}, "_versions": {}}

    def _at(self, version: int | None) -> DeltaTable:
        """The table at a version; None means the newest."""
        if version in self._versions:
            return self._versions[version]
        table = self.access.table(version)
        if table is None:
            raise SourceError(f"{self.where}: there is no Delta table")
        return self._versions.setdefault(table.version(), table)

    @cached_property
    def _store(self) -> Any:
        return self.access.files(self._at(self.version))

    def _pin(self) -> tuple[int | None, pa.Schema]:
        table = self._at(None)
        refused = [name for name in table.protocol().reader_features or () if name.startswith(_NOT_READ)]
        if refused:
            raise SourceError(
                f"{self.where}: the table's reader feature {refused[0]} is not supported. Copy the table without it"
            )
        return table.version(), small_types(pa.schema(table.schema().to_arrow()))

    def _translated(self) -> AbstractContextManager[None]:
        return self.access.translated()

    def _files(self) -> list[LakeFile]:
        table = self._at(self.version)
        found = pa.table(table.get_add_actions(flatten=True))
        partitions = [name for name in self.columns if f"partition.{name}" in found.column_names]
        deleted = {path: int((~keep).sum()) for path, keep in self._kept_rows(self.version).items()}
        files = []
        found = found.sort_by([("modification_time", "ascending"), ("path", "ascending")])
        for row in found.select(["path", "num_records", *(f"partition.{name}" for name in partitions)]).to_pylist():
            constant = {name: _text(row[f"partition.{name}"]) for name in partitions}
            path = unquote(row["path"])
            files.append(LakeFile(path, row["num_records"], deleted.get(path, 0), constant))
        return files

    def _added(self, since: int) -> list[LakeFile]:
        log = DeltaLog(self._store, cast("int", self.version))
        new: dict[str, dict[str, Any]] = {}
        for version in range(since + 1, log.version + 1):
            if (actions := log.actions(version)) is None:
                raise SourceError(
                    f"{self.where}: only_new can't find the new rows: the log of version {version} was cleaned up. "
                    "--overwrite starts again with all rows"
                )
            if not _follow(new, actions):
                raise SourceError(
                    f"{self.where}: only_new can't find the new rows: version {version} rewrote rows. {TO_GO_ON}"
                )
        partitions = set(self._at(self.version).metadata().partition_columns) & set(self.columns)
        hidden = self._kept_rows(self.version) if any(add.get("deletionVector") for add in new.values()) else {}
        files = []
        for path, add in new.items():
            constant = {name: add["partitionValues"].get(name) for name in partitions}
            if not (vector := add.get("deletionVector")):
                files.append(LakeFile(path, None, 0, constant))
            elif path in hidden:
                rows = json.loads(add.get("stats") or "{}").get("numRecords")
                files.append(LakeFile(path, rows, vector["cardinality"], constant))
            else:
                raise SourceError(
                    f"{self.where}: only_new can't find the new rows: some rows of {path} were deleted, and then the "
                    "file was compacted before it was labelled. --overwrite starts again with all rows"
                )
        return files

    def _kept_rows(self, version: int | None) -> dict[str, Any]:
        """For each file with a deletion vector, by path: a bool array that is True for each row that still exists."""
        table = self._at(version)
        if "deletionVectors" not in (table.protocol().reader_features or ()):
            return {}
        root = table.table_uri.rstrip("/") + "/"
        vectors = pa.table(table.deletion_vectors()).to_pylist()
        return {
            unquote(row["filepath"]).removeprefix(root): np.asarray(row["selection_vector"], bool) for row in vectors
        }

    def _open(self, path: str) -> AbstractContextManager[Any]:
        return self._store.open_input_file(path)  # type: ignore[no-any-return]

    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        path, constant = split.payload["path"], split.payload["constant"]
        keep = self._kept_rows(split.payload["version"])[path] if split.whole else None
        with self._open(path) as opened:
            file = pq.ParquetFile(opened)
            stop = min(stop, file.metadata.num_rows) if split.whole else stop
            names = [name for name in self.columns if name in file.schema_arrow.names and name not in constant]
            opened.seek(0)
            at = start
            for batch in read_rows(opened, names or file.schema_arrow.names[:1], start, stop, self.cutter.blocks):
                whole = pa.RecordBatch.from_arrays(
                    [self._column(name, batch, names, constant) for name in self.columns], self.columns
                )
                if keep is not None:  # a deletion vector ends with the last deleted row
                    mask = np.ones(batch.num_rows, bool)
                    mask[: max(0, len(keep) - at)] = keep[at : at + batch.num_rows]
                    whole = whole.filter(pa.array(mask))
                at += batch.num_rows
                yield whole

    def _column(self, name: str, batch: pa.RecordBatch, names: list[str], constant: dict[str, str | None]) -> pa.Array:
        kind = self.schema.field(name).type
        if name in names:
            return batch.column(name).cast(kind)
        return pa.array([constant.get(name)] * batch.num_rows, pa.string()).cast(kind)


def _follow(new: dict[str, dict[str, Any]], actions: list[dict[str, Any]]) -> bool:
    """Apply one more commit to `new`, the files with new rows by path. False if new rows can't be told from old ones.

    A file that was compacted together with old files stays in `new`, because no other file holds only its rows.
    """
    what = next((a["commitInfo"].get("operation") for a in actions if "commitInfo" in a), None)
    removed = {unquote(a["remove"]["path"]): a["remove"]["dataChange"] for a in actions if "remove" in a}
    gone = {path for path, changed in removed.items() if changed}
    compacted = removed.keys() - gone
    if own := bool(compacted) and compacted <= new.keys():
        gone |= compacted
    adds = [a["add"] for a in actions if "add" in a and (a["add"]["dataChange"] or own)]
    added = {unquote(add["path"]): add for add in adds}
    if what == "DELETE":  # a file with a deletion vector keeps its path
        old = (gone & added.keys()) - new.keys()
        added = {path: add for path, add in added.items() if path not in old}
        gone -= old
    if added and (old := gone - new.keys()):
        if what != "DELETE" or old != gone:
            return False
        added = {}  # these files hold the remaining rows of old files
    for path in gone:
        new.pop(path, None)
    new.update(added)
    return True


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def open_source(spec: JobSpec, _: JobContext) -> LakeSource:
    """See `io.registry.open_source`."""
    return DeltaTableSource(spec)
