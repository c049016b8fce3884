"""A source and a sink in this process's memory: Python objects as the input and output of a job."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pyarrow as pa

from tagstream.schemas.block import POSITION, Block, Split
from tagstream.schemas.errors import ChainMovedError, LedgerError, SourceError
from tagstream.schemas.fingerprint import Fingerprint, not_ours
from tagstream.schemas.memory_spec import InMemory, MemorySink, MemorySource
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.contracts import Commit, Progress
from tagstream.transforms.runtime.job_context import JobContext


class Memory(InMemory):
    """Rows in this process: the input of a job, or the place for its labels. A Memory keeps every promise of a sink.

        rows = Memory(pa.table({"text": ["hello"]}))  # also pandas, polars, a dict of columns, a list of dicts
        out = Memory()
        tagstream.run(source=rows, infer=[{"model": "tagstream/spam", "as": "spam"}], sink=out)
        out.labels()

    The object is the ledger. A job that runs again with the same input and output objects has nothing left to do. For
    other rows, make another object.
    """

    def __init__(self, rows: Any = None) -> None:
        """`rows`: see `as_table`; None for an output. Raises SourceError for rows that Arrow can't read."""
        super().__init__()
        self.table = None if rows is None else as_table(rows)
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all labels, dead letters and positions."""
        self.fingerprint: Fingerprint | None = None
        self.ends: dict[str, int] = {}
        self.plan: list[Split] = []
        self.commits: dict[tuple[str, int], tuple[list[pa.RecordBatch], list[pa.RecordBatch]]] = {}

    def labels(self) -> pa.Table:
        """All committed labels, in the order of the input. The table has no rows before the first commit."""
        table = self._table(0)
        return table.drop_columns([name for name in (POSITION,) if name in table.column_names])

    def dead_letters(self) -> pa.Table:
        """All committed dead letters, in the order of the input. The table has no rows before the first commit."""
        return self._table(1)

    def _table(self, kind: int) -> pa.Table:
        with self.lock:
            batches = [batch for key in sorted(self.commits) for batch in self.commits[key][kind]]
            schema = self.fingerprint.schema if self.fingerprint and kind == 0 else None
        if batches:
            return pa.Table.from_batches(batches)
        return schema.empty_table() if schema is not None else pa.table({})


def as_table(rows: Any) -> pa.Table:
    """Convert rows to an Arrow table, without a copy where possible.

    `rows`: an Arrow table, batch or reader; an object with the Arrow PyCapsule interface, such as those of pandas,
    polars and DuckDB; a dict of columns; or dicts in a list or another iterable. Raises SourceError for anything else.
    """
    try:
        if isinstance(rows, pa.RecordBatchReader):
            table = rows.read_all()
        elif isinstance(rows, pa.RecordBatch):
            table = pa.Table.from_batches([rows])
        elif isinstance(rows, list | tuple | Iterator):
            table = _of_dicts(list(rows))
        else:
            table = pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        hint = "call its collect() first" if hasattr(rows, "collect_schema") else f"{error}. Rows have named columns"
        raise SourceError(f"rows of type {type(rows).__name__} can't be read by Arrow: {hint}") from None
    for number, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type) and pa.types.is_string_view(column.type.value_type):
            table = table.set_column(number, table.field(number).name, _plain_dictionary(column))
    return table


def _of_dicts(rows: list[Any]) -> pa.Table:
    """A column for every key of any row: `Table.from_pylist` takes those of the first row only."""
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"each row must be a dict, as in {{'text': 'hello'}}, not {type(row).__name__}")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _plain_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """With strings in place of views, of which Arrow makes no dictionaries itself. Polars' categoricals have views."""
    kind = pa.dictionary(column.type.index_type, pa.large_string(), column.type.ordered)
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()), ordered=kind.ordered)
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, kind)


class TableInMemorySource:
    """See `io.contracts.Source`. Reads the rows of a `Memory`."""

    def __init__(self, spec: JobSpec) -> None:
        self.columns = cast("MemorySource", spec.source)
        self.memory: Memory = self.columns.rows
        if self.memory.table is None:
            raise SourceError("source.rows is an empty Memory: give it rows, as in Memory(table)")
        if not self.memory.table.column_names:
            raise SourceError("source.rows has no columns: where there may be no rows, give a table that has a schema")
        self.kept = check_columns(self.memory.table.schema, self.columns, "the rows in memory")
        self.cutter = BlockCutter(self.columns, self.kept, spec.blocks)

    def splits(self) -> list[Split]:
        rows, step = cast("pa.Table", self.memory.table).num_rows, self.columns.split_rows
        return [  # the ids sort like the rows
            Split(f"memory-{self.memory.key}-{start:012d}", start, min(start + step, rows))
            for start in range(0, rows, step)
        ]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        position = start
        rows = cast("pa.Table", self.memory.table).slice(start, (split.stop or start) - start)
        for batch in rows.to_batches(max_chunksize=self.cutter.blocks.rows):
            yield from self.cutter.cut(split.id, batch, position)
            position += batch.num_rows


class _MemoryWriter(ChainWriter):
    def __init__(self, into: Memory, split: Split, position: int, commit_every: float) -> None:
        super().__init__(split, position, commit_every)
        self._into = into
        self._staged: list[Block] = []

    def _stage(self, block: Block) -> None:
        self._staged.append(block)

    def _append(self, commit: Commit, seconds: float) -> None:
        with self._into.lock:
            end = self._into.ends.get(self.split.id, self.split.start)
            if end != commit.span.start:
                raise ChainMovedError(end)
            labels = [block.batch for block in self._staged]
            self._into.commits[commit.span.split, commit.span.start] = (labels, [b.dead for b in self._staged])
            self._into.ends[self.split.id] = commit.span.stop

    def _discard(self) -> None:
        self._staged = []


class TableInMemorySink:
    """See `io.contracts`: `Sink`, `PlanKeeper` and `ReadableSink`. Writes into a `Memory`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = cast("MemorySink", spec.sink)
        self.memory: Memory = self.spec.rows

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        held = self.memory
        if overwrite:
            held.clear()
        if held.fingerprint is not None and held.fingerprint.hash != fingerprint.hash:
            raise LedgerError(
                not_ours("the Memory", held.fingerprint, fingerprint) + "\nGive the job a Memory of its own"
            )
        held.fingerprint = fingerprint

    def progress(self) -> dict[str, Progress]:
        return {split: Progress(end) for split, end in self.memory.ends.items()}

    def plan(self) -> list[Split]:
        return list(self.memory.plan)

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        held = self.memory
        with held.lock:
            if len(held.plan) == planned:
                held.plan += more
            return list(held.plan)

    def open(self, split: Split, known: int | None = None) -> _MemoryWriter:
        held = self.memory
        return _MemoryWriter(held, split, held.ends.get(split.id, split.start), self.spec.commit_every)

    def sample(self, count: int) -> pa.Table:
        return self.memory.labels().slice(0, count)


def open_source(spec: JobSpec, _: JobContext) -> TableInMemorySource:
    """See `io.registry.open_source`."""
    return TableInMemorySource(spec)


def open_sink(spec: JobSpec, _: JobContext) -> TableInMemorySink:
    """See `io.registry.open_sink`."""
    return TableInMemorySink(spec)
