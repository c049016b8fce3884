"""A lake table as a source. The job reads the version that is current when it begins, and cuts its files into splits.

A data file never changes, so a position is a row number of a file. The sink keeps the plan, which names the version.
If two processes plan at once, the first one wins. Rows that are appended later are labelled only with `only_new`: each
run then plans the files that were appended since the last plan and still exist. A file that compaction made of old
rows is not new. After a commit that rewrote rows (UPDATE, MERGE), `only_new` raises an error, because new rows can't be
told from old ones.

A file may have deleted rows that are still in the file. Such a file is one split and is committed as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tagstream.schemas.block import END, Block, Span, Split, split_id
from tagstream.schemas.dead_letters import empty_batch, no_dead
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns, check_planned
from tagstream.transforms.io.common.parquet_rows import row_groups, row_ranges

_FOOTER_THREADS = 8
TO_GO_ON = "Without only_new the job labels only the rows it has planned; --overwrite starts again with all rows"


@dataclass(frozen=True)
class LakeFile:
    """A data file.

    `rows`: number of rows in the file, None if the table does not say. `deleted`: how many of them were deleted.
    `constant`: columns that are not in the file because all its rows have the same value there, as text.
    """

    path: str
    rows: int | None
    deleted: int = 0
    constant: dict[str, str | None] = field(default_factory=dict)


class LakeSource(ABC):
    """See `io.contracts.PlanningSource`. A subclass lists a table's files by its format's log, and reads a file."""

    def __init__(self, spec: JobSpec, where: str) -> None:
        self.spec: Any = spec.source
        self.where = where
        self.notes: list[str] = []
        with self._translated():
            self.version, self.schema = self._pin()
        self.kept = check_columns(self.schema, self.spec, where)
        self.cutter = BlockCutter(self.spec, self.kept, spec.blocks)
        self.columns = list(dict.fromkeys([self.spec.text, *self.kept.names]))

    def splits(self) -> list[Split]:
        """The splits that a first run plans."""
        return self.more_splits([])

    def more_splits(self, planned: list[Split], limit: int | None = None) -> list[Split]:
        """Splits of the files appended since the last plan. None without `only_new`, except in a first run."""
        check_planned(planned, "table", self.where)
        if self.version is None or (planned and not self.spec.only_new):
            return []
        with self._translated():
            if not planned:
                return self._cut(self._files())
            since = planned[-1].payload["version"]
            try:
                return [] if since == self.version else self._cut(self._added(since))
            except FileNotFoundError as error:
                raise SourceError(
                    f"{self.where}: a file with new rows was removed before they were labelled (compacted, then "
                    f"vacuumed?): {' '.join(str(error).split())}. {TO_GO_ON}"
                ) from None

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """Blocks from row `start` on. A file with deleted rows is read from its first row; earlier rows are dropped."""
        stop = split.stop or 0
        if start >= stop:
            return
        position = 0 if split.whole else start
        batches = self._batches(split, 0, END) if split.whole else self._batches(split, start, stop)
        try:
            for batch in batches:
                for block in self.cutter.cut(split.id, batch, position):
                    if block.span.stop > start:
                        yield block.after(start)
                position += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{self.where}: {split.payload['path']} can't be read from row {position:,} on: "
                f"{' '.join(str(error).split())}. Its version may have been expired or vacuumed; --overwrite starts "
                "again with the current version"
            ) from None
        if split.whole:
            yield Block(Span(split.id, max(position, start), END), empty_batch(self.cutter.schema), no_dead(self.kept))

    def _cut(self, files: list[LakeFile]) -> list[Split]:
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            return [split for splits in pool.map(self._splits_of, files) for split in splits]

    def _splits_of(self, file: LakeFile) -> list[Split]:
        payload = {"table": self.where, "version": self.version, "path": file.path, "constant": file.constant}
        stem = self.where.rpartition("/")[2]
        most = self.spec.split_rows
        if file.deleted:
            name = split_id(stem, path=file.path, version=self.version)
            return [Split(name, 0, END, payload, planned=max(0, (file.rows or 0) - file.deleted))]
        groups: tuple[int, ...] = (file.rows or 0,)
        if file.rows is None or file.rows > most:
            with self._open(file.path) as opened:
                groups = row_groups(opened)
        return [
            Split(split_id(stem, path=file.path, start=start, stop=stop), start, stop, payload)
            for start, stop in row_ranges(groups, most)
        ]

    @abstractmethod
    def _pin(self) -> tuple[int | None, pa.Schema]:
        """The current version and the columns. The version is None for a table that never had rows.

        Raises SourceError if there is no table.
        """

    @abstractmethod
    def _files(self) -> list[LakeFile]:
        """Data files of the pinned version, in a stable order."""

    @abstractmethod
    def _added(self, since: int) -> list[LakeFile]:
        """Data files appended after version `since`, up to the pinned version.

        Raises SourceError if new rows can't be told from old ones.
        """

    @abstractmethod
    def _open(self, path: str) -> AbstractContextManager[Any]:
        """A data file, opened for reading."""

    @abstractmethod
    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop` of the split's file, without deleted rows, with the columns `self.columns`."""

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Turns errors of the format's library into SourceErrors."""


def small_types(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings, binaries and lists. The libraries report large ones, but files hold plain ones."""
    return pa.schema([pa.field(f.name, _small(f.type)) for f in schema])


def _small(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_large_list(kind) or types.is_list(kind):
        return pa.list_(_small(kind.value_type))
    if types.is_map(kind):
        return pa.map_(_small(kind.key_type), _small(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _small(f.type)) for f in kind])
    return kind
