"""A lake table as a source: the version that is current when the job begins, its data files cut into splits.

Data files never change, so a position is a row number of a file. The sink keeps the plan with the version in it:
whoever plans first wins, and whatever is committed to the table meanwhile is left to `only_new`, which plans the files
that were appended since and not deleted again. Files that were rewritten with the rows they had (compaction) are not
new; a commit that rewrote rows (UPDATE, MERGE) is refused there, because its new rows can't be told from the old ones.

A file of which rows were deleted without rewriting it is a split of its own, committed as a whole.
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


@dataclass(frozen=True)
class LakeFile:
    """A data file. `rows`: in the file, None if the table does not say; `deleted`: how many are not there any more.

    `constant`: values of columns that are the same in all its rows and not in the file, as text.
    """

    path: str
    rows: int | None
    deleted: int = 0
    constant: dict[str, str | None] = field(default_factory=dict)


class LakeSource(ABC):
    """See `io.contracts.PlanningSource`. A format supplies what its log says, and how a file is read."""

    def __init__(self, spec: JobSpec, where: str) -> None:
        self.spec: Any = spec.source
        self.where = where
        with self._translated():
            self.version, self.schema = self._pin()
        self.kept = check_columns(self.schema, self.spec, where)
        self.cutter = BlockCutter(self.spec, self.kept, spec.blocks)
        self.columns = list(dict.fromkeys([self.spec.text, *self.kept.names]))

    def splits(self) -> list[Split]:
        """The plan of a first run."""
        return self.more_splits([])

    def more_splits(self, planned: list[Split]) -> list[Split]:
        """Splits of the files that were appended since the last plan, if the specification asks for them."""
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
                    f"vacuumed?): {' '.join(str(error).split())}. Without only_new the job keeps to the rows it has "
                    "planned; --overwrite begins anew"
                ) from None

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """From row `start` of the split's file on; a file with deleted rows from its first row on."""
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
                f"{' '.join(str(error).split())}. Was its version expired or vacuumed? --overwrite begins anew with "
                "the current one"
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
        """The current version, None if it has no rows yet, and the columns. Raises SourceError if there's no table."""

    @abstractmethod
    def _files(self) -> list[LakeFile]:
        """Data files of the pinned version, in a stable order."""

    @abstractmethod
    def _added(self, since: int) -> list[LakeFile]:
        """Data files appended after version `since`, up to the pinned one. Raises SourceError if it can't be told."""

    @abstractmethod
    def _open(self, path: str) -> AbstractContextManager[Any]:
        """A data file, for reading."""

    @abstractmethod
    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop` of the split's file, those that were deleted left out, with `columns`."""

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Makes SourceErrors of the library's errors."""


def small_types(schema: pa.Schema) -> pa.Schema:
    """Without large strings, binaries and lists, which the libraries give for what files hold small."""
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
